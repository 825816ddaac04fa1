"""How a picture was fitted into a model's input, and the way back for boxes and points.

Pure functions on numpy arrays, no state; safe from any thread. Coordinates are continuous: pixel
column k covers k to k + 1, so a box's width is x2 - x1 and the right edge of the picture is
`width`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How one picture was scaled and padded to fit a model input.

    Kept beside the tensor from preprocess to nms, because the original size can no longer be
    recovered from the tensor. A stretch is a letterbox with two scales and no padding.
    """

    scale_xy: tuple[float, float]
    """Model pixels per original pixel: resized size over original size per axis. The two differ
    slightly even with the aspect kept, because the resized picture has whole pixels."""
    pad_xy: tuple[float, float]
    """Padding left and above, in model pixels."""
    source_wh: tuple[int, int]
    """Original picture, pixels."""
    model_wh: tuple[int, int]
    """Model input, pixels."""

    def to_source(self, xyxy: F32) -> F32:
        """Map boxes from model input back to the original picture.

        Args:
            xyxy: (n, 4) float32, model pixels. Not modified.

        Returns:
            (n, 4) float32 in original pixels, clipped to the picture. A box wholly in the padding
            collapses to zero area but keeps its row, so scores and class ids stay aligned.

        Raises:
            ValueError: the shape is not (n, 4).
        """
        _check_boxes(xyxy)
        offset = np.array([*self.pad_xy, *self.pad_xy], dtype=np.float32)
        scale = np.array([*self.scale_xy, *self.scale_xy], dtype=np.float32)
        boxes = (xyxy.astype(np.float32, copy=False) - offset) / scale
        width, height = self.source_wh
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
        return boxes

    def points_to_source(self, points: F32) -> F32:
        """Map points from model input back to the original picture.

        Args:
            points: (..., 2 or more) float32: x, y in model pixels; further columns are kept. Not
                modified.

        Returns:
            The same shape, float32; not clipped, so a point may lie outside the picture.
        """
        mapped = points.astype(np.float32)
        mapped[..., :2] -= np.array(self.pad_xy, np.float32)
        mapped[..., :2] /= np.array(self.scale_xy, np.float32)
        return mapped

    def to_model(self, xyxy: F32) -> F32:
        """Map boxes (n, 4) of the original picture into model pixels; the inverse, unclipped."""
        _check_boxes(xyxy)
        offset = np.array([*self.pad_xy, *self.pad_xy], dtype=np.float32)
        scale = np.array([*self.scale_xy, *self.scale_xy], dtype=np.float32)
        return (xyxy.astype(np.float32, copy=False) * scale + offset).astype(np.float32)


def _check_boxes(xyxy: F32) -> None:
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise ValueError(f"xyxy must have shape (n, 4), got {xyxy.shape}")
