"""How far two sides' results are apart: boxes, masks, keypoints and class maps, in picture pixels.

Pure functions; no tolerance is applied to what is measured here but where a pair is to be found.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import F32, Mask
from pipeline.geometry import Letterbox
from stages.decoders.decoder import MapSource

Boxes = tuple[F32, F32, NDArray[np.int64]]
"""(n, 4) xyxy, (n,) scores, (n,) class ids."""

SAME_PX: Final = 0.01
"""Boxes no further apart than this are the same whatever their IoU: float32 resolves coordinates
of 4096 pixels to 0.0005, and no picture shows a hundredth."""
SCORE_TOLERANCE: Final = 1e-3
"""Of a score: a tenth of the last digit that is drawn."""


def partners(mine: Boxes, others: Boxes) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return for each box the row of the best other of its class and score, and their IoU; IoU 0
    where there is none."""
    (box, score, kind), (boxes, scores, kinds) = mine, others
    if not len(boxes):
        return np.zeros(len(box), np.intp), np.zeros(len(box))
    one, other = box.astype(np.float64)[:, None], boxes.astype(np.float64)[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(one[..., 2:] - one[..., :2], axis=2)
    areas = areas + np.prod(other[..., 2:] - other[..., :2], axis=2)
    iou = shared / np.maximum(areas - shared, 1e-12)
    # Slivers at an edge have no IoU worth the name; they are the same where they lie the same.
    iou[np.abs(one - other).max(axis=2) <= SAME_PX] = 1
    iou[kind[:, None] != kinds] = 0
    iou[np.abs(score[:, None] - scores) > SCORE_TOLERANCE] = 0
    best = iou.argmax(axis=1)
    return best, iou[np.arange(len(box)), best]


def mask_iou(one: Mask, other: Mask) -> float:
    """Return the IoU of two masks, pixel by pixel of the picture; 1 where both are empty."""
    x1, y1 = max(one.x, other.x), max(one.y, other.y)
    x2 = min(one.x + one.bits.shape[1], other.x + other.bits.shape[1])
    y2 = min(one.y + one.bits.shape[0], other.y + other.bits.shape[0])
    shared = 0
    if x1 < x2 and y1 < y2:
        mine = one.bits[y1 - one.y : y2 - one.y, x1 - one.x : x2 - one.x]
        theirs = other.bits[y1 - other.y : y2 - other.y, x1 - other.x : x2 - other.x]
        shared = int((mine & theirs).sum())
    union = int(one.bits.sum()) + int(other.bits.sum()) - shared
    return shared / union if union else 1.0


def same_place(one: Mask, other: Mask) -> bool:
    """Return whether two masks cover the same rectangle of the picture."""
    return (one.x, one.y, one.bits.shape) == (other.x, other.y, other.bits.shape)


def keypoint_distances(one: F32, other: F32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distances in pixels and differences of score, (k,) each, of two (k, 3) keypoints."""
    apart = np.linalg.norm(one[:, :2].astype(np.float64) - other[:, :2], axis=1)
    return apart, np.abs(one[:, 2].astype(np.float64) - other[:, 2])


def map_differences(
    want: MapSource, have: MapSource, letterbox: Letterbox
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the wanted class of each pixel of the picture, and how far it leads where they differ.

    Returns:
        (h, w) uint8 classes, and for each pixel where the other map has another class, in no
        particular order, the wanted class's score minus that of the other map's class.
    """
    painted, other = want.paint(letterbox), have.paint(letterbox)
    differing = painted != other
    if not differing.any():
        return painted, np.zeros(0, np.float32)
    return painted, want.lead(letterbox, other)[differing]
