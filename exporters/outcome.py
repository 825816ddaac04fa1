"""What a comparison of a network with its file found, and what of it stands in the certificate.

Numbers and words only; what is compared, and how, is `exporters.certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporters.matching import SCORE_TOLERANCE

SCHEMA: Final = 1
SCORE_THRESHOLD: Final = 0.3
"""What `run` uses where nothing else is said."""
MATCH_IOU: Final = 0.99
"""Boxes that overlap less are not the same: at 100 pixels, half a pixel on each axis."""
TENSOR_TOLERANCE: Final = 5e-4
"""Of max(1, the largest value in the row). Float32 sums of some thousand products, added up in
another order by another runtime, through a hundred layers, were 1e-6 to 1e-4 apart; a wrong
constant, colour order or activation moves values by 1e-2 and more."""
FLIP_SHARE: Final = 0.01
"""Detections that may differ because two of nearly equal score suppress each other: the tensors
agree, but the order of two scores 1e-7 apart does not, and another box of the same thing is left.
Seen with random weights, where many scores are close. So too masks and keypoints that rounding to
whole pixels puts elsewhere, of all masks and keypoints."""
MASK_IOU: Final = 0.98
"""Of two masks of one thing, in pixels of the picture. Probabilities that were 1e-5 apart move the
line where they pass 0.5 by less than a pixel; on a small or ragged mask some pixels change."""
KEYPOINT_PX: Final = 0.1
"""In pixels of the model's input. A keypoint is the centre of a cell of its box, and cells move
with the box, hundredths of a pixel; the next cell is a pixel away."""
TIE_SHARE: Final = 1e-3
"""Pixels of a class map that may differ, each proved a tie: nobody sees one in a thousand."""


@dataclass(slots=True)
class MaskOutcome:
    """Masks of detections that both sides found."""

    compared: int = 0
    min_iou: float = 1.0
    moved: list[str] = field(default_factory=list)
    """A line for each whose rectangle was rounded to other whole pixels."""

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "compared": self.compared,
            "min_iou": self.min_iou,
            "moved_by_rounding": len(self.moved),
            "tolerance_iou": MASK_IOU,
        }

    def line(self) -> str:
        """Return the numbers as text."""
        return (
            f"  masks     {self.compared} compared, IoU {self.min_iou:.4f} at least, "
            f"{len(self.moved)} moved by rounding"
        )


@dataclass(slots=True)
class KeypointOutcome:
    """Keypoints of detections that both sides found."""

    compared: int = 0
    max_diff_px: float = 0.0
    max_score_diff: float = 0.0
    moved: list[str] = field(default_factory=list)
    """A line for each that lies in another cell, where the heatmap is equally high."""

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "compared": self.compared,
            "max_diff_px": self.max_diff_px,
            "max_score_diff": self.max_score_diff,
            "moved_by_ties": len(self.moved),
            "tolerance_px_of_input": KEYPOINT_PX,
        }

    def line(self) -> str:
        """Return the numbers as text."""
        return (
            f"  keypoints {self.compared} compared, {self.max_diff_px:.3g} px apart at most, "
            f"scores {self.max_score_diff:.3g}, {len(self.moved)} moved by ties"
        )


@dataclass(slots=True)
class MapOutcome:
    """Class maps."""

    compared: int = 0
    pixels: int = 0
    differing: int = 0
    """All of them ties: else there is a problem."""
    max_share: float = 0.0
    """Differing pixels of one map."""
    classes: set[int] = field(default_factory=set)

    def add(self, painted: NDArray[np.uint8], differing: int) -> None:
        """Count one map and the pixels in which the other side's differs."""
        self.compared += 1
        self.pixels += painted.size
        self.differing += differing
        self.max_share = max(self.max_share, differing / painted.size)
        self.classes |= set(np.unique(painted).tolist())

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "maps": self.compared,
            "pixels": self.pixels,
            "agreement": 1 - self.differing / max(self.pixels, 1),
            "ties": self.differing,
            "max_share_of_ties": self.max_share,
            "classes_seen": len(self.classes),
            "tolerance_share": TIE_SHARE,
        }

    def line(self) -> str:
        """Return the numbers as text."""
        return (
            f"  results   {self.compared} maps with {len(self.classes)} classes; "
            f"{self.differing} of {self.pixels} pixels differ, all of them ties"
        )


@dataclass(slots=True)
class Outcome:
    """What the comparison found."""

    frames: int = 0
    sizes_wh: list[tuple[int, int]] = field(default_factory=list)
    input_sizes_wh: list[tuple[int, int]] = field(default_factory=list)
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
    masks: MaskOutcome | None = None
    """None where the model makes none; so too the next ones."""
    keypoints: KeypointOutcome | None = None
    maps: MapOutcome | None = None
    """Then there are no detections."""
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

    def add(self, apart: NDArray[np.generic]) -> None:
        """Count the absolute differences of one tensor."""
        self.max_abs_diff = max(self.max_abs_diff, float(apart.max(initial=0)))
        self._sum += float(apart.sum())
        self._values += apart.size

    def facts(self) -> dict[str, Any]:
        """Return what stands in the file; only what applies to the model's task."""
        return {
            "schema": SCHEMA,
            "frames": self.frames,
            "frame_sizes_wh": [list(size) for size in self.sizes_wh],
            "input_sizes_wh": [list(size) for size in self.input_sizes_wh],
            "batches": self.batches,
            "tensors": {
                "max_abs_diff": self.max_abs_diff,
                "mean_abs_diff": self.mean_abs_diff,
                "max_scaled_diff": self.max_scaled_diff,
                "tolerance": TENSOR_TOLERANCE,
            }
            if self._values
            else None,
            "results": self._results(),
        }

    def _results(self) -> dict[str, Any]:
        if self.maps is not None:
            return self.maps.facts()
        results: dict[str, Any] = {
            "detections": self.detections,
            "frames_without_detections": self.frames_without_detections,
            "min_iou": self.min_iou,
            "max_box_diff_px": self.max_box_diff_px,
            "max_score_diff": self.max_score_diff,
            "flips": len(self.flipped),
            "score_threshold": SCORE_THRESHOLD,
            "match_iou": MATCH_IOU,
            "score_tolerance": SCORE_TOLERANCE,
        }
        if self.masks is not None:
            results["masks"] = self.masks.facts()
        if self.keypoints is not None:
            results["keypoints"] = self.keypoints.facts()
        return results

    def lines(self) -> list[str]:
        """Return the numbers as text."""
        tensors = (
            f"max {self.max_abs_diff:.3g}, mean {self.mean_abs_diff:.3g}; scaled "
            f"{self.max_scaled_diff:.3g} of {TENSOR_TOLERANCE:g} allowed"
            if self._values
            else "not compared: rows come in order of score"
        )
        told = [
            f"  pictures  {self.frames} ({_sizes(self.sizes_wh)}), input "
            f"{_sizes(self.input_sizes_wh)}, batches {', '.join(map(str, self.batches))}",
            f"  tensors   {tensors}",
        ]
        if self.maps is not None:
            return [*told, self.maps.line()]
        told.append(
            f"  results   {self.detections} detections, {self.frames_without_detections} pictures "
            f"without; boxes {self.max_box_diff_px:.3g} px apart at most, IoU {self.min_iou:.4f} "
            f"at least, scores {self.max_score_diff:.3g}, {len(self.flipped)} flipped"
        )
        return told + [part.line() for part in (self.masks, self.keypoints) if part is not None]


def _sizes(sizes_wh: list[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes_wh)
