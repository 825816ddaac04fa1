"""Frames with given boxes, and IDF1 of the tracks found in them, by the TrackEval package."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from pipeline.detections import Detections
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import RunContext
from stages.track import TrackConfig, TrackStage

NAMES = ("person", "car")


def detections(rows):
    """Return detections from rows of x1, y1, x2, y2, score, class."""
    rows = np.asarray(rows, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), NAMES)


def box(x, y, *, side=20, score=0.9, kind=0):
    """Return a row whose bottom centre is (x, y)."""
    return [x - side / 2, y - side, x + side / 2, y, score, kind]


def frame(time_s, rows, *, seq=0, stream="s", epoch=0, size_wh=(200, 100), **more):
    """Return a frame at `time_s` with these rows; None: not inferred."""
    image = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    pts = round(Fraction(time_s) * 90_000)
    return Frame(
        FrameId(stream, epoch, seq),
        FrameTime(0, pts, Fraction(1, 90_000)),
        image,
        None if rows is None else detections(rows),
        inferred=rows is not None,
        **more,
    )


def follow(frames, context=None, **config):
    """Return the frames as the track stage gives them, and the stage."""
    stage = TrackStage(TrackConfig(**config), "track")
    stage.open(context or RunContext())
    out = [stage.process([item])[0] for item in frames]
    stage.close()
    return out, stage


def noisy(found, rng, *, jitter_px=1.0, drop=0.1):
    """Return detections as a detector might give them: shifted edges, some missing, any order."""
    rows = rng.permutation(np.flatnonzero(rng.random(len(found)) >= drop))
    some = found[rows]
    shifted = some.xyxy + rng.normal(0, jitter_px, some.xyxy.shape)
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    return replace(
        some,
        xyxy=shifted.astype(np.float32),
        score=rng.uniform(0.4, 1, len(some)).astype(np.float32),
        masks=None,
        track_id=None,
    )


def iou(one, other):
    """Return the (n, m) overlaps of (n, 4) and (m, 4) boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-9)


def idf1(truth, found):
    """Return IDF1 (Ristani et al. 2016, arXiv:1609.01775) at IoU 0.5.

    Args:
        truth, found: for each frame its Detections with track_id; rows with -1 do not count.
            A box matches one of its own class only.
    """
    from trackeval.metrics import Identity

    data = {"gt_ids": [], "tracker_ids": [], "similarity_scores": []}
    kept = []
    for frames in (truth, found):
        rows = [each[each.track_id >= 0] for each in frames]
        numbers = {i: k for k, i in enumerate(sorted({int(i) for d in rows for i in d.track_id}))}
        kept.append((rows, numbers))
    (true, true_numbers), (given, numbers) = kept
    for one, other in zip(true, given, strict=True):
        data["gt_ids"].append(np.array([true_numbers[int(i)] for i in one.track_id], int))
        data["tracker_ids"].append(np.array([numbers[int(i)] for i in other.track_id], int))
        same = one.class_id[:, None] == other.class_id[None]
        data["similarity_scores"].append(iou(one.xyxy, other.xyxy) * same)
    data["num_gt_ids"], data["num_tracker_ids"] = len(true_numbers), len(numbers)
    data["num_gt_dets"] = sum(map(len, data["gt_ids"]))
    data["num_tracker_dets"] = sum(map(len, data["tracker_ids"]))
    assert data["num_gt_dets"] > 0
    return float(Identity({"PRINT_CONFIG": False}).eval_sequence(data)["IDF1"])
