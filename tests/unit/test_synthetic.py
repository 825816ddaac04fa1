"""The synthetic source: its address, its time and its ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import SourceError, UsageError
from pipeline.frame import Frame
from pipeline.stage import End, RunContext, Timeout
from stages.sources.numberplate import read_frame_number
from stages.sources.synthetic import SyntheticConfig, SyntheticSource, format_uri, parse_uri


class HandClock:
    """A clock that the test turns."""

    def __init__(self):
        self.ns = 1_000_000_000

    def now_ns(self):
        return self.ns

    def sleep(self, seconds):
        self.ns += int(seconds * 1e9)


def opened(text, clock=None):
    source = SyntheticSource(parse_uri(text), "shapes")
    info = source.open(RunContext() if clock is None else RunContext(clock=clock))
    return source, info


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic:shapes", {}),
        ("synthetic:shapes?seed=3&size=640x360", {"seed": 3, "size_wh": (640, 360)}),
        ("synthetic:shapes?fps=30000/1001", {"fps": Fraction(30000, 1001)}),
        ("synthetic:shapes?fps=29.97&paced=true", {"fps": Fraction(2997, 100), "paced": True}),
        ("synthetic:shapes?frames=0&count=0&start=9", {"frames": 0, "count": 0, "start": 9}),
    ],
)
def test_addresses_are_read_and_written(text, expected):
    config = parse_uri(text)
    assert config == SyntheticConfig(**expected)
    assert parse_uri(format_uri(config)) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("synthetic:stars", ["unknown scene 'stars'", "shapes"]),
        ("shapes", ["synthetic:shapes"]),
        ("synthetic:shapes?sed=3", ["'sed'", "did you mean 'seed'", "count, fps"]),
        ("synthetic:shapes?seed=1&seed=2", ["'seed' is given twice"]),
        ("synthetic:shapes?seed", ["name=value"]),
        ("synthetic:shapes?size=640", ["'size'", "WIDTHxHEIGHT", "'640'"]),
        ("synthetic:shapes?size=64x64", ["'size'", "96"]),
        ("synthetic:shapes?fps=fast", ["'fps'", "30000/1001", "'fast'"]),
        ("synthetic:shapes?fps=0", ["'fps'", "1/100..1000"]),
        ("synthetic:shapes?count=65", ["'count'", "64"]),
        ("synthetic:shapes?paced=perhaps", ["'paced'", "perhaps"]),
        ("synthetic:shapes?scene=shapes", ["'scene'"]),
    ],
)
def test_wrong_addresses_say_what_is_wrong(text, parts):
    with pytest.raises(UsageError) as caught:
        parse_uri(text)
    for part in parts:
        assert part in str(caught.value)


def test_the_config_survives_a_round_trip_through_json():
    config = SyntheticConfig(size_wh=(320, 240), fps=Fraction(24000, 1001), frames=3)
    assert SyntheticConfig.model_validate_json(config.model_dump_json()) == config


def test_frames_carry_exact_time_number_and_truth():
    source, info = opened("synthetic:shapes?fps=30000/1001&size=320x180&frames=3&start=100")
    frames = [source.read(1) for _ in range(3)]
    assert [f.id.seq for f in frames] == [0, 1, 2]
    assert [f.meta["frame_number"] for f in frames] == [100, 101, 102]
    assert [read_frame_number(f.image) for f in frames] == [100, 101, 102]
    assert [f.time.media_s for f in frames] == [k * Fraction(1001, 30000) for k in (100, 101, 102)]
    assert {f.time.time_base for f in frames} == {info.time_base}
    assert source.read(1) == End()
    truth = frames[0].meta["truth"]
    assert len(truth.detections) > 0
    assert truth.depth.kind == "depth_m"
    assert truth.depth.values.shape == (180, 320)
    assert frames[0].detections is None
    assert (info.frame_count, info.duration_s) == (3, Fraction(3003, 30000))
    assert (info.live, info.size_wh) == (False, (320, 180))
    assert parse_uri(str(info.uri)) == source.config


def test_a_later_start_shows_the_same_frames():
    early, _ = opened("synthetic:shapes?size=320x180")
    late, _ = opened("synthetic:shapes?size=320x180&start=2")
    frames = [early.read(1) for _ in range(3)]
    assert np.array_equal(frames[2].image, late.read(1).image)


def test_it_can_be_opened_again_and_closed_twice():
    source, _ = opened("synthetic:shapes?size=320x180&frames=1")
    first = source.read(1)
    source.close()
    source.close()
    with pytest.raises(SourceError, match="before open"):
        source.read(1)
    source.open(RunContext())
    assert np.array_equal(first.image, source.read(1).image)


def test_paced_frames_come_when_they_are_due():
    clock = HandClock()
    source, info = opened("synthetic:shapes?size=320x180&paced=1&fps=10&frames=9", clock)
    assert info.live
    assert source.live
    assert source.read(0).id.seq == 0
    assert source.read(0) == Timeout()
    clock.sleep(0.099)
    assert source.read(0) == Timeout()
    clock.sleep(0.001)
    frame = source.read(0)
    assert (frame.id.seq, frame.time.captured_ns) == (1, clock.ns)
    # Half a second without a reader: as with a camera, what was not fetched is gone.
    clock.sleep(0.5)
    assert source.read(0).id.seq == 6
    assert source.counters == {"skipped": 4}
    clock.sleep(10)
    assert source.read(0) == End()
    assert source.counters == {"skipped": 6}


def test_interrupt_ends_a_paced_wait_at_once():
    source, _ = opened("synthetic:shapes?size=96x96&paced=1&fps=1/50")
    assert isinstance(source.read(1), Frame)
    timer = threading.Timer(0.05, source.interrupt)
    timer.start()
    started = time.monotonic()
    assert source.read(30) == End("interrupted")
    assert time.monotonic() - started < 1
    assert source.read(30) == End("interrupted")
    timer.join()


def test_importing_the_source_loads_no_heavy_library():
    heavy = "{'cv2', 'av', 'torch', 'onnxruntime'} & set(sys.modules)"
    code = f"import sys, stages.sources.synthetic; print(sorted({heavy}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
