"""DETR and relatives (RT-DETR, D-FINE, DEIM, RF-DETR): a fixed number of queries, no suppression.

Each query is one box with scores; queries are trained not to repeat each other, so the graph's
boxes are final. Boxes are centre and size in 0..1 of the input unless the options say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import Candidates, GraphInfo, Outputs, Preprocessing, TensorInfo
from stages.decoders.family import (
    Family,
    as_f32,
    candidates,
    check_class_ids,
    corners,
    flag,
    read,
    reject_nan,
    shape_without_batch,
    sigmoid,
)

Activation = Literal["sigmoid", "softmax", "none"]
_ACTIVATIONS = ("sigmoid", "softmax", "none")
_BOXES = ("cxcywh", "xyxy")
_COCO_CLASSES, _COCO_LABELS = 80, 91
# Rows of Ultralytics' RT-DETR; with two classes they would be those of finished boxes.
_ULTRALYTICS_QUERIES, _FINISHED_COLUMNS = 300, 6
# DETR has the fewest of those published.
_FEWEST_QUERIES = 100
# RGB, of ImageNet: DETR's and RF-DETR's; RT-DETR and its relatives take 0..1.
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Names of the outputs, and what their numbers are."""

    form: Literal["pair", "joined", "chosen"]
    """pair: boxes beside scores of every class; joined: both in one row; chosen: boxes, labels,
    scores."""
    boxes: str
    scores: str
    labels: str = ""
    columns: int = 0
    """Scores a query, of the first two forms."""
    sure: str = ""
    """Why no other family makes these outputs, or nothing."""
    imagenet: bool = False


