"""The certificate of loss: how far a file with smaller numbers is from the float32 it came from.

Both see the same pictures through the preprocessing, decoder and NMS of a run. Compared is what a
user sees: boxes with class and score, or class maps. The loss is a share, 0 where every detection
is found by both; how far masks and keypoints of those are apart is stated beside it and is no part
of it. Pure apart from running the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from exporters.frames import Picture
from exporters.matching import box_ious, keypoint_distances, mask_iou
from exporters.outcome import SCORE_THRESHOLD
from pipeline.detections import Detections
from pipeline.frame import Frame, FrameId, FrameTime, Inferred
from pipeline.stage import RunContext
from stages.fitting import Fitter
from stages.nms import NmsConfig, NmsStage

if TYPE_CHECKING:
    from exporters.accuracy.coco import Accuracy, MaskAccuracy
    from exporters.accuracy.labelled import Labelled
    from stages.model import LoadedModel

Array = NDArray[np.generic]
Outputs = dict[str, Array]
Answer = Callable[[Array], Outputs]
"""Takes a preprocessed picture without a batch axis; returns the outputs, batch axes of 1 kept."""

SCHEMA: Final = 1
SAME_IOU: Final = 0.5
"""Boxes of one class that overlap at least so much are the same thing found (Pascal VOC)."""
CLOSE_IOU: Final = 0.9


@dataclass(slots=True)
class Loss:
    """What was lost over some pictures."""

    frames: int = 0
    frames_sha256: str = ""
    expected: int = 0
    """Detections of float32, from SCORE_THRESHOLD."""
    found: int = 0
    """Those of the file."""
    same: int = 0
    """Pairs of one class with an IoU of SAME_IOU or more; each detection is in one at most."""
    close: int = 0
    """Those of them with CLOSE_IOU."""
    max_score_diff: float = 0.0
    max_abs_diff: float | None = None
    """Of output values; None for graphs whose rows come in order of score."""
    mask_ious: list[float] = field(default_factory=list)
    """Of the pairs, in pixels of the picture; empty where there are no masks."""
    keypoint_px: list[float] = field(default_factory=list)
    """Distances of the pairs' keypoints, likewise."""
    pixels: int = 0
    same_pixels: int = 0
    """Of class maps."""
    differences: list[str] = field(default_factory=list)
    """A line for each detection that one side has alone, with the picture."""
    accuracy: tuple[Accuracy, Accuracy] | None = None
    """On labelled pictures: of float32, of the file."""
    _score_diffs: float = 0.0
    _diffs: float = 0.0
    _values: int = 0

    @property
    def loss(self) -> float:
        """1 - 2 * same / (expected + found), which is 1 - F1; of maps the share of other pixels."""
        if self.pixels:
            return 1 - self.same_pixels / self.pixels
        both = self.expected + self.found
        return 1 - 2 * self.same / both if both else 0.0

    @property
    def mean_score_diff(self) -> float:
        """Mean absolute difference of the pairs' scores."""
        return self._score_diffs / self.same if self.same else 0.0

    @property
    def map_drop(self) -> float | None:
        """MAP50-95 of float32 minus that of the file; None without labelled pictures."""
        if self.accuracy is None:
            return None
        return self.accuracy[0].map50_95 - self.accuracy[1].map50_95

    def add_values(self, want: Array, have: Array) -> None:
        """Count the differences of one output."""
        apart = np.abs(have.astype(np.float64) - want.astype(np.float64))
        self.max_abs_diff = max(self.max_abs_diff or 0.0, float(apart.max(initial=0)))
        self._diffs += float(apart.sum())
        self._values += apart.size

    def add_pair(self, iou: float, score_diff: float) -> None:
        """Count a thing that both found."""
        self.same += 1
        self.close += iou >= CLOSE_IOU
        self.max_score_diff = max(self.max_score_diff, score_diff)
        self._score_diffs += score_diff

    def add_parts(self, want: Detections, have: Detections) -> None:
        """Count masks and keypoints of a pair; each side is one row."""
        if want.masks is not None and have.masks is not None:
            self.mask_ious.append(mask_iou(want.masks[0], have.masks[0]))
        if want.keypoints is not None and have.keypoints is not None:
            apart, _ = keypoint_distances(want.keypoints[0], have.keypoints[0])
            self.keypoint_px += apart.tolist()

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file."""
        facts: dict[str, Any] = {
            "frames": self.frames,
            "frames_sha256": self.frames_sha256,
            "loss": self.loss,
        }
        if self.pixels:
            facts["pixels"] = {"same": self.same_pixels, "all": self.pixels}
        else:
            facts["results"] = {
                "score_threshold": SCORE_THRESHOLD,
                "detections_fp32": self.expected,
                "detections": self.found,
                "same_at_iou_0.5": self.same,
                "same_at_iou_0.9": self.close,
                "mean_score_diff": self.mean_score_diff,
                "max_score_diff": self.max_score_diff,
            }
            if self.mask_ious:
                facts["results"]["masks"] = {
                    "mean_iou": float(np.mean(self.mask_ious)),
                    "min_iou": min(self.mask_ious),
                }
            if self.keypoint_px:
                facts["results"]["keypoints"] = {
                    "mean_diff_px": float(np.mean(self.keypoint_px)),
                    "max_diff_px": max(self.keypoint_px),
                }
        if self.max_abs_diff is not None:
            facts["tensors"] = {
                "max_abs_diff": self.max_abs_diff,
                "mean_abs_diff": self._diffs / self._values,
            }
        if self.accuracy is not None:
            before, after = self.accuracy
            facts["accuracy"] = {
                **_both(before, after),
                "frames": before.frames,
                "objects": before.objects,
            }
            if before.masks is not None and after.masks is not None:
                facts["accuracy"]["masks"] = _both(before.masks, after.masks)
        return facts

    def lines(self) -> list[str]:
        """Return the numbers as text."""
        lines = [f"  pictures  {self.frames}"]
        if self.max_abs_diff is not None:
            lines.append(
                f"  tensors   max {self.max_abs_diff:.3g}, "
                f"mean {self._diffs / max(1, self._values):.3g}"
            )
        if self.pixels:
            lines.append(f"  results   {self.same_pixels / self.pixels:.2%} of the pixels the same")
        else:
            lines.append(
                f"  results   {self.expected} detections in fp32, {self.found} here; the same at "
                f"IoU 0.5: {self.same}, at 0.9: {self.close}; scores {self.mean_score_diff:.3g} "
                f"apart on average, {self.max_score_diff:.3g} at most"
            )
        if self.mask_ious:
            lines.append(
                f"  masks     IoU {np.mean(self.mask_ious):.4f} on average, "
                f"{min(self.mask_ious):.4f} at least; not part of the loss"
            )
        if self.keypoint_px:
            lines.append(
                f"  keypoints {np.mean(self.keypoint_px):.3g} px apart on average, "
                f"{max(self.keypoint_px):.3g} at most; not part of the loss"
            )
        lines.append(f"  loss      {self.loss:.4f}")
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(
                f"  labelled  {before.frames} pictures: mAP50-95 {before.map50_95:.4f} -> "
                f"{after.map50_95:.4f}, mAP50 {before.map50:.4f} -> {after.map50:.4f}"
            )
            if before.masks is not None and after.masks is not None:
                lines.append(
                    f"  masks     mAP50-95 {before.masks.map50_95:.4f} -> "
                    f"{after.masks.map50_95:.4f}; not limited"
                )
        return lines


def _both(before: Accuracy | MaskAccuracy, after: Accuracy | MaskAccuracy) -> dict[str, Any]:
    return {
        name: {"fp32": getattr(before, name), "this": getattr(after, name)}
        for name in ("map50_95", "map50")
    }


def measure_loss(
    answer: Answer,
    model: LoadedModel,
    pictures: Sequence[Picture],
    labelled: Labelled | None = None,
) -> Loss:
    """Compare float32 with the file as a run would use it.

    Args:
        answer: what float32 gives.
        model: the file, opened; its preprocessing, decoder and class names serve both sides.
        pictures: to compare on.
        labelled: to measure the accuracy of both on.

    Raises:
        ModelError: the file's outputs are not what its decoder reads, or hold NaN.
    """
    loss = Loss(frames=len(pictures), frames_sha256=frames_sha256(pictures))
    nms = NmsStage(NmsConfig(score_threshold=SCORE_THRESHOLD, max_detections=10_000), "nms", model)
    nms.open(RunContext())
    fitter = Fitter(model.preprocessing)
    in_order = model.decoder.kind == "rcnn"  # of score: rows of near-ties change places
    for picture in pictures:
        tensor, letterbox = fitter.fit(picture.image)
        sides = answer(tensor), model.run([tensor])[0]
        if not in_order:
            for name, want in sides[0].items():
                if want.shape == sides[1][name].shape:
                    loss.add_values(want, sides[1][name])
        frame = Frame(FrameId("loss", 0, 0), FrameTime(0, None, Fraction(1)), picture.image)
        before, after = (nms.process([Inferred(frame, side, letterbox)])[0] for side in sides)
        if before.segmentation is not None and after.segmentation is not None:
            same = before.segmentation.class_id == after.segmentation.class_id
            loss.pixels += same.size
            loss.same_pixels += int(same.sum())
        elif before.detections is not None and after.detections is not None:
            _add_detections(loss, picture.name, before.detections, after.detections)
    if labelled is not None:
        from exporters.accuracy.measuring import measure_answers

        loss.accuracy = (
            measure_answers(answer, model, labelled),
            measure_answers(lambda tensor: model.run([tensor])[0], model, labelled),
        )
    return loss


def frames_sha256(pictures: Sequence[Picture]) -> str:
    """Return a digest over sizes and pixels of the pictures."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.image.shape}".encode())
        digest.update(picture.image.tobytes())
    return digest.hexdigest()


def _add_detections(loss: Loss, name: str, want: Detections, have: Detections) -> None:
    """Pair what both found, the best scores of float32 first, each with what it overlaps most."""
    loss.expected += len(want)
    loss.found += len(have)
    iou = box_ious(want.xyxy, have.xyxy)
    iou[want.class_id[:, None] != have.class_id] = 0
    free = np.ones(len(have), bool)
    for row in range(len(want)):
        overlap = np.where(free, iou[row], 0)
        best = int(overlap.argmax()) if len(have) else -1
        if best < 0 or overlap[best] < SAME_IOU:
            loss.differences.append(_line(name, want, row, "is not found"))
            continue
        free[best] = False
        loss.add_pair(float(overlap[best]), abs(float(want.score[row] - have.score[best])))
        loss.add_parts(want[row : row + 1], have[best : best + 1])
    for extra in np.flatnonzero(free):
        loss.differences.append(_line(name, have, int(extra), "is found by this file only"))


def _line(name: str, found: Detections, row: int, what: str) -> str:
    place = ", ".join(f"{v:.1f}" for v in found.xyxy[row])
    return (
        f"{name}: {found.class_names[int(found.class_id[row])]} {found.score[row]:.3f} "
        f"at ({place}) {what}"
    )
