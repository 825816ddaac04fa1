"""The track stage on given boxes: ids, classes, time, jumps, streams, predictions."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.detections import Detections
from pipeline.errors import UsageError
from pipeline.stage import RunContext
from stages.track import TrackConfig, TrackStage
from tests.contracts.check_stage import check_stage
from tests.helpers.tracking import box, follow, frame, idf1

METHODS = ("ocsort", "bytetrack")


def ids(frames):
    return [f.detections.track_id.tolist() for f in frames]


def ids_of(frames, row):
    """Ids given to that row, without those not given yet."""
    return {i for f in frames if len(f.detections) > row for i in ids([f])[0][row:][:1]} - {-1}


def moving(count, hz=30.0, *, speed=60.0, x=20.0, y=50.0, at=0.0, first=0, **more):
    """Frames with one box that moves to the right."""
    return [
        frame(at + k / hz, [box(x + speed * k / hz, y, **more)], seq=first + k)
        for k in range(count)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_contract(method):
    check_stage(lambda: TrackStage(TrackConfig(method=method), "track"), lambda: moving(5))


def test_process_needs_open():
    with pytest.raises(RuntimeError, match="not open"):
        TrackStage(TrackConfig(), "track").process(moving(1))


@pytest.mark.parametrize("method", METHODS)
def test_ids_follow_boxes_and_not_their_order(method):
    rng = np.random.default_rng(0)
    frames = []
    for k in range(20):
        rows = [box(20 + 2 * k, 30), box(180 - 2 * k, 60), box(100, 90, side=15)]
        order = rng.permutation(3)
        frames.append((order, frame(k / 30, [rows[i] for i in order], seq=k)))
    out, stage = follow([f for _, f in frames], method=method)
    seen = [{} for _ in range(3)]
    for (order, source), result in zip(frames, out, strict=True):
        assert np.array_equal(result.detections.xyxy, source.detections.xyxy)
        for row, thing in enumerate(order):
            seen[thing].setdefault(int(result.detections.track_id[row]), 0)
    assert [len(set(s) - {-1}) for s in seen] == [1, 1, 1]
    assert stage.counters["tracks"] == 3
    assert {i for s in seen for i in s} - {-1} == {1, 2, 3}
    assert ids(out)[-1].count(-1) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("confirm", [2, 3, 5])
def test_an_id_comes_with_so_many_detections_in_a_row_and_stays(method, confirm):
    rows = [[box(20, 50)]] * 9 + [[box(20, 50), box(120, 50)]] * 9
    rows[14] = []
    out, _ = follow(
        [frame(k / 30, row) for k, row in enumerate(rows)], method=method, confirm=confirm
    )
    assert [row[0] for row in ids(out) if row] == [-1] * (confirm - 1) + [1] * (18 - confirm)
    assert [row[1] for row in ids(out) if len(row) > 1] == [-1] * (confirm - 1) + [2] * (
        9 - confirm
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_miss_counts_anew_before_there_is_an_id(method):
    rows = [[box(20, 50)]] * 3 + [[]] + [[box(20, 50)]] * 5
    out, _ = follow([frame(k / 30, row) for k, row in enumerate(rows)], method=method, confirm=4)
    assert [row[0] for row in ids(out) if row] == [-1] * 6 + [1] * 2


@pytest.mark.parametrize("method", METHODS)
def test_unsure_detections_start_nothing(method):
    out, stage = follow(moving(8, score=0.35), method=method)
    assert ids(out) == [[-1]] * 8
    assert stage.counters["tracks"] == 0


def test_bytetrack_goes_on_with_unsure_detections():
    frames = moving(10) + moving(10, x=40, at=10 / 30, first=10, score=0.2)
    assert ids_of(follow(frames, method="bytetrack")[0][12:], 0) == {1}
    assert ids_of(follow(frames, method="ocsort")[0][12:], 0) == set()


@pytest.mark.parametrize("method", METHODS)
def test_classes_do_not_steal_each_others_tracks(method):
    """A person and a car cross; where they meet each is missing for a while."""
    frames, k = [], 0
    for k in range(60):
        rows = [box(40 + 2 * k, 50, kind=0), box(160 - 2 * k, 50, kind=1)]
        keep = [0] if 26 <= k < 30 else [1] if 30 <= k < 34 else [0, 1]
        frames.append(frame(k / 30, [rows[i] for i in keep], seq=k))
    out, stage = follow(frames, method=method)
    by_class = {0: set(), 1: set()}
    for result in out:
        found = result.detections
        for kind, own in zip(found.class_id.tolist(), found.track_id.tolist(), strict=True):
            by_class[kind].add(own)
    assert stage.counters["tracks"] == 2
    assert len(by_class[0] - {-1}) == len(by_class[1] - {-1}) == 1
    assert not (by_class[0] & by_class[1]) - {-1}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hz", [5, 30])
def test_a_lost_track_is_waited_for_in_seconds_whatever_the_rate(method, hz):
    def hidden(gap_s):
        before = moving(2 * hz, hz, speed=0)
        empty = [frame(2 + k / hz, [], seq=2 * hz + k) for k in range(round(gap_s * hz))]
        after = moving(hz, hz, speed=0, at=2 + gap_s, first=len(before) + len(empty))
        out, _ = follow([*before, *empty, *after], method=method, lost_s=1.0)
        return ids_of(out[-hz:], 0)

    assert hidden(0.6) == {1}
    assert hidden(1.4) == {2}


@pytest.mark.parametrize("method", METHODS)
def test_dropped_frames_and_a_variable_rate_change_no_id(method):
    """20 px boxes at 300 px/s: in the longest gap, 8 frames, a box moves by four of its widths."""
    rng = np.random.default_rng(3)
    all_frames = [
        frame(
            k / 30,
            [box(20 + 10 * k, 40), box(1180 - 10 * k, 120), box(600, 60 + 1 * k)],
            seq=k,
            size_wh=(1200, 200),
        )
        for k in range(110)
    ]
    keep = np.cumsum(np.concatenate([[0, 1, 1, 1], rng.choice([1, 1, 2, 3, 8], 60)]))
    frames = [all_frames[k] for k in keep if k < 110]
    assert np.diff([f.id.seq for f in frames]).max() == 8
    out, stage = follow(frames, method=method)
    truth = [replace(f.detections, track_id=np.arange(3)) for f in frames]
    assert stage.counters["tracks"] == 3
    assert idf1(truth, [f.detections for f in out]) > 0.95


@pytest.mark.parametrize(
    "jump", [{"epoch": 1}, {"discontinuity": True}, {"size_wh": (300, 100)}], ids=str
)
def test_a_jump_begins_anew_and_ids_go_on(jump):
    line = {"name": "door", "start": (0.5, 0), "end": (0.5, 1)}
    before = moving(10)
    after = moving(10, x=150, at=10 / 30, first=10)
    if "discontinuity" in jump:
        after[0] = replace(after[0], discontinuity=True)
    else:
        after = [frame(f.time.media_s, [box(150, 50)], seq=f.id.seq, **jump) for f in after]
    out, stage = follow([*before, *after], lines=[line], buffer=2, iou_threshold=0)
    assert ids_of(out[:10], 0) == {1}
    assert ids_of(out[10:], 0) == {2}
    # Nobody walked from one side to the other.
    assert not [key for key in stage.counters if "door" in key]
    assert out[-1].tracks.trails[2][0].time_s >= out[9].tracks.time_s


def test_no_id_is_used_twice_in_a_run():
    seen = []
    stage = TrackStage(TrackConfig(lost_s=0.1), "track")
    stage.open(RunContext())
    for visit in range(5):
        frames = moving(5, at=10.0 * visit, first=5 * visit)
        seen.append(ids_of([stage.process([f])[0] for f in frames], 0))
    assert seen == [{1}, {2}, {3}, {4}, {5}]


def test_streams_do_not_mix():
    one = moving(20)
    other = [replace(f, id=replace(f.id, stream="t")) for f in moving(20, x=22, speed=50)]
    alone = [follow(frames)[0] for frames in (one, other)]
    mixed, stage = follow([f for pair in zip(one, other, strict=True) for f in pair])
    assert ids(mixed[0::2]) == ids(alone[0])
    assert ids(mixed[1::2]) == ids(alone[1])
    assert stage.counters["tracks"] == 2
    assert mixed[-1].tracks.trails == alone[1][-1].tracks.trails


@pytest.mark.parametrize("method", METHODS)
def test_frames_between_get_the_predicted_boxes(method):
    frames = moving(40)
    sparse = [f if k % 4 == 0 else frame(k / 30, None, seq=k) for k, f in enumerate(frames)]
    out, stage = follow(sparse, method=method)
    for k in range(20, 40):
        found = out[k].detections
        assert found.track_id.tolist() == [1]
        assert out[k].inferred is (k % 4 == 0)
        assert np.abs(found.xyxy - frames[k].detections.xyxy).max() < 1.0, k
        assert found.score == pytest.approx([0.9])
    assert stage.counters["predicted"] == sum(
        len(f.detections) for f in out if not f.inferred and f.detections is not None
    )
    # Looking ahead leaves no trace: where detections are seen, ids are as if nobody had asked.
    seldom, _ = follow(sparse[::4], method=method)
    assert ids(seldom) == ids(out[::4])


def test_only_what_was_there_at_the_last_look_is_predicted():
    frames = [*moving(10), frame(10 / 30, [], seq=10), frame(11 / 30, None, seq=11)]
    out, _ = follow(frames)
    assert len(out[-1].detections) == 0
    assert out[-1].detections.class_names == out[0].detections.class_names
    # A box that has left the picture is gone, one at its edge is cut.
    out, _ = follow([*moving(10, x=100, speed=300), frame(10 / 30, None), frame(18 / 30, None)])
    assert out[-2].detections.xyxy[0, 2] == 200
    assert len(out[-1].detections) == 0


def test_nothing_is_predicted_before_the_first_look_or_after_lost_s():
    out, _ = follow([frame(0, None), *moving(5, at=0.1), frame(0.5, None), frame(3, None)])
    assert out[0].detections is None
    assert len(out[-2].detections) == 1
    assert out[-1].detections is None
    out, _ = follow([*moving(5), *(frame(k / 4, None) for k in range(1, 8))], lost_s=1.0)
    assert [len(f.detections) for f in out[5:]] == [1, 1, 1, 1, 0, 0, 0]


def test_a_frame_of_another_kind_of_model_passes():
    item = replace(frame(0, None), inferred=True)
    (out,), _ = follow([item])
    assert out is item


def test_times_that_do_not_grow_are_counted_and_harm_nothing():
    frames = moving(10)
    frames[5] = replace(frames[5], time=frames[2].time)
    frames[7] = replace(frames[7], time=frames[6].time)
    out, stage = follow(frames)
    assert stage.counters["time_repaired"] == 2
    assert ids_of(out, 0) == {1}


def test_without_media_time_the_clock_of_capture_counts():
    def untimed(item):
        captured_ns = int(item.time.media_s * 10**9)
        return replace(item, time=replace(item.time, pts=None, captured_ns=captured_ns))

    frames = [untimed(f) for f in [*moving(10), *moving(5, at=5.0, first=10)]]
    out, _ = follow(frames, lost_s=1.0)
    assert ids_of(out[:10], 0) == {1}
    assert ids_of(out[10:], 0) == {2}


def test_trails_travel_with_the_frame_and_end_in_time():
    out, _ = follow(moving(60), trail_s=0.51)
    trail = out[-1].tracks.trails[1]
    assert len(trail) == 16
    assert trail[-1].xy == pytest.approx((20 + 60 * 59 / 30, 50))
    assert trail[-1].time_s - trail[0].time_s == pytest.approx(0.5)
    assert len(out[20].tracks.trails[1]) == 16, "an older frame keeps what it had"
    assert len(follow(moving(5), trail_s=0)[0][-1].tracks.trails[1]) == 1


def test_crossings_are_of_the_frame_in_which_they_happen():
    config = {
        "lines": [{"name": "door", "start": (0.5, 1), "end": (0.5, 0)}],
        "zones": [{"name": "right", "polygon": ((0.5, 0), (1, 0), (1, 1), (0.5, 1))}],
    }
    out, stage = follow(moving(60, x=70), **config)
    crossed = [(k, c) for k, f in enumerate(out) for c in f.tracks.crossings]
    ((k, crossing),) = crossed
    assert (crossing.line, crossing.direction, crossing.track_id) == ("door", "in", 1)
    assert crossing.class_name == "person"
    # 100 px and the band of 1 px behind it, at 2 px a frame
    assert k == 16
    assert [f.tracks.lines[0].crossed_in for f in out[15:17]] == [0, 1]
    assert stage.counters["s/door/in/person"] == 1
    assert stage.counters["s/right/entered/person"] == 1
    assert stage.counters["s/right/dwell_ms/person"] == pytest.approx(
        1000 * out[-1].tracks.zones[0].dwell_s[1], abs=1
    )


def test_masks_and_scores_stay():
    item = frame(0, [box(50, 50), box(90, 50)])
    found = replace(item.detections, keypoints=np.zeros((2, 5, 3), np.float32))
    (out,), _ = follow([replace(item, detections=found)])
    assert out.detections.keypoints is found.keypoints
    assert out.detections.score is found.score


def test_looks_too_far_apart_are_said():
    context = RunContext()
    follow([frame(k * 3.0, [box(50, 50)], seq=k) for k in range(6)], context, lost_s=2.0)
    (note,) = context.notes
    assert "more than lost_s (2 s) apart" in note
    context = RunContext()
    follow([*moving(5), *moving(5, at=60.0)], context, lost_s=2.0)
    assert context.notes == []


def test_a_missing_package_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "stages.association", raising=False)
    monkeypatch.setitem(sys.modules, "trackers", None)
    import stages

    monkeypatch.delattr(stages, "association", raising=False)
    with pytest.raises(UsageError, match=r"'trackers' is missing; .*\[track\]"):
        TrackStage(TrackConfig(), "track").open(RunContext())


def test_names_of_lines_differ():
    line = {"name": "door", "start": (0, 0), "end": (1, 1)}
    with pytest.raises(ValidationError, match="'door' is given twice"):
        TrackConfig(lines=[line, line])


def test_no_detections_at_all():
    out, stage = follow([replace(f, detections=Detections.empty(("a",))) for f in moving(5)])
    assert ids(out) == [[]] * 5
    assert stage.counters["tracks"] == 0
