"""The reconnecting source's states, on a source that follows a script and a clock that stands
still."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import RefusedError, SourceError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import End, Lost, RunContext, Source, StreamInfo, Timeout
from pipeline.url import Url
from stages.sources.liveclock import LiveClock
from stages.sources.reconnecting import ReconnectConfig, Reconnecting, State
from tests.helpers.fakes import FakeClock

BASE = Fraction(1, 90_000)


class Scripted(Source):
    """Each connection is a list of what `read` gives; a number is a frame of that brightness."""

    live = True

    def __init__(self, clock, *connections, frame_s=0.04):
        self.name = "cam"
        self.counters = {}
        self.clock, self.frame_s = clock, frame_s
        self.connections = iter(connections)
        self.opened_at = []
        self.closed = 0

    def open(self, context):
        self.opened_at.append(self.clock.ns / 1e9)
        plan = next(self.connections)
        if isinstance(plan, Exception):
            raise plan
        self.plan, self.seq = iter(plan), 0
        self.counters = {"corrupt": 0}
        return StreamInfo("cam", Url("fake:"), True, (64, 64), BASE)

    def read(self, timeout_s):
        step = next(self.plan, Lost("script over"))
        if isinstance(step, int):
            self.clock.sleep(self.frame_s)
            self.counters["corrupt"] += 1
            image = np.full((64, 64, 3), step, np.uint8)
            self.seq += 1
            time = FrameTime(self.clock.ns, self.seq, BASE)
            return Frame(FrameId("cam", 0, self.seq - 1), time, image)
        if isinstance(step, Timeout):
            self.clock.sleep(timeout_s)
        return step

    def close(self):
        self.closed += 1


class Ticking(threading.Event):
    """The stop event: waiting moves the clock instead of the wall."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def wait(self, timeout=None):
        self.clock.sleep(timeout)
        return self.is_set()


def make(*connections, frame_s=0.04, **config):
    clock = FakeClock()
    inner = Scripted(clock, *connections, frame_s=frame_s)
    source = Reconnecting(inner, ReconnectConfig(**config), chance=lambda: 0.0)
    source._stop = Ticking(clock)
    return source, inner, RunContext(clock=clock)


def read(source, count, timeout_s=0.5):
    """Return the next `count` frames, and how often there was none yet."""
    frames, waits = [], 0
    while len(frames) < count:
        result = source.read(timeout_s)
        if isinstance(result, Frame):
            frames.append(result)
        else:
            assert isinstance(result, Timeout)
            waits += 1
            assert waits < 1000
    return frames, waits


def states(context):
    return [event.state for event in context.events]


def test_a_stream_without_trouble_is_one_epoch_and_no_news():
    source, _, context = make([1, 2, 3])
    assert source.open(context).size_wh == (64, 64)
    frames, _ = read(source, 3)
    source.close()
    assert [(f.id.epoch, f.id.seq, f.discontinuity) for f in frames] == [
        (0, 0, False),
        (0, 1, False),
        (0, 2, False),
    ]
    assert states(context) == []


@pytest.mark.parametrize("ending", [Lost("cable"), End()], ids=["lost", "the server said goodbye"])
def test_a_lost_stream_comes_back_as_the_next_epoch_with_a_discontinuity(ending):
    source, inner, context = make([1, 2, ending], [3, 4])
    source.open(context)
    frames, _ = read(source, 4)
    assert [(f.id.epoch, f.id.seq) for f in frames] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [f.discontinuity for f in frames] == [False, False, True, False]
    assert states(context) == ["backing off", "connecting", "running"]
    told = frames[2].meta["events"]
    assert [event["state"] for event in told] == states(context)
    assert "events" not in frames[3].meta
    assert source.counters == {"corrupt": 4}, "counts of all epochs together"
    assert inner.closed >= 1, "the old connection is left before a new one is made"


