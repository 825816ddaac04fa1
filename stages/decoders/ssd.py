"""SSD: one row an anchor with a score for each class, or TensorFlow's four finished outputs.

Two forms: boxes (n, 4) beside class scores (n, c), overlaps still in; and what the TensorFlow
object detection API exports, where the graph has already chosen: boxes as y, x corners in 0..1,
classes, scores and how many of the rows count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from pipeline.geometry import F32
from stages.decoders.decoder import Candidates, GraphInfo, Outputs, Preprocessing, TensorInfo
from stages.decoders.family import (
    Family,
    as_f32,
    candidates,
    check_class_ids,
    flag,
    grid_rows,
    read,
    reject_nan,
    shape_without_batch,
)

# Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, `define_img_size`: anchors a cell by level.
_ULTRAFACE = ((8, 3), (16, 2), (32, 2), (64, 3))
_TFLITE = "TFLite_Detection_PostProcess"
_COCO_IDS = 90


@dataclass(frozen=True, slots=True)
class _Finished:
    """Names of TensorFlow's four outputs."""

    boxes: str
    classes: str
    scores: str
    count: str
    first_class: int
    """What the graph calls the first class: 1 where it counts a background, 0 in TFLite."""


@dataclass(frozen=True, slots=True)
class _Anchors:
    """Names of the two outputs, and what their numbers mean."""

    boxes: str
    scores: str
    rows: int | None
    columns: int
    normalised: bool
    background: bool
    faces: bool


