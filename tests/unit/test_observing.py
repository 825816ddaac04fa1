"""What the times of a watched stream tell, and the words for it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipeline.metrics import StageMetrics
from pipeline.stage import ColorTags, MediaFacts, StreamInfo
from pipeline.url import Url
from stages.findings import Watched, Work, advice, color, source_rows, work_rows
from stages.machine import cores, home
from stages.observing import Sighting, delay, tempo


def stream(count=100, hz=25.0, speed=1.0, jitter_s=0.0, lost=(), clock=None):
    """Frames at `hz` that arrive at `speed` times their own clock."""
    noise = np.random.default_rng(1).uniform(0, jitter_s, count)
    times = [k / hz if clock is None else clock(k) for k in range(count)]
    return [
        Sighting(k, 100 + t / speed + noise[k], 5 + t) for k, t in enumerate(times) if k not in lost
    ]


def test_rates_of_arrival_and_of_the_times():
    found = tempo(stream(speed=0.5), 0.001)
    assert found.media_hz == pytest.approx(25)
    assert found.arrival_hz == pytest.approx(12.5)
    assert found.uneven == 0
    assert not found.variable


def test_frames_that_are_missing_do_not_lower_the_rate():
    found = tempo(stream(lost=(10, 11, 40)), 0.001)
    assert found.missing == 3
    assert found.media_hz == pytest.approx(25)
    assert found.arrival_hz == pytest.approx(25)
    assert not found.variable


@pytest.mark.parametrize(
    ("clock", "tick_s", "variable"),
    [
        (lambda k: round(k * 1001 / 30), 0.001, False),  # 29.97 in whole milliseconds
        (lambda k: round(k * 1000 / 120), 0.001, False),  # 120 fps in them
        (lambda k: k * 40 + 15 * (k % 2), 0.001, True),
        (lambda k: k * 40 + 200 * (k >= 50), 0.001, False),  # one gap
    ],
    ids=["rounded", "rounded much", "variable", "one gap"],
)
def test_coarse_ticks_and_single_gaps_are_no_variable_rate(clock, tick_s, variable):
    found = tempo(stream(clock=lambda k: clock(k) / 1000), tick_s)
    assert found.variable is variable


def test_a_splice_is_no_step():
    seen = stream(40) + [
        Sighting(40 + k, 101.6 + k / 25, 905 + k / 25, discontinuity=k == 0) for k in range(40)
    ]
    found = tempo(seen, 0.001)
    assert found.media_hz == pytest.approx(25)
    assert found.step_range_s == pytest.approx((0.04, 0.04))


@pytest.mark.parametrize(("speed", "slope"), [(1.0, 0.0), (0.8, 0.2), (1.25, -0.25)])
def test_the_delay_of_a_jittering_stream(speed, slope):
    found = delay(stream(150, speed=speed, jitter_s=0.08))
    assert found.slope == pytest.approx(slope, abs=0.018)
    assert (found.grows, found.shrinks) == (slope > 0, slope < 0)


def test_a_burst_at_the_beginning_and_outliers_are_no_growing_delay():
    burst = [Sighting(k, 100 + 0.001 * k, k / 25) for k in range(25)]
    steady = [
        Sighting(k, 99.04 + k / 25 + (0.9 if k % 9 == 0 else 0), k / 25) for k in range(25, 150)
    ]
    found = delay(burst + steady)
    assert not found.grows
    assert not found.shrinks


def test_too_little_to_tell():
    assert delay(stream(10)) is None
    assert delay(stream(30, hz=100)) is None
    assert tempo(stream(1), 0.001).arrival_hz is None
    assert delay([Sighting(k, k / 25, None) for k in range(100)]) is None


def watched(seen=None, *, live=True, media=None, rate=Fraction(25), size=(320, 240), **more):
    seen = seen or stream()
    info = StreamInfo(
        "cam", Url("rtsp://u:sesame@cam/x"), live, size, Fraction(1, 1000), rate,
        color=more.pop("color", ColorTags()), media=media or MediaFacts("rtsp", "h264", "yuv420p"),
    )  # fmt: skip
    facts = {
        "sizes_wh": [size], "counters": {}, "notes": (), "problem": None,
        "cpu_share": 0.1, "cpu_s": 0.004, "read_s": 0.04, "seconds": 4.0,
    } | more  # fmt: skip
    return Watched(info=info, tempo=tempo(seen, 0.001), delay=delay(seen), **facts)


def work(hz, slowest="infer", device="cpu"):
    costs = {"infer": StageMetrics(), "overlay": StageMetrics()}
    costs["infer"].service_ms.add(40.0)
    costs["infer"].items = 1
    return Work([("model", "m")], device, costs, hz, slowest, "cam")


def told(rows):
    return "\n".join(f"{what}: {finding}" for what, finding in rows)


def test_a_stream_in_words():
    text = told(source_rows(watched()))
    assert "rtsp://***@cam/x" in text
    assert "25.00 fps measured over 100 frames, 25.00 announced" in text
    assert "times: constant" in text
    assert "delay: constant" in text
    assert "h264 (yuv420p) in rtsp" in text
    slow = told(source_rows(watched(stream(speed=0.5), rate=Fraction(50))))
    assert "but 50.00 announced" in slow
    assert "they arrive at 12.50 a second" in slow
    assert "grows by 500 ms a second: the frames come slower" in slow
    busy = told(source_rows(watched(stream(speed=0.5), cpu_share=0.99)))
    assert "decoding cannot keep up" in busy
    blind = told(source_rows(watched(media=MediaFacts("mpjpeg", "mjpeg", own_times=False))))
    assert "delay: cannot be seen from here" in blind


def test_what_to_change():
    assert advice(work(60.0), watched()) == []
    assert "smaller model, --device cuda" in advice(work(12.0), watched())[0]
    assert "--device cuda" not in advice(work(12.0, device="cuda:0"), watched())[0]
    assert "because of 'overlay'" in advice(work(12.0, "overlay"), watched())[0]
    assert "decoding takes a whole core" in advice(work(60.0), watched(cpu_share=0.95))[0]
    assert "before the frames get here" in advice(work(60.0), watched(stream(speed=0.5)))[0]
    assert "transport=tcp" in advice(work(60.0), watched(counters={"corrupt": 9}))[0]
    assert "HDR" in advice(work(60.0), watched(color=ColorTags(9, 9, 16)))[0]
    assert advice(work(12.0), watched(live=False)) == []


def test_what_the_work_costs_in_words():
    text = told(work_rows(work(60.0), watched(), stand_in=True))
    assert "it keeps up with the 25.0 frames a second, 2.4 times over" in text
    assert "infer: 40" in text
    assert "another model" in text
    text = told(work_rows(work(10.0), watched(), stand_in=False))
    assert "of 25.0 frames a second about 15.0 will be dropped" in text
    text = told(work_rows(work(50.0), watched(live=False), stand_in=False))
    assert "a minute of it takes about 30 s" in text


def test_colour_in_words():
    assert color(ColorTags(1, 1, 1, full_range=False), (1920, 1080)) == "BT.709, limited range"
    assert "HDR (HLG)" in color(ColorTags(9, 9, 18, full_range=True), (1920, 1080))
    assert "BT.601 assumed" in color(ColorTags(), (640, 480))


def test_cores_and_home_in_words(tmp_path):
    assert cores(4, 4, None) == cores(4, 4, "max 100000") == "4"
    text = cores(2, 16, "150000 100000")
    assert text == "2 of 16 for this process, of which the container may use the time of 1.5"
    (tmp_path / "x").write_bytes(b"1" * 500_000)
    assert home(tmp_path) == f"{tmp_path}, writable, 0.5 MB in it"
    assert "not made yet" in home(tmp_path / "later")