def test_pauses_double_up_to_their_limit_and_start_anew_after_a_good_while():
    refused = [SourceError("refused")] * 6
    source, inner, context = make([1, Lost("x")], *refused, [2] * 40, [3], initial_s=0.2, max_s=1)
    source.open(context)
    read(source, 1)
    read(source, 40)
    read(source, 1)
    # The last pause: the connection held for longer than max_s, so it is the first one again.
    gaps = [round(b - a, 2) for a, b in itertools.pairwise(inner.opened_at)]
    assert gaps[0] == pytest.approx(0.2 + 0.04, abs=0.01)
    assert gaps[1:7] == [0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert gaps[7] == pytest.approx(40 * 0.04 + 0.2, abs=0.02)


def test_a_server_that_gives_one_frame_and_dies_is_not_asked_all_the_time():
    source, inner, context = make(*[[k] for k in range(8)], initial_s=0.2, max_s=2)
    source.open(context)
    read(source, 8)
    gaps = [round(b - a, 1) for a, b in itertools.pairwise(inner.opened_at)]
    assert gaps == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_chance_shortens_pauses_by_up_to_half():
    source, inner, context = make([1], [2], initial_s=1)
    source._chance = lambda: 1.0
    source.open(context)
    read(source, 2)
    assert inner.opened_at[1] - inner.opened_at[0] == pytest.approx(0.54, abs=0.01)


def test_silence_is_a_loss_after_stall_s():
    source, inner, context = make([1, *[Timeout()] * 20], [2], stall_s=3)
    source.open(context)
    frames, _ = read(source, 2)
    assert frames[1].id.epoch == 1
    assert states(context) == ["stalled", "backing off", "connecting", "running"]
    assert 3 <= inner.opened_at[1] < 4.5


def test_the_same_picture_for_long_is_a_loss_but_only_once():
    frozen = [7] * 30
    source, inner, context = make([1, *frozen], [*frozen, *frozen, 8], frozen_s=1)
    source.open(context)
    frames, _ = read(source, 1 + 26 + 60)
    assert len(inner.opened_at) == 2, "still the same after a new connection: a still picture"
    assert {f.id.epoch for f in frames} == {0, 1}
    assert states(context)[0] == "stalled"


def test_a_picture_that_changes_in_one_place_is_not_frozen():
    source, inner, context = make([1, 2] * 40, frozen_s=1)
    source.open(context)
    read(source, 80)
    assert len(inner.opened_at) == 1


def test_before_the_first_picture_refusals_are_final_and_other_failures_are_not():
    source, _, context = make(RefusedError("401"))
    with pytest.raises(RefusedError, match="401"):
        source.open(context)
    source, inner, context = make(SourceError("down"), SourceError("down"), [1])
    source.open(context)
    assert len(inner.opened_at) == 3
    assert states(context)[-1] == "running"


def test_after_the_first_picture_a_refusal_is_tried_again():
    source, _, context = make([1], RefusedError("401"), [2])
    source.open(context)
    frames, _ = read(source, 2)
    assert frames[1].id.epoch == 1


def test_it_gives_up_after_max_attempts_in_a_row():
    down = [SourceError("down")] * 9
    source, inner, context = make([1], *down, max_attempts=3)
    source.open(context)
    read(source, 1)
    outcome = Timeout()
    while isinstance(outcome, Timeout):
        outcome = source.read(0.5)
    assert isinstance(outcome, Lost)
    assert "given up after 3 attempts in a row: down" in outcome.reason
    assert len(inner.opened_at) == 3
    source, _, context = make(*down, max_attempts=2)
    with pytest.raises(SourceError, match="given up after 2 attempts"):
        source.open(context)


def test_a_first_connection_that_does_not_come_about_ends_after_start_s():
    source, inner, context = make(*[SourceError("no such host")] * 99, start_s=12, max_s=4)
    with pytest.raises(SourceError, match=r"given up after \d attempts in a row: no such host"):
        source.open(context)
    assert 8 <= inner.opened_at[-1] <= 12
    source, _, context = make(*[SourceError("off")] * 99, [1], start_s=None)
    source.open(context)
    assert context.clock.ns > 600e9


def test_without_reconnecting_the_stream_ends():
    source, _, context = make([1, Lost("cable")], enabled=False)
    source.open(context)
    read(source, 1)
    assert source.read(1) == Lost("cable")


def test_an_interrupt_ends_every_state():
    source, _, context = make([1, 2], [3])
    source.open(context)
    source.interrupt()
    assert isinstance(source.read(10), Timeout)
    source.close()
    assert source.state is State.STOPPED
    source, _, context = make(*[SourceError("down")] * 50)
    source.interrupt()
    with pytest.raises(SourceError, match="stopped"):
        source.open(context)


@pytest.mark.parametrize(
    ("stamps", "arrivals_s", "expected", "jumps"),
    [
        ([0, 3000, 6000], [0, 0.033, 0.066], [0, 3000, 6000], []),
        ([900, 3900, 3900], [0, 0.033, 0.066], [900, 3900, 3901], []),
        ([0, None, 6000], [0, 0.033, 0.066], [0, 2970, 6000], []),
        ([0, 3000, 2000], [0, 0.033, 0.066], [0, 3000, 3001], []),
        (
            [900_000, 903_000, 0, 3000],
            [0, 0.033, 0.066, 0.1],
            [900_000, 903_000, 905_970, 908_970],
            [2],
        ),
        ([0, 9_000_000, 9_003_000], [0, 0.033, 0.066], [0, 2970, 5970], [1]),
        ([0, 9_000_000], [0, 100], [0, 9_000_000], []),
    ],
    ids=["good", "repeated", "missing", "slightly back", "reset", "leap", "long silence"],
)
def test_stamps_of_live_streams_become_increasing_without_waiting(
    stamps, arrivals_s, expected, jumps
):
    clock = LiveClock(BASE)
    placed = [clock.place(p, int(s * 1e9)) for p, s in zip(stamps, arrivals_s, strict=True)]
    assert [pts for pts, _, _ in placed] == expected
    assert [k for k, (_, _, jumped) in enumerate(placed) if jumped] == jumps
