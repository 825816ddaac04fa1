"""Output timestamps: the source's own, increasing always."""

from fractions import Fraction

import numpy as np
import pytest

from pipeline.frame import Frame, FrameId, FrameTime
from stages.sinks.chapters import shifted_chapters
from stages.sinks.timeline import Timeline

IMAGE = np.zeros((2, 2, 3), np.uint8)
BASE = Fraction(1, 1000)


def frame(pts, at_ms=0, *, epoch=0, base=BASE, **more):
    return Frame(FrameId("cam", epoch, 0), FrameTime(at_ms * 10**6, pts, base), IMAGE, **more)


def test_keeps_variable_timestamps():
    timeline = Timeline(BASE)
    stamps = [0, 33, 67, 500, 501, 4000]
    assert [timeline.place(frame(pts)) for pts in stamps] == stamps
    assert (timeline.nudged, timeline.arrival_timed) == (0, 0)


def test_shift_moves_all_and_other_time_bases_are_converted():
    timeline = Timeline(Fraction(1, 90000), Fraction(-10))
    assert timeline.place(frame(10_000)) == 0
    assert timeline.place(frame(303, base=Fraction(1, 30))) == 9000


@pytest.mark.parametrize("second", [100, 50])
def test_repeated_or_backward_pts_is_nudged_and_counted(second):
    timeline = Timeline(BASE)
    placed = [timeline.place(frame(pts)) for pts in (100, second, 200)]
    assert placed == [100, 101, 200]
    assert timeline.nudged == 1


def test_frames_without_pts_go_by_arrival():
    timeline = Timeline(BASE)
    placed = [timeline.place(frame(None, at)) for at in (5000, 5040, 5100)]
    assert placed == [0, 40, 100]
    assert timeline.arrival_timed == 3


def test_missing_pts_between_others():
    timeline = Timeline(BASE)
    assert [timeline.place(f) for f in (frame(0, 0), frame(None, 30), frame(80, 90))] == [0, 30, 80]


@pytest.mark.parametrize("how", [{"epoch": 1}, {"discontinuity": True}])
def test_reconnect_goes_on_by_the_capture_clock(how):
    timeline = Timeline(BASE)
    timeline.place(frame(7000, 0))
    timeline.place(frame(7040, 40))
    assert timeline.place(frame(0, 2040, **how)) == 9040
    assert timeline.place(frame(40, 2080, epoch=how.get("epoch", 0))) == 9080


def test_reconnect_with_frames_that_arrive_at_once_keeps_a_step():
    timeline = Timeline(BASE)
    timeline.place(frame(0, 0))
    timeline.place(frame(40, 0))
    assert timeline.place(frame(9000, 0, epoch=1)) == 80


def test_duration_is_the_frames_own_else_the_last_step_else_nominal():
    timeline = Timeline(BASE)
    timeline.place(frame(0))
    assert timeline.duration(frame(0), Fraction(1, 25)) == 40
    timeline.place(frame(33))
    assert timeline.duration(frame(33), Fraction(1, 25)) == 33
    own = Frame(FrameId("cam", 0, 0), FrameTime(0, 66, BASE, 70), IMAGE)
    timeline.place(own)
    assert timeline.duration(own) == 70


def test_chapters_are_moved_and_cut():
    def chapter(start, end):
        return {"id": 1, "start": start, "end": end, "time_base": BASE, "metadata": {}}

    moved = shifted_chapters(
        [chapter(0, 900), chapter(900, 4000), chapter(4000, 9000)], Fraction(-1), Fraction(2)
    )
    assert [(c["start"], c["end"]) for c in moved] == [(0, 2000)]
