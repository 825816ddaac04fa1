"""How a picture is fitted into a model's input: where it goes, and the pixels.

`plan` is pure arithmetic and safe from any thread; a `Fitter` holds a scratch picture and belongs
to one thread. Results are the same bits on every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.frame import U8
from pipeline.geometry import Letterbox
from stages.decoders.decoder import Preprocessing

_BGR: Final = (0, 1, 2)
_RGB: Final = (2, 1, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a picture of one size goes in the model's input."""

    resized_wh: tuple[int, int]
    """Size of the picture after scaling, whole pixels, at least 1."""
    left_top: tuple[int, int]
    """Padding left and above, whole pixels."""
    letterbox: Letterbox


def plan(source_wh: tuple[int, int], preprocessing: Preprocessing) -> Plan:
    """Return where a picture of `source_wh` goes, rounded as the models' own training code does.

    The top-left form cuts the resized size to whole pixels (YOLOX, NanoDet); the centred one rounds
    it and gives an odd remainder to the right and bottom (Ultralytics).
    """
    width, height = source_wh
    model_w, model_h = preprocessing.size_wh
    if preprocessing.fit == "stretch":
        new_w, new_h, left, top = model_w, model_h, 0, 0
    else:
        ratio = min(model_h / height, model_w / width)
        if preprocessing.fit == "letterbox_top_left":
            new_w, new_h = int(width * ratio), int(height * ratio)
            left = top = 0
        else:
            new_w, new_h = round(width * ratio), round(height * ratio)
            # A tenth of a pixel decides halves: round() alone would send them to the even number.
            left = round(max(model_w - new_w, 0) / 2 - 0.1)
            top = round(max(model_h - new_h, 0) / 2 - 0.1)
        # A line of pixels would otherwise scale to nothing.
        new_w, new_h = max(new_w, 1), max(new_h, 1)
        left, top = min(left, model_w - new_w), min(top, model_h - new_h)
    letterbox = Letterbox(
        scale_xy=(new_w / width, new_h / height),
        pad_xy=(float(left), float(top)),
        source_wh=source_wh,
        model_wh=preprocessing.size_wh,
    )
    return Plan((new_w, new_h), (left, top), letterbox)


class Fitter:
    """Makes tensors from pictures: scaling, padding, colour order, mean and scale. One thread."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        width, height = preprocessing.size_wh
        self._canvas: U8 = np.empty((height, width, 3), np.uint8)
        self._plan: Plan | None = None
        self._order = _RGB if preprocessing.pixel_order == "rgb" else _BGR
        # One entry a byte value, computed in double precision: (value - mean) * scale in single
        # precision differs from the models' own x / 255 in the last bit for half of the values,
        # which is enough to flip the steps of quantised graphs (scores off by up to 0.02).
        values = np.arange(256, dtype=np.float64)
        self._tables = [
            ((values - mean) * scale).astype(np.float32)
            for mean, scale in zip(preprocessing.mean, preprocessing.scale, strict=True)
        ]
        self._plain = [bool((table == values).all()) for table in self._tables]

    def fit(self, image: U8) -> tuple[NDArray[np.generic], Letterbox]:
        """Return the tensor, (3, h, w) or (h, w, 3) without a batch axis, and the way back.

        Args:
            image: (h, w, 3) uint8 BGR of any size from 1x1. Not modified.

        Returns:
            A new C-contiguous array in the model's dtype, owned by the caller, and its letterbox.
        """
        height, width = image.shape[:2]
        last = self._plan
        if last is not None and last.letterbox.source_wh == (width, height):
            now = last
        else:
            # The padding stays between pictures of one size; the pixels are overwritten each time.
            now = plan((width, height), self._preprocessing)
            self._canvas[...] = self._preprocessing.pad_value
            self._plan = now
        left, top = now.left_top
        new_w, new_h = now.resized_wh
        inside = self._canvas[top : top + new_h, left : left + new_w]
        if (width, height) == now.resized_wh:
            inside[...] = image
        else:
            if image.strides[2] != 1 or image.strides[1] != 3 or image.strides[0] <= 0:
                image = np.ascontiguousarray(image)
            cv2.resize(image, now.resized_wh, dst=inside, interpolation=cv2.INTER_LINEAR)
        return self._tensor(), now.letterbox

    def _tensor(self) -> NDArray[np.generic]:
        form = self._preprocessing
        height, width = self._canvas.shape[:2]
        planar = form.layout == "nchw"
        if form.dtype == "uint8":
            # Graphs that take bytes do their own normalisation.
            ordered = self._canvas[:, :, list(self._order)]
            return np.ascontiguousarray(ordered.transpose(2, 0, 1) if planar else ordered)
        planes = cv2.split(self._canvas)
        tensor = np.empty((3, height, width) if planar else (height, width, 3), np.float32)
        for channel, source in enumerate(self._order):
            # blobFromImage of OpenCV 5.0 is 12 times slower (1.5 against 0.12 ms at 416 px).
            out = tensor[channel] if planar else tensor[:, :, channel]
            if self._plain[channel]:
                out[...] = planes[source]
            else:
                out[...] = cv2.LUT(planes[source], self._tables[channel])
        return tensor.astype(np.float16) if form.dtype == "float16" else tensor
