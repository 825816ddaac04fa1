"""The contract between a graph's numbers and results, and what recognition may look at.

A decoder is a pure value: made once from the graph's description, safe from any thread. It knows
nothing of sessions or pictures; preprocessing is data that it declares and the preprocess stage
obeys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Mask
from pipeline.geometry import F32, Letterbox

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Outputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a graph. Dimensions that the file leaves open are None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    """NumPy's name, e.g. "float32"."""


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """All that recognition may look at: names, shapes (outputs as seen in a trial run),
    metadata."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Return inputs, outputs and metadata keys in one line, for error messages."""

        def show(tensors: tuple[TensorInfo, ...]) -> str:
            return ", ".join(
                f"{t.name} {t.dtype}[{','.join('?' if d is None else str(d) for d in t.shape)}]"
                for t in tensors
            )

        keys = f"; metadata: {', '.join(sorted(self.metadata))}" if self.metadata else ""
        return f"inputs: {show(self.inputs)}; outputs: {show(self.outputs)}{keys}"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes a tensor: tensor = (pixel - mean) * scale, per channel, in
    `pixel_order`."""

    size_wh: tuple[int, int]
    fit: Literal["letterbox", "letterbox_top_left", "stretch"] = "letterbox"
    """letterbox: aspect kept, padding split evenly; letterbox_top_left: picture at the top left;
    stretch: both axes scaled on their own."""
    pad_value: int = 114
    """Gray of the padding, before mean and scale."""
    pixel_order: Literal["bgr", "rgb"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel in `pixel_order`, on the 0..255 scale."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel in `pixel_order`; 1/255 gives 0..1."""


class MaskSource(ABC):
    """What the masks of n candidates are made from; made only for those that stay."""

    @abstractmethod
    def take(self, rows: I64) -> MaskSource:
        """Return the source of the chosen rows, in the order asked for."""

    @abstractmethod
    def cut(self, letterbox: Letterbox, xyxy: F32) -> tuple[Mask, ...]:
        """Return one mask for each row, in pixels of the original picture, cropped.

        Args:
            letterbox: How the picture was fitted into the model's input.
            xyxy: (n, 4) float32, the detections' boxes in the original picture, clipped to it.

        Raises:
            ModelError: the numbers are not what masks are made of.
        """


class MapSource(ABC):
    """Scores of every class for every pixel of the model's input, or fewer of them."""

    @abstractmethod
    def paint(self, letterbox: Letterbox) -> U8:
        """Return (h, w) uint8: the class of each pixel of the original picture."""

    @abstractmethod
    def lead(self, letterbox: Letterbox, class_id: U8) -> F32:
        """Return (h, w) float32: how far each pixel's class is ahead of another one.

        Args:
            letterbox: How the picture was fitted into the model's input.
            class_id: (h, w) uint8, the class to compare with at each pixel of the original picture.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a decoder found in one picture, before suppression; n may be 0. Not sorted."""

    xyxy: F32
    """(n, 4) float32, model pixels, continuous edges, not clipped."""
    score: F32
    """(n,) float32 in 0..1, each at or above the threshold asked for."""
    class_id: I64
    """(n,) int64."""
    suppressed: bool = False
    """True when the graph has already removed overlaps: nms then only filters and limits."""
    masks: MaskSource | None = None
    """For the same n rows; None where the graph makes no masks."""
    keypoints: F32 | None = None
    """(n, k, 3) float32: x, y in model pixels, score; None where the graph makes none."""
    class_map: MapSource | None = None
    """Of semantic segmentation, which has no rows: n is 0 then."""

    def take(self, rows: I64) -> Candidates:
        """Return the chosen rows, in the order asked for."""
        return replace(
            self,
            xyxy=self.xyxy[rows],
            score=self.score[rows],
            class_id=self.class_id[rows],
            masks=None if self.masks is None else self.masks.take(rows),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
        )


class Decoder(ABC):
    """Turns the outputs of one graph run into candidates."""

    kind: ClassVar[str]
    """The name in YAML and in an exported file's metadata, e.g. "yolox"."""

    class_count: int
    """How many classes the graph scores."""

    @abstractmethod
    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture's outputs (see `Inferred.outputs`). Inputs are not modified.

        Raises:
            ModelError: the outputs are not of the form this decoder was made for, or hold NaN.
        """


@dataclass(frozen=True, slots=True)
class Recognised:
    """A graph that is understood: its decoder, what it wants as input, and how that is known."""

    decoder: Decoder
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    """As many as `decoder.class_count`."""
    reason: str
    """What the recognition rests on, for the log: metadata, or names and shapes."""
    options: Mapping[str, object] = field(default_factory=dict)
