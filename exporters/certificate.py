"""The parity certificate: whether an exported file answers like the network it came from.

Both see the same pictures through the preprocessing, decoder and NMS that a run uses; compared are
the tensors, and then what a user sees: boxes, classes and scores. Pure apart from running the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from exporters.frames import Picture
from pipeline.detections import F32, Detections
from pipeline.frame import Frame, FrameId, FrameTime, Inferred
from pipeline.geometry import Letterbox
from pipeline.stage import RunContext
from stages.fitting import Fitter
from stages.nms import NmsConfig, NmsStage

if TYPE_CHECKING:
    from stages.model import LoadedModel

Array = NDArray[np.generic]
Outputs = dict[str, Array]
Boxes = tuple[F32, F32, NDArray[np.int64]]
"""(n, 4) xyxy, (n,) scores, (n,) class ids."""
Run = Callable[[Array], Outputs]
"""Takes a batch, (b, 3, h, w) float32; returns every output by name."""

SCHEMA: Final = 1
BATCHES: Final = (1, 2, 5)
SCORE_THRESHOLD: Final = 0.3
"""What `run` uses where nothing else is said."""
MATCH_IOU: Final = 0.99
"""Boxes that overlap less are not the same: at 100 pixels, half a pixel on each axis."""
SAME_PX: Final = 0.01
"""Boxes no further apart than this are the same whatever their IoU: float32 resolves coordinates
of 4096 pixels to 0.0005, and no picture shows a hundredth."""
TENSOR_TOLERANCE: Final = 5e-4
"""Of max(1, the largest value in the row). Float32 sums of some thousand products, added up in
another order by another runtime, through a hundred layers, were 1e-6 to 1e-4 apart; a wrong
constant, colour order or activation moves values by 1e-2 and more."""
SCORE_TOLERANCE: Final = 1e-3
"""Of a score: a tenth of the last digit that is drawn."""
FLIP_SHARE: Final = 0.01
"""Detections that may differ because two of nearly equal score suppress each other: the tensors
agree, but the order of two scores 1e-7 apart does not, and another box of the same thing is left.
Seen with random weights, where many scores are close."""


@dataclass(slots=True)
class Outcome:
    """What the comparison found."""

    frames: int = 0
    sizes_wh: list[tuple[int, int]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    max_abs_diff: float = 0.0
    max_scaled_diff: float = 0.0
    detections: int = 0
    frames_without_detections: int = 0
    flipped: list[str] = field(default_factory=list)
    """A line for each detection that suppression decided otherwise about."""
    max_box_diff_px: float = 0.0
    max_score_diff: float = 0.0
    min_iou: float = 1.0
    problems: list[str] = field(default_factory=list)
    """A line for each thing that differed, with the picture."""
    _sum: float = 0.0
    _values: int = 0

    @property
    def holds(self) -> bool:
        """Whether the file may be used for the network."""
        return not self.problems

    @property
    def mean_abs_diff(self) -> float:
        """Mean difference of all output values."""
        return self._sum / self._values if self._values else 0.0

    def add(self, apart: Array) -> None:
        """Count the absolute differences of one tensor."""
        self.max_abs_diff = max(self.max_abs_diff, float(apart.max(initial=0)))
        self._sum += float(apart.sum())
        self._values += apart.size

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "schema": SCHEMA,
            "frames": self.frames,
            "frame_sizes_wh": [list(size) for size in self.sizes_wh],
            "batches": self.batches,
            "tensors": {
                "max_abs_diff": self.max_abs_diff,
                "mean_abs_diff": self.mean_abs_diff,
                "max_scaled_diff": self.max_scaled_diff,
                "tolerance": TENSOR_TOLERANCE,
            }
            if self._values
            else None,
            "results": {
                "detections": self.detections,
                "frames_without_detections": self.frames_without_detections,
                "min_iou": self.min_iou,
                "max_box_diff_px": self.max_box_diff_px,
                "max_score_diff": self.max_score_diff,
                "flips": len(self.flipped),
                "score_threshold": SCORE_THRESHOLD,
                "match_iou": MATCH_IOU,
                "score_tolerance": SCORE_TOLERANCE,
            },
        }

    def lines(self) -> list[str]:
        """Return the numbers as text."""
        sizes = ", ".join(f"{w}x{h}" for w, h in self.sizes_wh)
        tensors = (
            f"max {self.max_abs_diff:.3g}, mean {self.mean_abs_diff:.3g}; scaled "
            f"{self.max_scaled_diff:.3g} of {TENSOR_TOLERANCE:g} allowed"
            if self._values
            else "not compared: rows come in order of score"
        )
        return [
            f"  pictures  {self.frames} ({sizes}), batches {', '.join(map(str, self.batches))}",
            f"  tensors   {tensors}",
            f"  results   {self.detections} detections, {self.frames_without_detections} pictures "
            f"without; boxes {self.max_box_diff_px:.3g} px apart at most, IoU {self.min_iou:.4f} "
            f"at least, scores {self.max_score_diff:.3g}, {len(self.flipped)} flipped",
        ]


def certify(
    network: Run, model: LoadedModel, pictures: Sequence[Picture], *, dynamic_batch: bool
) -> Outcome:
    """Compare the network with the file as a run would use it.

    Args:
        network: the network the file came from.
        model: the file, opened; its preprocessing, decoder and class names serve both sides.
        pictures: to compare on.
        dynamic_batch: whether the graph takes several pictures at once.
    """
    outcome = Outcome()
    nms = NmsStage(
        # Below the threshold by the tolerance: a score on it may be above on one side only.
        NmsConfig(score_threshold=SCORE_THRESHOLD - SCORE_TOLERANCE, max_detections=10_000),
        "nms",
        model,
    )
    nms.open(RunContext())
    fitter = Fitter(model.preprocessing)
    tensors, letterboxes = [], []
    for picture in pictures:
        tensor, letterbox = fitter.fit(picture.image)
        tensors.append(tensor)
        letterboxes.append(letterbox)
        if letterbox.source_wh not in outcome.sizes_wh:
            outcome.sizes_wh.append(letterbox.source_wh)
    for batch in BATCHES if dynamic_batch else (1,):
        outcome.batches.append(batch)
        groups = range(0, len(tensors) - batch + 1, batch) if batch == 1 else (0,)
        for start in groups:
            rows = [k % len(tensors) for k in range(start, start + batch)]
            expected = _split(network(np.stack([tensors[k] for k in rows])), batch)
            got = model.run([tensors[k] for k in rows])
            for place, k in enumerate(rows):
                name = pictures[k].name + (f" (batch {batch})" if batch > 1 else "")
                pair = expected[place], got[place]
                same = _compare_tensors(outcome, name, *pair, suppressed=_suppresses(model))
                if same:
                    _compare_results(outcome, name, nms, model, pictures[k], letterboxes[k], *pair)
    outcome.frames = len(pictures)
    allowed = int(FLIP_SHARE * outcome.detections)
    if not _suppresses(model):
        # Here a flip is proved by its candidate, and one is seen from both sides.
        allowed = max(2, allowed)
    if len(outcome.flipped) > allowed:
        outcome.problems += [
            *outcome.flipped,
            f"all pictures: {len(outcome.flipped)} detections differ, {allowed} may by suppression",
        ]
    return outcome


def _suppresses(model: LoadedModel) -> bool:
    return model.decoder.kind == "rcnn"


def _split(outputs: Outputs, batch: int) -> list[Outputs]:
    if batch == 1:
        return [outputs]
    return [{name: a[row : row + 1] for name, a in outputs.items()} for row in range(batch)]


def _compare_tensors(
    outcome: Outcome, name: str, expected: Outputs, got: Outputs, *, suppressed: bool
) -> bool:
    """Return whether the answers can be decoded; note what differs."""
    if expected.keys() != got.keys():
        outcome.problems.append(f"{name}: outputs {sorted(got)}, expected {sorted(expected)}")
        return False
    fine = True
    for key, want in expected.items():
        have = got[key]
        if not (np.isfinite(want).all() and np.isfinite(have).all()):
            outcome.problems.append(f"{name}: output '{key}' holds values that are not finite")
            fine = False
        elif suppressed:
            # Rows are ordered by score, so near-ties change places: compared as results only.
            continue
        elif have.shape != want.shape:
            outcome.problems.append(f"{name}: '{key}' is {have.shape}, expected {want.shape}")
            fine = False
        else:
            apart = np.abs(have.astype(np.float64) - want.astype(np.float64))
            outcome.add(apart)
            row = np.maximum(1, np.abs(want).max(axis=-1, keepdims=True))
            scaled = float((apart / row).max(initial=0))
            outcome.max_scaled_diff = max(outcome.max_scaled_diff, scaled)
            if not scaled <= TENSOR_TOLERANCE:
                outcome.problems.append(
                    f"{name}: '{key}' differs by {scaled:.3g}, {TENSOR_TOLERANCE:g} allowed"
                )
                fine = False
    return fine


def _compare_results(
    outcome: Outcome,
    name: str,
    nms: NmsStage,
    model: LoadedModel,
    picture: Picture,
    letterbox: Letterbox,
    expected: Outputs,
    got: Outputs,
) -> None:
    sides = []
    for outputs in (expected, got):
        found = _detect(nms, picture, letterbox, outputs)
        raw = model.decoder.decode(outputs, SCORE_THRESHOLD - SCORE_TOLERANCE)
        every = (letterbox.to_source(raw.xyxy), raw.score, raw.class_id)
        sides.append((found, every, raw.suppressed))
    (want, want_all, _), (have, have_all, suppressed) = sides
    counted = int((want.score >= SCORE_THRESHOLD).sum())
    outcome.detections += counted
    outcome.frames_without_detections += counted == 0
    for one, other, candidates, missing in (
        (want, have, have_all, "not found by the file"),
        (have, want, want_all, "found by the file only"),
    ):
        rows = np.flatnonzero(one.score >= SCORE_THRESHOLD)
        mine = (one.xyxy[rows], one.score[rows], one.class_id[rows])
        match, iou = _partners(mine, (other.xyxy, other.score, other.class_id))
        same = iou >= MATCH_IOU
        if same.any():
            outcome.min_iou = min(outcome.min_iou, float(iou[same].min()))
            moved = np.abs(mine[0][same] - other.xyxy[match[same]])
            outcome.max_box_diff_px = max(outcome.max_box_diff_px, float(moved.max()))
            off = np.abs(mine[1][same] - other.score[match[same]])
            outcome.max_score_diff = max(outcome.max_score_diff, float(off.max()))
        lost = np.flatnonzero(~same)
        _, raw_iou = _partners((mine[0][lost], mine[1][lost], mine[2][lost]), candidates)
        for row, near in zip(lost, raw_iou, strict=True):
            place = ", ".join(f"{v:.1f}" for v in mine[0][row])
            flip = suppressed or near >= MATCH_IOU
            (outcome.flipped if flip else outcome.problems).append(
                f"{name}: {one.class_names[int(mine[2][row])]} {mine[1][row]:.3f} at ({place}) "
                f"is {missing}"
            )


def _detect(nms: NmsStage, picture: Picture, letterbox: Letterbox, outputs: Outputs) -> Detections:
    frame = Frame(FrameId("parity", 0, 0), FrameTime(0, None, Fraction(1), None), picture.image)
    found = nms.process([Inferred(frame, outputs, letterbox)])[0].detections
    return found if found is not None else Detections.empty()


def _partners(mine: Boxes, others: Boxes) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
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
