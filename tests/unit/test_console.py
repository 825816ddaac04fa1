"""What a run shows: lines in a log, a bar on a terminal, the essence of the report at the end."""

from __future__ import annotations

import io
import re
import sys
from fractions import Fraction

import pytest

from pipeline.console import Console, essence, expected_frames, failures, table
from pipeline.runner import Snapshot, StreamSnapshot
from pipeline.stage import StreamInfo
from pipeline.url import Url


def snapshot(wall_s, out, *, age_ms=None, dropped=0):
    return Snapshot(wall_s, 50.0, {"a": StreamSnapshot(out, out, dropped, age_ms)})


def report(**changes):
    percentiles = {"p50": 12.0, "p95": 20.0, "p99": 30.0, "max": 31.0}
    dropped = {"full": 0, "stale": 0, "corrupt": 0}
    stream = {"frames_in": 10, "frames_out": 10, "dropped": dropped, "age_ms": percentiles}
    return {
        "mode": "offline",
        "exit": {"code": 0, "reason": "end of stream"},
        "streams": {"a": stream},
        "stages": {"infer": {"busy_share": 0.9}},
        "queues": {},
        "throughput": {"fps": 5.0, "wall_s": 2.0, "bottleneck": "infer"},
        "outputs": [{"uri": "out.mp4", "frames": 10, "duration_s": 0.4, "bytes": 12_345}],
        "notes": [],
        "failures": [],
    } | changes


def make(**options):
    err, out = io.StringIO(), io.StringIO()
    return Console(err=err, out=out, **options), err, out


def test_a_log_gets_a_line_every_ten_seconds():
    console, err, _ = make(terminal=False)
    console.start("offline: a", live=False, expected=lambda: 1000)
    for second in range(1, 26):
        console.tick(snapshot(float(second), second * 10))
    assert err.getvalue().splitlines() == [
        "offline: a",
        "10 s: 100 frames of 1000 (10%), 50.0 fps, 18 s left",
        "20 s: 200 frames of 1000 (20%), 50.0 fps, 16 s left",
    ]


def test_a_live_log_says_age_and_drops():
    console, err, _ = make(terminal=False)
    console.start("live: a", live=True, expected=lambda: None)
    console.tick(snapshot(11.0, 500, age_ms=42.4, dropped=7))
    assert err.getvalue().splitlines()[1] == "11 s: 500 frames, 50.0 fps, age 42 ms, dropped 7"


def test_a_terminal_gets_a_bar_and_notes_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console, err, _ = make(terminal=True)
    console.start("offline: a", live=False, expected=lambda: 1000)
    console.tick(snapshot(1.0, 100))
    console.note("see rtsp://me:secret@cam/1 [bold]")
    console.stop()
    console.stop()
    assert "100/1000" in err.getvalue()
    assert "note: see rtsp://***@cam/1 [bold]" in err.getvalue()


def test_quiet_shows_failures_only():
    console, err, out = make(quiet=True, terminal=True)
    console.start("offline: a", live=False, expected=lambda: None)
    console.tick(snapshot(11.0, 100))
    console.note("something")
    console.result(report(failures=[{"message": "disk full"}]), "report.json")
    assert out.getvalue() == ""
    assert err.getvalue() == "error: disk full\n"


def test_the_essence_has_frames_speed_and_outputs():
    console, err, out = make(terminal=False)
    console.result(report(), "report.json")
    assert out.getvalue().splitlines() == [
        "offline: end of stream",
        "  a: 10 frames in, 10 out, dropped 0",
        "  5.0 fps in 2.0 s, slowest: infer (90% busy)",
        "  out.mp4: 10 frames, 0.40 s, 12.3 kB",
        "report: report.json",
    ]
    assert err.getvalue() == ""


def test_drops_are_said_with_their_reason():
    live = report(mode="live")
    live["streams"]["a"]["dropped"] = {"full": 3, "stale": 0, "corrupt": 1}
    assert essence(live)[1] == (
        "  a: 10 frames in, 10 out, dropped 4 (3 full, 1 corrupt), age 12 ms (p99 30 ms)"
    )


def test_later_failures_are_told_from_the_first():
    found = failures(report(failures=[{"message": "one"}, {"message": "two"}]))
    assert found == ["error: one", "then: two"]


def info(frames, rate):
    return StreamInfo(
        name="a",
        uri=Url("a"),
        live=False,
        size_wh=(4, 4),
        time_base=Fraction(1, 1000),
        rate_hz=rate,
        frame_count=frames,
    )


@pytest.mark.parametrize(
    ("frames", "rate", "max_frames", "duration_s", "expected"),
    [
        (100, None, None, None, 100),
        (100, None, 30, None, 30),
        (None, None, 30, None, 30),
        (None, None, None, None, None),
        (None, Fraction(30000, 1001), None, 10.0, 300),
        (100, Fraction(25), None, 10.0, 100),
        (None, None, None, 10.0, None),
    ],
)
def test_expected_frames(frames, rate, max_frames, duration_s, expected):
    assert expected_frames({"a": info(frames, rate)}, 1, max_frames, duration_s) == expected


def test_expected_frames_waits_for_all_sources():
    assert expected_frames({"a": info(5, None)}, 2, None, None) is None
    assert expected_frames({"a": info(5, None), "b": info(6, None)}, 2, None, None) == 11


def test_a_table_in_a_pipe_is_one_plain_line_a_row():
    assert table(("name", "size"), [("a", "1 MB"), ("longer", "-")]) == [
        "name    size",
        "a       1 MB",
        "longer  -",
    ]


def test_a_table_on_a_narrow_terminal_keeps_names_whole_and_cuts_nothing_off(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, value in (("TERM", "xterm"), ("COLUMNS", "30"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    drawn = table(("name", "what"), [("a-rather-long-name", "[b]one two three four")])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in drawn]
    assert max(map(len, lines)) <= 30
    assert any("a-rather-long-name" in line for line in lines)
    told = " ".join(line[19:] for line in lines)
    for word in ("[b]one", "two", "three", "four"):
        assert word in told
