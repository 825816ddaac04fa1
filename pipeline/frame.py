"""The values that flow: a frame with its identity, its time and what was found in it.

Frozen; a stage that adds something returns `dataclasses.replace(frame, ...)`. Pixel arrays are
shared between stages and sinks and must not be written by anyone but their maker: copy to draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Detections
from pipeline.geometry import F32, Letterbox
from pipeline.tracks import Tracks

U8 = NDArray[np.uint8]


def _nothing() -> Mapping[str, object]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class FrameId:
    """Which frame this is, fixed at capture, before anything could be dropped."""

    stream: str
    epoch: int
    """Counts connections of a live source: +1 at each reconnect; 0 for files."""
    seq: int
    """Counts captured frames of the epoch from 0; a gap means that frames were dropped."""

    def __str__(self) -> str:
        return f"{self.stream}/{self.epoch}/{self.seq}"


@dataclass(frozen=True, slots=True)
class FrameTime:
    """When a frame was captured, and where it stands on its media's own timeline."""

    captured_ns: int
    """Clock.now_ns() when the decoded frame was in hand. Age is measured from here."""
    pts: int | None
    """Presentation timestamp in `time_base` ticks; None where the media carries none."""
    time_base: Fraction
    """Seconds per tick, exact."""
    duration: int | None = None
    """Ticks until the next frame, where known."""

    def __post_init__(self) -> None:
        if self.time_base <= 0:
            raise ValueError(f"time_base must be positive, got {self.time_base}")

    @property
    def media_s(self) -> Fraction | None:
        """Seconds on the media timeline, exact; None without a pts."""
        return None if self.pts is None else self.pts * self.time_base


@dataclass(frozen=True, slots=True, eq=False)
class DepthMap:
    """Distance for each pixel, with the word for what the numbers mean."""

    values: F32
    """(h, w) float32."""
    kind: Literal["disparity", "relative_depth", "depth_m"]
    """disparity: larger is nearer; relative_depth: larger is farther; depth_m: metres."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The class of each pixel (semantic segmentation: no instances).

    Raises:
        ValueError: the map is not (h, w) uint8.
    """

    class_id: U8
    """(h, w) uint8 in the size of the original picture, index into `class_names`."""
    class_names: tuple[str, ...]
    """All the names the model knows, by class id."""

    def __post_init__(self) -> None:
        if self.class_id.ndim != 2 or self.class_id.dtype != np.uint8:
            raise ValueError(
                f"class_id must be (h, w) uint8, got {self.class_id.shape} "
                f"{self.class_id.dtype.name}"
            )

    @property
    def has_background(self) -> bool:
        """Whether class 0 is what belongs to no class, by its name."""
        return bool(self.class_names) and self.class_names[0].strip("_").lower() == "background"

    def shares(self) -> dict[int, float]:
        """Return the share of pixels of each class that is present, by class id."""
        counts = np.bincount(self.class_id.ravel(), minlength=1)
        present = np.flatnonzero(counts)
        return {int(i): int(counts[i]) / self.class_id.size for i in present}


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about the picture."""

    text: str
    source: str
    """Which captioner wrote it."""
    frame_id: FrameId
    """The frame the sentence is about, which may be older than the one that carries it."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and all that is known about it.

    Raises:
        ValueError: the image is not (h, w, 3) uint8, or the segmentation has another size.
    """

    id: FrameId
    time: FrameTime
    image: U8
    """(h, w, 3) uint8 BGR, host memory, rotation applied."""
    detections: Detections | None = None
    """None: no detector ran. Empty: one ran and found nothing. Predicted by the tracker where
    `inferred` is False."""
    inferred: bool = True
    """False where the model was not run on purpose (`infer.detect_every`)."""
    tracks: Tracks | None = None
    """None: nothing follows objects in this chain."""
    segmentation: Segmentation | None = None
    """None: no semantic segmentation ran."""
    depth: DepthMap | None = None
    captions: tuple[Caption, ...] = ()
    discontinuity: bool = False
    """True where the timeline jumps before this frame (a reconnect, a splice)."""
    meta: Mapping[str, object] = field(default_factory=_nothing)
    """Extras of the source, e.g. "truth" of synthetic scenes."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"image must be (h, w, 3) uint8, got {self.image.shape} {self.image.dtype.name}"
            )
        found = self.segmentation
        if found is not None and found.class_id.shape != self.image.shape[:2]:
            raise ValueError(
                f"segmentation must have the picture's size {self.image.shape[:2]}, "
                f"got {found.class_id.shape}"
            )

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the picture, pixels."""
        return self.image.shape[1], self.image.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of pixels and results, for byte-bounded queues."""
        size = self.image.nbytes
        size += 0 if self.detections is None else self.detections.nbytes
        size += 0 if self.segmentation is None else self.segmentation.class_id.nbytes
        size += 0 if self.tracks is None else self.tracks.nbytes
        return size + (0 if self.depth is None else self.depth.values.nbytes)

    def __repr__(self) -> str:
        width, height = self.size_wh
        return f"Frame({self.id}, {width}x{height}, pts={self.time.pts}, {self.detections})"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A frame ready for inference: what preprocess produces and infer accepts."""

    frame: Frame
    tensor: NDArray[np.generic]
    """One picture in the model's layout and dtype, without the batch axis: (3, h, w) or (h, w,
    3). Empty where `frame.inferred` is False."""
    letterbox: Letterbox

    @property
    def id(self) -> FrameId:
        """The frame's identity."""
        return self.frame.id

    @property
    def nbytes(self) -> int:
        """Bytes of frame and tensor."""
        return self.frame.nbytes + self.tensor.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """A frame with a graph's raw outputs: what infer produces and nms accepts."""

    frame: Frame
    outputs: Mapping[str, NDArray[np.generic]]
    """Output name to array, as if the graph had been run on this frame alone: where the graph has a
    batch axis it is kept, with size 1. None at all where `frame.inferred` is False."""
    letterbox: Letterbox

    @property
    def id(self) -> FrameId:
        """The frame's identity."""
        return self.frame.id

    @property
    def nbytes(self) -> int:
        """Bytes of frame and raw outputs."""
        return self.frame.nbytes + sum(array.nbytes for array in self.outputs.values())


Item = Frame | Prepared | Inferred
"""What may stand in a queue; each has `id` and `nbytes`."""
