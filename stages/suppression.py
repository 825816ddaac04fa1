"""Non-maximum suppression: which of many overlapping candidates stand for one object each.

Pure functions on numpy arrays; safe from any thread; no time limits, so a result depends on nothing
but its input. Everywhere: `xyxy` is (n, 4) float32 with finite values, `score` (n,) float32,
`class_id` (n,) int64, or None to let boxes of all classes suppress each other. Boxes of different
classes are told apart by comparing classes: shifting them apart by an offset, as is usual, rounds
large coordinates. Order is by descending score, equal scores by index. Two boxes overlap too much
when IoU > iou_threshold; boxes without area overlap nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import F32

I64 = NDArray[np.int64]
Bits = NDArray[np.bool_]

# Candidates looked at in one step. Smaller blocks cost Python calls, larger ones memory traffic:
# 10,000 candidates around 50 objects took 2.8 ms with 256, 3.0 with 512, 5.2 with 1024.
_BLOCK: Final = 256
# Below every score: marks a row that soft suppression has taken.
_TAKEN: Final = -1.0


def hard(
    xyxy: F32,
    score: F32,
    class_id: I64 | None,
    iou_threshold: float,
    limit: int | None = None,
) -> I64:
    """Return the rows that greedy suppression keeps, best first, at most `limit`.

    The work is bounded by n times the rows kept: a candidate is compared with what was kept before
    it, and nothing is looked at once `limit` is reached.
    """
    order = _by_score(score)
    boxes = _Boxes(xyxy, class_id)
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        if limit is not None and len(kept) >= limit:
            break
        block = order[start : start + _BLOCK]
        if len(kept):
            block = block[~boxes.overlaps(kept, block, iou_threshold).any(axis=0)]
        kept = np.concatenate([kept, block[_resolve(boxes, block, iou_threshold)]])
    return kept if limit is None else kept[:limit]


def merge(
    xyxy: F32,
    score: F32,
    class_id: I64 | None,
    iou_threshold: float,
    limit: int | None = None,
) -> tuple[I64, F32]:
    """Return the kept rows of `hard` and, for each, the score-weighted mean of what it stands for.

    Each candidate goes to the best kept one that it overlaps too much, as in the greedy merge of
    OverFeat (Sermanet et al. 2013, section 4.3), which joins predictions instead of dropping them.

    Returns:
        rows (k,) and merged boxes (k, 4) float32, in the same order.
    """
    kept = hard(xyxy, score, class_id, iou_threshold, limit)
    boxes = _Boxes(xyxy, class_id)
    order = _by_score(score)
    # float64 sums, so that the mean of equal boxes is that box.
    total = np.zeros((len(kept), 4))
    weight = np.zeros(len(kept))
    itself = np.zeros(len(score), bool)
    itself[kept] = True
    for start in range(0, len(order) if len(kept) else 0, _BLOCK):
        block = order[start : start + _BLOCK]
        block = block[~itself[block]]
        over = boxes.overlaps(block, kept, iou_threshold)
        owner = over.argmax(axis=1)  # the first that is true, so the best kept box
        hit = over[np.arange(len(block)), owner]
        block, owner = block[hit], owner[hit]
        shares = score[block].astype(np.float64)
        np.add.at(total, owner, xyxy[block] * shares[:, None])
        np.add.at(weight, owner, shares)
    own = score[kept].astype(np.float64)
    # A lone box of score 0 would be divided by zero.
    own[own == 0] = np.finfo(np.float64).tiny
    total += xyxy[kept] * own[:, None]
    merged = total / (weight + own)[:, None]
    alone = weight == 0
    merged[alone] = xyxy[kept][alone]
    return kept, merged.astype(np.float32)


def soft(
    xyxy: F32,
    score: F32,
    class_id: I64 | None,
    *,
    iou_threshold: float,
    score_threshold: float,
    sigma: float = 0.5,
    linear: bool = False,
    limit: int | None = None,
) -> tuple[I64, F32]:
    """Return rows and their lowered scores by Soft-NMS (Bodla et al. 2017), best first.

    Overlapping candidates lose score instead of being dropped: by exp(-IoU^2 / sigma), or with
    `linear` by 1 - IoU where IoU > iou_threshold. Rows that fall below `score_threshold` are gone.
    """
    order = _by_score(score)
    left = score[order].astype(np.float64)
    classes = np.zeros(len(order), np.int64) if class_id is None else class_id[order]
    # Only boxes of its class can feel a detection, so each class is compared on its own.
    groups = {int(k): np.flatnonzero(classes == k) for k in np.unique(classes)}
    boxes = {k: _Boxes(xyxy[order[at]], None) for k, at in groups.items()}
    rows: list[int] = []
    scores: list[float] = []
    while len(left) and (limit is None or len(rows) < limit):
        best = int(left.argmax())  # the first of equals, which is the lowest index
        if left[best] < max(score_threshold, 0):
            break
        rows.append(int(order[best]))
        scores.append(float(left[best]))
        left[best] = _TAKEN
        group = int(classes[best])
        at = groups[group]
        now = left[at]
        iou = boxes[group].iou(int(np.searchsorted(at, best)))
        decay = np.where(iou > iou_threshold, 1 - iou, 1) if linear else np.exp(-(iou**2) / sigma)
        left[at] = np.where(now < 0, now, now * decay)
    return np.array(rows, np.int64), np.array(scores, np.float32)


def by_score(score: F32, limit: int | None = None) -> I64:
    """Return the rows best first, at most `limit`: for graphs that suppress on their own."""
    return _by_score(score)[:limit]


def _by_score(score: F32) -> I64:
    # Stable on the negated score: equal scores stay in index order; reversing would turn them.
    return np.argsort(-score, kind="stable").astype(np.int64, copy=False)


def _resolve(boxes: _Boxes, block: I64, iou_threshold: float) -> Bits:
    """Return which rows of one block, best first, survive each other."""
    alive = np.ones(len(block), bool)
    over = boxes.overlaps(block, block, iou_threshold)
    # Only survivors are visited, and only those that have someone to suppress.
    for row in np.flatnonzero(np.triu(over, 1).any(axis=1)):
        if alive[row]:
            alive[row + 1 :] &= ~over[row, row + 1 :]
    return alive


class _Boxes:
    """Boxes as columns, with areas, for comparing groups of rows."""

    def __init__(self, xyxy: F32, class_id: I64 | None) -> None:
        self._x1, self._y1, self._x2, self._y2 = np.ascontiguousarray(xyxy.T, np.float32)
        sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], np.float32(0))
        self._area = sides[:, 0] * sides[:, 1]
        # Narrow, because comparing (n, k) classes costs as much as the boxes do.
        self._class_id = None if class_id is None else class_id.astype(np.int32)

    def overlaps(self, one: I64, other: I64, iou_threshold: float) -> Bits:
        """Return (len(one), len(other)): same class and IoU above the threshold."""
        shared, union = self._shared(one, other)
        # inter > t * union instead of a quotient: boxes without area need no special case.
        union *= np.float32(iou_threshold)
        over = shared > union
        if self._class_id is not None:
            over &= self._class_id[one][:, None] == self._class_id[other]
        return over

    def iou(self, row: int) -> NDArray[np.float64]:
        """Return (n,) IoU with one row, whatever the classes; 0 where areas are 0."""
        width = np.minimum(self._x2[row], self._x2) - np.maximum(self._x1[row], self._x1)
        height = np.minimum(self._y2[row], self._y2) - np.maximum(self._y1[row], self._y1)
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        iou = np.zeros(len(shared))
        np.divide(shared, self._area[row] + self._area - shared, out=iou, where=shared > 0)
        return iou

    def _shared(self, one: I64, other: I64) -> tuple[F32, F32]:
        width = np.minimum(self._x2[one][:, None], self._x2[other])
        width -= np.maximum(self._x1[one][:, None], self._x1[other])
        np.maximum(width, 0, out=width)
        height = np.minimum(self._y2[one][:, None], self._y2[other])
        height -= np.maximum(self._y1[one][:, None], self._y1[other])
        np.maximum(height, 0, out=height)
        width *= height
        union = np.add(self._area[one][:, None], self._area[other], out=height)
        union -= width
        return width, union
