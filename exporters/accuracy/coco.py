"""COCO's measures of a detector and of its masks, as pycocotools computes them.

Knows no model and no files.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import I64, Bits, Detections, Mask
from pipeline.errors import UsageError
from stages.run_lengths import rle_counts, rle_string

F64 = NDArray[np.float64]
Outline = dict[str, object]
"""The part of a COCO row that holds a mask."""

SIZES: Final = ("small", "medium", "large")
"""Areas up to 32x32, up to 96x96 and over 96x96 pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The n labelled objects of one picture."""

    xyxy: F64
    """(n, 4) pixels of the picture, continuous edges."""
    class_id: I64
    """(n,) index into the class names."""
    area: F64
    """(n,) pixels: of the outline where it is known, else of the box. Decides the size."""
    crowd: Bits
    """(n,) True for a box around many objects: found or not, nothing in it counts."""
    masks: Bits | None = None
    """(n, h, w), as large as the picture; None where outlines are not known."""

    @classmethod
    def of_boxes(cls, xyxy: NDArray[np.floating[Any]], class_id: I64) -> Truth:
        """Return objects of which nothing but box and class is known."""
        boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return cls(boxes, np.asarray(class_id, np.int64), area, np.zeros(len(boxes), bool))

    def __len__(self) -> int:
        return len(self.xyxy)

    def take(self, rows: I64) -> Truth:
        """Return the chosen objects."""
        masks = None if self.masks is None else self.masks[rows]
        return Truth(self.xyxy[rows], self.class_id[rows], self.area[rows], self.crowd[rows], masks)


@dataclass(frozen=True, slots=True)
class MaskAccuracy:
    """COCO's average precision of masks, 0..1: overlap is that of the pixels, not of the boxes."""

    map50_95: float
    """Mean over IoU thresholds 0.50 to 0.95 in steps of 0.05, over the classes with objects."""
    map50: float
    map75: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """COCO's average precision and recall, 0..1."""

    map50_95: float
    """Mean over IoU thresholds 0.50 to 0.95 in steps of 0.05, over the classes with objects."""
    map50: float
    map75: float
    by_size: dict[str, float]
    """mAP50-95 of the objects of each size, where there are any."""
    recall: dict[str, float]
    """Mean recall over the IoU thresholds, with at most "1", "10", "100" detections of a class in a
    picture."""
    recall_by_size: dict[str, float]
    """The same with 100, of the objects of each size, where there are any."""
    by_class: dict[str, float]
    """mAP50-95 of each class that has objects."""
    map50_by_class: dict[str, float]
    objects_by_class: dict[str, int]
    """How many there are, crowds not counted."""
    frames: int
    objects: int
    """Crowds not counted."""
    masks: MaskAccuracy | None = None
    """None where truth or detections have no masks."""


def measure(pairs: Iterable[tuple[Truth, Detections]], class_names: Sequence[str]) -> Accuracy:
    """Return the accuracy over (truth, found) of each picture.

    Args:
        pairs: class ids of both are indices into `class_names`.
        class_names: unique.

    Raises:
        UsageError: there are no objects, or pycocotools is not installed.
    """
    true_rows: list[dict[str, object]] = []
    found_rows: list[dict[str, object]] = []
    frames = 0
    masked = True
    objects = np.zeros(len(class_names), int)
    for frames, (truth, found) in enumerate(pairs, start=1):
        np.add.at(objects, truth.class_id[~truth.crowd], 1)
        outlines = _outlines(truth, found)
        masked &= outlines is not None
        true_outlines, found_outlines = outlines or ([{}] * len(truth), [{}] * len(found))
        for row in range(len(truth)):
            true_rows.append(
                _row(true_rows, frames, truth.xyxy[row], truth.class_id[row])
                | {"area": float(truth.area[row]), "iscrowd": int(truth.crowd[row])}
                | true_outlines[row]
            )
        for row in range(len(found)):
            found_rows.append(
                _row(found_rows, frames, found.xyxy[row], found.class_id[row])
                | {"score": float(found.score[row]), "iscrowd": 0}
                | found_outlines[row]
            )
    if not objects.any():
        raise UsageError(f"no labelled object in {frames} pictures: there is nothing to measure")
    masks = None
    if masked:
        stats = _judge(true_rows, found_rows, frames, class_names, "segm").stats
        masks = MaskAccuracy(*(float(value) for value in stats[:3]))
    judge = _judge(true_rows, found_rows, frames, class_names, "bbox")
    # Axes: IoU thresholds, recalls, classes, sizes, most detections; -1 where there is no truth.
    precision = judge.eval["precision"][:, :, :, 0, -1]
    stats = [float(value) for value in judge.stats]
    present = [int(k) for k in np.flatnonzero(objects)]
    return Accuracy(
        map50_95=stats[0],
        map50=stats[1],
        map75=stats[2],
        by_size=_known(SIZES, stats[3:6]),
        recall=_known(("1", "10", "100"), stats[6:9]),
        recall_by_size=_known(SIZES, stats[9:12]),
        by_class={class_names[k]: float(precision[:, :, k].mean()) for k in present},
        map50_by_class={class_names[k]: float(precision[0, :, k].mean()) for k in present},
        objects_by_class={class_names[k]: int(objects[k]) for k in present},
        frames=frames,
        objects=int(objects.sum()),
        masks=masks,
    )


def _outlines(truth: Truth, found: Detections) -> tuple[list[Outline], list[Outline]] | None:
    """Return the masks of both sides as COCO writes them; None where one side has none."""
    if truth.masks is None or (found.masks is None and len(found)):
        return None
    size_wh = truth.masks.shape[2], truth.masks.shape[1]
    return (
        [_outline(Mask(0, 0, bits), size_wh) for bits in truth.masks],
        [_outline(mask, size_wh) for mask in found.masks or ()],
    )


def _outline(mask: Mask, size_wh: tuple[int, int]) -> Outline:
    counts = rle_string(rle_counts(mask, size_wh))
    return {"segmentation": {"size": [size_wh[1], size_wh[0]], "counts": counts}}


def _judge(
    true_rows: list[dict[str, object]],
    found_rows: list[dict[str, object]],
    frames: int,
    class_names: Sequence[str],
    kind: Literal["bbox", "segm"],
) -> Any:  # noqa: ANN401 - pycocotools has no types
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UsageError(
            "pycocotools is needed to measure accuracy: pip install pycocotools, or the extra 'dev'"
        ) from error

    # It prints what it does, and has no switch for that.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for rows in (true_rows, found_rows):
            # Not loadRes: that cannot take an empty list, and finding nothing is a result.
            side = COCO()
            side.dataset = {
                "info": {},
                # The size is asked for with masks, but used for polygons only, of which are none.
                "images": [{"id": k + 1, "height": 0, "width": 0} for k in range(frames)],
                "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
                "annotations": rows,
            }
            side.createIndex()
            sides.append(side)
        judge = COCOeval(*sides, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def _row(
    rows: list[dict[str, object]], picture: int, box: NDArray[Any], class_id: np.int64
) -> dict[str, object]:
    """Return the next row. Ids count from 1: pycocotools takes a match with id 0 for none."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return {
        "id": len(rows) + 1,
        "image_id": picture,
        "category_id": int(class_id) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
    }


def _known(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if value >= 0}
