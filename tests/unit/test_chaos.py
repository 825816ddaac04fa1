"""Faults made on purpose: their grammar, when they come, and that a seed repeats them."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import UsageError
from pipeline.problems import Problems
from pipeline.schema import load_config
from pipeline.stage import Lost, RunContext, Timeout
from stages.addresses import parse_source
from stages.plan import make_plan
from stages.sources.chaos import ChaosConfig, ChaosSource, split_uri
from stages.sources.faults import Moment, draw, read_jump, read_size, read_timed
from stages.sources.reconnecting import ReconnectConfig, Reconnecting
from stages.sources.synthetic import SyntheticConfig, SyntheticSource
from tests.contracts.check_source import check_source, read_all

SCENE = {"size_wh": "128x96", "frames": 60, "count": 2}


def chaos(inner=None, **faults):
    inner = inner or SyntheticSource(SyntheticConfig(**SCENE), "cam")
    return ChaosSource(ChaosConfig(source="x", **faults), "cam", inner)


def frames_of(source):
    source.open(RunContext())
    frames, outcome = read_all(source)
    counters = {k: v for k, v in source.counters.items() if v}
    source.close()
    return frames, outcome, counters


@pytest.mark.parametrize(
    ("text", "source", "options"),
    [
        ("chaos:a.mp4", "a.mp4", {}),
        ("chaos:a.mp4?drop=0.1&seed=2", "a.mp4", {"drop": "0.1", "seed": "2"}),
        ("chaos:rtsp://h/x?stall=3s@10s", "rtsp://h/x", {"stall": "3s@10s"}),
        ("chaos:rtsp://h/x?ch=1?drop=1", "rtsp://h/x?ch=1", {"drop": "1"}),
        ("chaos:rtsp://h/x?ch=1?", "rtsp://h/x?ch=1", {}),
        ("chaos:synthetic:shapes?seed=3?seed=4", "synthetic:shapes?seed=3", {"seed": "4"}),
        ("chaos:shots/a?.png?drop=1", "shots/a?.png", {"drop": "1"}),
        ("chaos:chaos:a.mp4?drop=1?lose=@5", "chaos:a.mp4?drop=1", {"lose": "@5"}),
    ],
)
def test_options_stand_behind_the_last_question_mark(text, source, options):
    assert split_uri(text) == (source, options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chaos:", "needs a source"),
        ("chaos:?drop=1", "needs a source"),
        ("chaos:a.mp4?drip=1", "'drip' is no option of chaos; did you mean 'drop'?"),
        ("chaos:synthetic:shapes?frames=9", "add another '?' at the end"),
        ("chaos:a.mp4?drop", "'drop' is no option"),
        ("chaos:a.mp4?drop=1&drop=1", "given twice"),
        ("chaos:gopher://u:sesame@h/x?drop=1", "gopher:// is not known"),
        ("chaos:rtsp://u:se?same=1@h/x", "no option of chaos"),
    ],
)
def test_what_is_no_chaos_is_said_without_passwords(text, words):
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert words in str(caught.value)
    assert "same" not in str(caught.value)


def test_a_moment_is_a_frame_or_a_time():
    assert read_timed("3s@200", str).at == Moment(200, None)
    assert read_timed("3s@1.5s", str).at == Moment(None, Fraction(3, 2))
    assert read_timed("-200ms@7", read_jump).value == Fraction(-1, 5)
    assert read_timed("640x360@7", read_size).value == (640, 360)
    assert Moment(None, Fraction(2)).reached(0, Fraction(2))
    assert not Moment(3, None).reached(2, Fraction(100))


@pytest.mark.parametrize(
    "faults",
    [
        {"stall": "3s"},
        {"stall": "3@10"},
        {"stall": "3s@x"},
        {"stall": "3s@0"},
        {"resize": "640@10"},
        {"resize": "4x4@10"},
        {"lose": "3s@10"},
        {"pts_jump": "--5s@10"},
        {"drop": 1.5},
        {"corrupt": -1},
        {"freze": "1s@1"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(faults):
    with pytest.raises(ValidationError):
        ChaosConfig(source="x", **faults)


def test_chance_is_drawn_from_seed_and_number_alone():
    assert draw(1, "drop", 7) == draw(1, "drop", 7) != draw(2, "drop", 7)
    share = np.mean([draw(5, "drop", n) < 0.25 for n in range(4000)])
    assert 0.23 < share < 0.27


def test_without_faults_it_keeps_the_contract_of_its_source():
    check_source(lambda: chaos())
    check_source(lambda: chaos(stall="20ms@3", freeze="0.2s@5", resize="64x48@8", corrupt=0.1))
    check_source(lambda: chaos(pts_jump="-5s@4,3s@9"))


def test_without_faults_it_changes_nothing():
    frames, _, counters = frames_of(chaos())
    plain, _, _ = frames_of(SyntheticSource(SyntheticConfig(**SCENE), "cam"))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, plain, strict=True))
    assert [f.time.pts for f in frames] == [f.time.pts for f in plain]
    assert counters == {}


def test_dropped_frames_are_gaps_and_are_counted():
    frames, _, counters = frames_of(chaos(drop=0.3, seed=1))
    assert 8 < counters["chaos_dropped"] < 30
    assert len(frames) == 60 - counters["chaos_dropped"]
    assert [f.id.seq for f in frames] == [f.meta["frame_number"] for f in frames]
    again, _, _ = frames_of(chaos(drop=0.3, seed=1))
    other, _, _ = frames_of(chaos(drop=0.3, seed=2))
    assert [f.id.seq for f in again] == [f.id.seq for f in frames] != [f.id.seq for f in other]


def test_a_stall_lasts_and_its_frame_is_fresh_afterwards():
    source = chaos(stall="150ms@10")
    source.open(RunContext())
    frames, _ = read_all(source, limit=10)
    began = time.monotonic()
    waits = 0
    while isinstance(result := source.read(0.04), Timeout):
        waits += 1
    took_s = time.monotonic() - began
    age_s = time.monotonic() - result.time.captured_ns / 1e9
    source.close()
    assert [f.id.seq for f in frames] == list(range(10))
    assert result.id.seq == 10
    assert waits >= 2
    assert 0.14 <= took_s < 2
    assert age_s < 0.1
    assert source.counters["chaos_stalls"] == 1


def test_a_stall_ends_at_an_interrupt():
    source = chaos(stall="30s@1")
    source.open(RunContext())
    source.read(1)
    threading.Timer(0.05, source.interrupt).start()
    began = time.monotonic()
    source.read(20)
    assert time.monotonic() - began < 1
    source.close()


def test_a_frozen_picture_moves_again():
    frames, _, counters = frames_of(chaos(freeze="0.5s@10"))
    still = [k for k in range(60) if np.array_equal(frames[k].image, frames[10].image)]
    assert still == list(range(10, 25))
    assert counters == {"chaos_frozen": 15}


def test_the_size_changes_in_the_middle_and_back():
    frames, _, counters = frames_of(chaos(resize="64x48@1s,128x96@40"))
    sizes = [f.size_wh for f in frames]
    assert sizes == [(128, 96)] * 30 + [(64, 48)] * 10 + [(128, 96)] * 20
    assert counters == {"chaos_resized": 30}


def test_blocks_are_damaged_where_there_are_no_packets():
    frames, _, counters = frames_of(chaos(corrupt=0.1))
    plain, _, _ = frames_of(SyntheticSource(SyntheticConfig(**SCENE), "cam"))
    wrong = sum(
        bool((a.image[y : y + 16, x : x + 16] != b.image[y : y + 16, x : x + 16]).any())
        for a, b in zip(frames, plain, strict=True)
        for y in range(0, 96, 16)
        for x in range(0, 128, 16)
    )
    assert wrong == counters["chaos_blocks"]
    assert 0.08 < wrong / (60 * 48) < 0.12


def test_a_jump_of_the_clock_goes_on_from_there():
    frames, _, counters = frames_of(chaos(pts_jump="2s@10,-7s@20"))
    steps = np.diff([f.time.pts for f in frames])
    assert steps[9] == 61
    assert set(np.delete(steps, 9)) == {1}
    assert [f.id.seq for f in frames if f.discontinuity] == [10, 20]
    assert counters == {"chaos_pts_jumps": 2}


def test_a_lost_connection_comes_back_as_another_epoch():
    _, outcome, counters = frames_of(chaos(lose="@15"))
    assert isinstance(outcome, Lost)
    assert counters == {"chaos_losses": 1}
    paced = SyntheticSource(SyntheticConfig(**SCENE | {"fps": 200, "paced": True}), "cam")
    config = ReconnectConfig(initial_s=0.01)
    source = Reconnecting(chaos(paced, lose="@15"), config, chance=lambda: 0)
    source.open(RunContext())
    frames, _ = read_all(source, limit=40)
    source.close()
    assert max(f.id.epoch for f in frames) >= 2
    assert max(f.id.seq for f in frames) <= 14
    assert source.counters["chaos_losses"] == max(f.id.epoch for f in frames)


def plan_of(source, *assignments):
    from pipeline.schema import parse_assignment

    problems = Problems()
    flags = {"sources": ([source], ""), "sinks": (["null"], "-o"), "model": ("shapes", "")}
    config = load_config(None, flags, [parse_assignment(a) for a in assignments], problems)
    return make_plan(config, problems), problems.texts


def test_it_is_planned_with_its_inner_source():
    plan, _ = plan_of("chaos:rtsp://u:sesame@cam/x?drop=0.1", "network.latency=smooth")
    (part,) = plan.sources
    assert (part.kind.name, part.name, part.config.drop) == ("chaos", "cam", 0.1)
    assert part.innermost.config.latency == "smooth"
    assert part.innermost.name == "cam"
    told = str(plan.effective()["sources"])
    assert "sesame" not in told + repr(part.config) + repr(part.innermost.config)
    assert "rtsp://***@cam/x" in told


def test_the_inner_source_may_be_a_map_and_is_checked():
    plan, texts = plan_of({"kind": "chaos", "drop": 0.1, "source": {"kind": "synthetic"}})
    assert plan.sources[0].innermost.kind.name == "synthetic"
    assert texts == []
    for wrong, words in (
        ({"kind": "chaos"}, "needs the key 'source'"),
        ({"kind": "chaos", "source": {"kind": "flie"}}, "did you mean 'file'?"),
        ({"kind": "chaos", "source": {"kind": "synthetic", "cuont": 1}}, "unknown key 'cuont'"),
        ({"kind": "chaos", "source": [1]}, "'source' of source 'chaos' is [1]"),
    ):
        plan, texts = plan_of(wrong)
        assert plan is None
        assert words in "".join(texts)


def test_the_password_of_what_it_wraps_is_not_told():
    config = ChaosConfig(source="rtsp://u:sesame@cam/x", drop=0.5)
    assert "sesame" not in config.model_dump_json() + repr(config)
    context = RunContext()
    source = ChaosSource(config, "cam", SyntheticSource(SyntheticConfig(**SCENE), "cam"))
    source.open(context)
    source.close()
    assert context.notes == ["cam: broken on purpose: drop=0.5"]


def test_what_it_wraps_cannot_be_set_from_the_command_line():
    plan, texts = plan_of("chaos:synthetic:shapes?", "chaos.source=a.mp4")
    assert plan is None
    assert "a source is given in the file" in texts[0]
