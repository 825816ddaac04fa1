"""Semantic segmentation: a score for each class and pixel, or one plane of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import Candidates, GraphInfo, Outputs, Preprocessing, TensorInfo
from stages.decoders.family import SCORE_SLACK, Family, as_f32, read, reject_nan
from stages.decoders.masks import ScoreMap, ThresholdMap

_VOC_CLASSES = 21
_MOST_CLASSES = 256
# RGB, of ImageNet: what torchvision's segmentation weights were trained with.
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)
# MediaPipe's selfie segmentation, square and landscape.
_SELFIE_WH = ((256, 256), (256, 144))


class SegmentationDecoder(Family):
    """Decodes planes of scores [b, c, h, w] or [b, h, w, c]; with c = 1 a probability of class 1.

    Softmax keeps the order of scores, so logits and probabilities are read alike. Option of the
    one-plane form: `threshold`, 0.5 if not given; 0 for a graph that gives logits.
    """

    kind: ClassVar[str] = "segmentation"
    form: ClassVar[str] = (
        "an output [b, classes, h, w] or [b, h, w, classes], called 'out' where there are more"
    )
    options: ClassVar[tuple[str, ...]] = ("threshold",)

    def __init__(
        self,
        output: str,
        channels: int,
        size_wh: tuple[int, int],
        *,
        last: bool,
        threshold: float | None,
    ) -> None:
        self._output = output
        self._channels = channels
        self._last = last
        self._threshold = threshold
        self.class_count = max(channels, 2)
        if channels == 1:
            person = last and size_wh in _SELFIE_WH
            self.names = ("background", "person" if person else "foreground")

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,  # noqa: ARG003 - the shape says it
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        info = _map_output(graph)
        if info is None:
            raise cls.misfit(graph, "it has no output, or more than one, that could be a map")
        last = _channels_last(graph)
        channels = info.shape[3] if last else info.shape[1]
        if channels is None or channels > _MOST_CLASSES:
            raise cls.misfit(graph, f"output {info.name!r} has {channels} classes, not 1 to 256")
        threshold = options.get("threshold")
        if threshold is not None and (
            isinstance(threshold, bool) or not isinstance(threshold, int | float)
        ):
            raise ModelError(f"decoder option 'threshold' must be a number, got {threshold!r}")
        if threshold is not None and channels != 1:
            raise ModelError(
                f"decoder option 'threshold' is for one plane of probabilities; output "
                f"{info.name!r} has {channels}, of which the highest wins"
            )
        return cls(info.name, channels, size_wh, last=last, threshold=threshold)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason: 21 planes of the input's size, the classes of Pascal VOC.

        A single plane may be depth, and other numbers of planes say nothing of the classes and of
        how the input is made. Where the channels come first, the output must be called as
        torchvision's are.
        """
        info = _map_output(graph)
        last = _channels_last(graph)
        if info is None or info.shape[3 if last else 1] != _VOC_CLASSES:
            return None
        sides = info.shape[1:3] if last else info.shape[2:4]
        if sides != size_wh[::-1] or not (last or info.name == "out"):
            return None
        whose = "TensorFlow's DeepLab" if last else "torchvision's segmentation models"
        return f"{_VOC_CLASSES} planes of the input's size, the Pascal VOC classes of {whose}"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB stretched: 0..1 for one plane, else as TensorFlow or torchvision train."""
        if self._channels == 1:
            return Preprocessing(size_wh, fit="stretch", scale=(1 / 255,) * 3)
        if self._last:
            scale = (1 / 127.5,) * 3
            return Preprocessing(size_wh, fit="stretch", mean=(127.5,) * 3, scale=scale)
        return Preprocessing(size_wh, fit="stretch", mean=_IMAGENET_MEAN, scale=_IMAGENET_SCALE)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:  # noqa: ARG002 - one signature
        """Decode one picture; see `Decoder.decode`. The candidates are none, and a class map."""
        planes = None, None
        form = (*planes, self._channels) if self._last else (self._channels, *planes)
        values = as_f32(read(outputs, self._output, form))
        reject_nan(values, self.kind)
        if self._last:
            values = values.transpose(2, 0, 1)
        if self._channels > 1:
            return _nothing_but(ScoreMap(np.ascontiguousarray(values)))
        if self._threshold is None:
            _check_probability(values)
        threshold = 0.5 if self._threshold is None else self._threshold
        return _nothing_but(ThresholdMap(np.ascontiguousarray(values[0]), threshold))


def _nothing_but(found: ScoreMap | ThresholdMap) -> Candidates:
    return Candidates(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
        class_map=found,
    )


def _check_probability(values: F32) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -SCORE_SLACK and high <= 1 + SCORE_SLACK):
        raise ModelError(
            f"segmentation: one plane must hold probabilities, got {low:g}..{high:g}: where these "
            "are logits, give the option threshold: 0 (infer.options)"
        )


def _map_output(graph: GraphInfo) -> TensorInfo | None:
    """Return the one output that can be a map; torchvision's has an auxiliary one beside it."""
    maps = [o for o in graph.outputs if len(o.shape) == 4 and o.dtype.startswith("float")]
    named = [o for o in maps if o.name == "out"]
    if len(maps) > 1:
        maps = named
    others = len(graph.outputs) - len(maps)
    return maps[0] if len(maps) == 1 and (not others or named) else None


def _channels_last(graph: GraphInfo) -> bool:
    """Return whether the classes are the last axis: so where the input's colours are."""
    return graph.inputs[0].shape[-1] == 3 and graph.inputs[0].shape[-3] != 3
