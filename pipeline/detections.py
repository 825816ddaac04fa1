"""What was found in one frame: a columnar, self-checking value.

Immutable by convention (arrays are not written after construction); safe to share between threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """One instance's silhouette, cropped to where it is: never a full frame."""

    x: int
    """Left column of the crop in the original picture, pixels."""
    y: int
    """Top row of the crop in the original picture, pixels."""
    bits: Bits
    """(h, w) bool; True belongs to the instance."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The n things found in one frame, one array row each; n may be 0.

    Raises:
        ValueError: a column's shape, length or range does not fit the others (the message shows
        both).
    """

    xyxy: F32
    """(n, 4) float32, pixels of the original picture, continuous edges: width = x2 - x1."""
    score: F32
    """(n,) float32 in 0..1."""
    class_id: I64
    """(n,) int64, index into `class_names`."""
    class_names: tuple[str, ...]
    """All the names the model knows, by class id."""
    masks: tuple[Mask, ...] | None = None
    """One per detection, cropped; None where the model makes none."""
    keypoints: F32 | None = None
    """(n, k, 3) float32: x, y in pixels of the original picture, visibility score."""
    track_id: I64 | None = None
    """(n,) int64; -1 where a detection belongs to no track yet."""

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        for name, array, shape, dtype in (
            ("xyxy", self.xyxy, (n, 4), np.float32),
            ("score", self.score, (n,), np.float32),
            ("class_id", self.class_id, (n,), np.int64),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} must be {shape} {np.dtype(dtype).name}, "
                    f"got {array.shape} {array.dtype.name}"
                )
        if n and not np.isfinite(self.xyxy).all():
            raise ValueError("xyxy has values that are not finite")
        if n and not ((self.score >= 0) & (self.score <= 1)).all():
            raise ValueError(
                f"score must lie in 0..1, got {float(self.score.min())}..{float(self.score.max())}"
            )
        if n and not ((self.class_id >= 0) & (self.class_id < len(self.class_names))).all():
            raise ValueError(
                f"class_id must lie in 0..{len(self.class_names) - 1} (the class names given), "
                f"got {int(self.class_id.min())}..{int(self.class_id.max())}"
            )
        if self.masks is not None and len(self.masks) != n:
            raise ValueError(f"masks must have {n} entries, got {len(self.masks)}")
        if self.keypoints is not None and (
            self.keypoints.ndim != 3 or self.keypoints.shape[0] != n or self.keypoints.shape[2] != 3
        ):
            raise ValueError(f"keypoints must be ({n}, k, 3), got {self.keypoints.shape}")
        if self.track_id is not None and self.track_id.shape != (n,):
            raise ValueError(f"track_id must be ({n},), got {self.track_id.shape}")

    @classmethod
    def empty(cls, class_names: tuple[str, ...] = ()) -> Detections:
        """Return the result of a detector that ran and found nothing."""
        return cls(
            xyxy=np.zeros((0, 4), np.float32),
            score=np.zeros(0, np.float32),
            class_id=np.zeros(0, np.int64),
            class_names=class_names,
        )

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: slice | Bits | I64) -> Detections:
        """Return the chosen rows, in the order asked for, as a new value."""
        rows = np.arange(len(self))[index]
        if rows.ndim != 1:
            raise TypeError(f"index with a slice, a mask or an index array, got {index!r}")
        return Detections(
            xyxy=self.xyxy[rows],
            score=self.score[rows],
            class_id=self.class_id[rows],
            class_names=self.class_names,
            masks=None if self.masks is None else tuple(self.masks[i] for i in rows),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
            track_id=None if self.track_id is None else self.track_id[rows],
        )

    def name_of(self, row: int) -> str:
        """Return the class name of one detection."""
        return self.class_names[int(self.class_id[row])]

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        size = self.xyxy.nbytes + self.score.nbytes + self.class_id.nbytes
        size += sum(mask.bits.nbytes for mask in self.masks or ())
        size += 0 if self.keypoints is None else self.keypoints.nbytes
        return size + (0 if self.track_id is None else self.track_id.nbytes)

    def __repr__(self) -> str:
        return f"Detections(n={len(self)}, classes={len(self.class_names)})"