class SsdDecoder(Family):
    """Decodes boxes (n, 4) with scores (n, c), or TensorFlow's boxes, classes, scores, count.

    Options of the first form: `normalised` (boxes in 0..1 of the input, else model pixels) and
    `background` (column 0 is no class). Both default to true, as most exports have it.
    """

    kind: ClassVar[str] = "ssd"
    form: ClassVar[str] = (
        "two outputs [b, n, 4] (x1, y1, x2, y2) and [b, n, classes], or TensorFlow's four: boxes "
        "[b, n, 4], classes [b, n], scores [b, n], count [b]"
    )
    options: ClassVar[tuple[str, ...]] = ("normalised", "background")

    def __init__(
        self, tensors: _Finished | _Anchors, size_wh: tuple[int, int], class_count: int
    ) -> None:
        self._tensors = tensors
        self._size = np.array([*size_wh, *size_wh], dtype=np.float32)
        self.class_count = class_count
        if isinstance(tensors, _Anchors) and tensors.faces:
            self.names = ("face",)

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`.

        TensorFlow's form does not say how many classes there are: 90 (COCO) where no names are
        known.
        """
        finished = _find_finished(graph)
        if finished is not None:
            return cls(finished, size_wh, class_count or _COCO_IDS)
        anchors = _find_anchors(graph, size_wh, options)
        if anchors is None:
            raise cls.misfit(graph, "its outputs are neither of the two forms")
        return cls(anchors, size_wh, anchors.columns - anchors.background)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason: TensorFlow's names and 8-bit input, or UltraFace's anchor count."""
        finished = _find_finished(graph)
        if finished is not None:
            # A float input may want 0..1, -1..1 or 0..255.
            whose = "TensorFlow Lite's" if finished.first_class == 0 else "TensorFlow's"
            eight_bit = graph.inputs[0].dtype == "uint8"
            return f"{whose} four outputs and an 8-bit input" if eight_bit else None
        anchors = _find_anchors(graph, size_wh, {})
        if anchors is not None and anchors.faces:
            return f"{anchors.rows} anchors with 2 scores each: UltraFace"
        return None

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB, stretched, about -1..1; an 8-bit input takes pixels as they are."""
        # UltraFace is trained with (x - 127) / 128, MobileNet SSD with (x - 127.5) / 127.5.
        faces = isinstance(self._tensors, _Anchors) and self._tensors.faces
        mean, divisor = (127.0, 128.0) if faces else (127.5, 127.5)
        return Preprocessing(size_wh, fit="stretch", mean=(mean,) * 3, scale=(1 / divisor,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        if isinstance(self._tensors, _Finished):
            return self._decode_finished(self._tensors, outputs, score_threshold)
        return self._decode_anchors(self._tensors, outputs, score_threshold)

    def _decode_finished(self, t: _Finished, outputs: Outputs, threshold: float) -> Candidates:
        boxes = read(outputs, t.boxes, (None, 4))
        scores = as_f32(read(outputs, t.scores, (len(boxes),)))
        classes = as_f32(read(outputs, t.classes, (len(boxes),)))
        counts = as_f32(outputs[t.count]).ravel() if t.count in outputs else np.zeros(0)
        reject_nan(scores, self.kind)
        # Rows beyond the count are filling; scores of real ones may come in any order.
        valid = scores >= threshold
        if counts.size:
            valid &= np.arange(len(scores)) < round(float(counts[0]))
        class_id = np.rint(classes[valid]).astype(np.int64) - t.first_class
        check_class_ids(self.kind, class_id, self.class_count)
        yxyx = as_f32(boxes[valid])
        xyxy: F32 = yxyx[:, [1, 0, 3, 2]] * self._size
        return candidates(self.kind, xyxy, scores[valid], class_id, suppressed=True)

    def _decode_anchors(self, t: _Anchors, outputs: Outputs, threshold: float) -> Candidates:
        table = read(outputs, t.scores, (t.rows, t.columns))[:, int(t.background) :]
        boxes = read(outputs, t.boxes, (len(table), 4))
        best = as_f32(table.max(axis=1))
        reject_nan(best, self.kind)
        keep = np.flatnonzero(best >= threshold)
        xyxy = as_f32(boxes[keep]) * self._size if t.normalised else as_f32(boxes[keep])
        return candidates(self.kind, xyxy, best[keep], table[keep].argmax(axis=1))


def _find_finished(graph: GraphInfo) -> _Finished | None:
    """Tell TensorFlow's outputs apart by name: classes and scores have one shape."""
    by_name = {info.name.removesuffix(":0"): info for info in graph.outputs}
    lite = [_TFLITE, *(f"{_TFLITE}:{i}" for i in (1, 2, 3))]
    if all(name in by_name for name in lite):
        names, first_class = lite, 0
    else:
        names, first_class = [_by_suffix(by_name, part) for part in _TF_PARTS], 1
    if not all(names) or shape_without_batch(by_name[names[0]], 2) is None:
        return None
    if by_name[names[0]].shape[-1] != 4:
        return None
    boxes, classes, scores, count = (by_name[name].name for name in names)
    return _Finished(boxes, classes, scores, count, first_class)


_TF_PARTS = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")


def _by_suffix(by_name: Mapping[str, TensorInfo], part: str) -> str:
    # "raw_detection_boxes" stands beside "detection_boxes" in TensorFlow 2 exports.
    found = [n for n in by_name if n == part or n.endswith(("/" + part, ":" + part))]
    return found[0] if len(found) == 1 else ""


def _find_anchors(
    graph: GraphInfo, size_wh: tuple[int, int], options: Mapping[str, object]
) -> _Anchors | None:
    """Tell boxes and scores apart by shape, and where both have four columns by name."""
    pairs = [(info, shape_without_batch(info, 2)) for info in graph.outputs]
    if len(pairs) != 2 or any(shape is None for _, shape in pairs):
        return None
    boxes = [pair for pair in pairs if pair[1] is not None and pair[1][1] == 4]
    if len(boxes) == 2:
        boxes = [pair for pair in boxes if "box" in pair[0].name.lower()]
    if len(boxes) != 1:
        return None
    info, shape = boxes[0]
    other, scores = next(pair for pair in pairs if pair[0] is not info)
    if shape is None or scores is None or scores[1] is None or scores[0] != shape[0]:
        return None
    cells = grid_rows(size_wh, [stride for stride, _ in _ULTRAFACE])
    faces = scores == (sum(n * k for n, (_, k) in zip(cells, _ULTRAFACE, strict=True)), 2)
    background = flag(options, "background", default=True)
    if scores[1] - background < 1:
        return None
    return _Anchors(
        boxes=info.name,
        scores=other.name,
        rows=scores[0],
        columns=scores[1],
        normalised=flag(options, "normalised", default=True),
        background=background,
        faces=faces and background,
    )