class DetrDecoder(Family):
    """Decodes n queries: boxes with logits or scores, joined rows, or labels, boxes and scores.

    Options: `boxes` (cxcywh or xyxy), `normalised` (0..1 rather than model pixels), `activation` of
    the scores (sigmoid, softmax with a last column for "no object", none). A query may stand for
    two classes at once where scores are independent, as in RT-DETR's own post-processing.
    """

    kind: ClassVar[str] = "detr"
    form: ClassVar[str] = (
        "outputs pred_boxes [b, n, 4] and logits [b, n, classes], or one [b, n, 4 + classes], or "
        "labels int64 [b, n], boxes [b, n, 4] and scores [b, n]"
    )
    options: ClassVar[tuple[str, ...]] = ("boxes", "normalised", "activation")

    def __init__(
        self,
        tensors: _Tensors,
        size_wh: tuple[int, int],
        class_count: int,
        *,
        boxes: str,
        normalised: bool,
        activation: Activation,
    ) -> None:
        self._tensors = tensors
        self._size = np.array([*size_wh, *size_wh], np.float32)
        self.class_count = class_count
        self._boxes = boxes
        self._normalised = normalised
        self._activation = activation

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`.

        Softmax is taken for granted where there is one score more than classes: 92 (COCO's 91
        labels), or one more than the names known.
        """
        found = _find(graph, class_count)
        if found is None:
            raise cls.misfit(graph, "its outputs are none of these forms")
        chosen = found.form == "chosen"
        extra = found.columns in (_COCO_LABELS + 1, (class_count or -2) + 1)
        guess: Activation = "softmax" if extra else "sigmoid"
        activation = _choice(
            options, "activation", _ACTIVATIONS, guess if found.form == "pair" else "none"
        )
        boxes = _choice(options, "boxes", _BOXES, "xyxy" if chosen else "cxcywh")
        normalised = flag(options, "normalised", default=not chosen)
        if chosen:
            count = class_count or _COCO_CLASSES
        else:
            count = found.columns - (activation == "softmax")
        return cls(
            found,
            size_wh,
            count,
            boxes=boxes,
            normalised=normalised,
            activation=activation,  # type: ignore[arg-type]  # one of _ACTIVATIONS
        )

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003 - one signature
        """Return the reason: names that only these exporters use, or Ultralytics' own word."""
        found = _find(graph, None)
        return (found.sure if found is not None else "") or None

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB stretched: 0..1, or ImageNet's mean and deviation for DETR and RF-DETR."""
        if self._tensors.imagenet or self._activation == "softmax":
            return Preprocessing(size_wh, fit="stretch", mean=_IMAGENET_MEAN, scale=_IMAGENET_SCALE)
        return Preprocessing(size_wh, fit="stretch", scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        t = self._tensors
        if t.form == "chosen":
            boxes = as_f32(read(outputs, t.boxes, (None, 4)))
            scores = as_f32(read(outputs, t.scores, (len(boxes),)))
            labels = read(outputs, t.labels, (len(boxes),)).astype(np.int64)
            reject_nan(scores, self.kind)
            query = np.flatnonzero(scores >= score_threshold)
            class_id, score = labels[query], scores[query]
            check_class_ids(self.kind, class_id, self.class_count)
        else:
            if t.form == "joined":
                rows = as_f32(read(outputs, t.boxes, (None, 4 + t.columns)))
                boxes, values = rows[:, :4], rows[:, 4:]
            else:
                boxes = as_f32(read(outputs, t.boxes, (None, 4)))
                values = as_f32(read(outputs, t.scores, (len(boxes), t.columns)))
            reject_nan(values, self.kind)
            table = self._probabilities(values)
            query, class_id = np.nonzero(table >= score_threshold)
            score = table[query, class_id]
            if len(score) > len(boxes):
                # The best n of all pairs, as the published post-processing has it.
                best = np.sort(np.argsort(-score, kind="stable")[: len(boxes)])
                query, class_id, score = query[best], class_id[best], score[best]
        return candidates(self.kind, self._xyxy(boxes[query]), score, class_id, suppressed=True)

    def _probabilities(self, values: F32) -> F32:
        if self._activation == "sigmoid":
            return sigmoid(values)
        if self._activation == "none":
            return values
        raised = np.exp(values - values.max(axis=1, keepdims=True))
        shares: F32 = raised / raised.sum(axis=1, keepdims=True)
        return shares[:, :-1]

    def _xyxy(self, boxes: F32) -> F32:
        if self._boxes == "cxcywh":
            boxes = corners(boxes[:, :2], boxes[:, 2:])
        return boxes * self._size if self._normalised else boxes


def _choice(options: Mapping[str, object], name: str, known: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in known:
        raise ModelError(
            f"decoder option {name!r} must be one of {', '.join(known)}, got {value!r}"
        )
    return str(value)


def _find(graph: GraphInfo, class_count: int | None) -> _Tensors | None:
    """Tell the outputs apart by axes, dtype and, where both have four columns, by name."""
    outputs = graph.outputs
    whole = [o for o in outputs if o.dtype == "int64" and len(o.shape) == 2]
    boxes = [o for o in outputs if len(o.shape) == 3 and o.shape[2] == 4 and _is_float(o)]
    if len(outputs) == 3 and len(whole) == 1 and len(boxes) == 1:
        scores = [o for o in outputs if len(o.shape) == 2 and _is_float(o)]
        if len(scores) != 1:
            return None
        return _Tensors(
            "chosen",
            boxes[0].name,
            scores[0].name,
            whole[0].name,
            sure="whole-number labels, boxes and scores with a batch axis, as RT-DETR exports them",
        )
    flat = [(o, shape_without_batch(o, 2)) for o in outputs if _is_float(o)]
    if len(flat) != len(outputs) or any(shape is None for _, shape in flat):
        return None
    if len(flat) == 2:
        return _pair({o.name: shape for o, shape in flat if shape is not None})
    if len(flat) != 1 or flat[0][1] is None:
        return None
    info, (rows, columns) = flat[0][0], flat[0][1]
    if columns is None or columns < 5 or (class_count is not None and columns != 4 + class_count):
        return None
    if rows is not None and rows < _FEWEST_QUERIES:
        return None
    sure = (
        f"{rows} rows of four and as many scores as the file names classes, by RT-DETR's name"
        if rows == _ULTRALYTICS_QUERIES
        and columns != _FINISHED_COLUMNS
        and "rtdetr" in graph.metadata.get("description", "").lower().replace("-", "")
        else ""
    )
    return _Tensors("joined", info.name, info.name, columns=columns - 4, sure=sure)


def _pair(shapes: Mapping[str, tuple[int | None, ...]]) -> _Tensors | None:
    for boxes, scores, imagenet in (("pred_boxes", "logits", False), ("dets", "labels", True)):
        if set(shapes) == {boxes, scores} and shapes[boxes][1] == 4 and shapes[scores][1]:
            return _Tensors(
                "pair",
                boxes,
                scores,
                columns=shapes[scores][1] or 0,
                sure=f"outputs {boxes!r} and {scores!r}, as DETR's relatives are exported",
                imagenet=imagenet,
            )
    found = [name for name, shape in shapes.items() if shape[1] == 4]
    if len(found) != 1:
        return None
    other = next(name for name in shapes if name != found[0])
    rows, columns = shapes[other]
    if columns is None or rows != shapes[found[0]][0]:
        return None
    return _Tensors("pair", found[0], other, columns=columns)


def _is_float(info: TensorInfo) -> bool:
    return info.dtype.startswith("float")
