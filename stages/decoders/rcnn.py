"""torchvision's detectors exported whole: boxes, labels, scores, and masks or keypoints.

The graph resizes, normalises and suppresses on its own: it wants RGB 0..1 and gives boxes in the
pixels of the picture it was fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from pipeline.geometry import F32
from stages.decoders.decoder import (
    I64,
    Candidates,
    GraphInfo,
    MaskSource,
    Outputs,
    Preprocessing,
    TensorInfo,
)
from stages.decoders.family import (
    Family,
    as_f32,
    candidates,
    check_class_ids,
    read,
    reject_nan,
    sigmoid,
)
from stages.decoders.masks import PatchMasks, PlaneMasks

_COCO_LABELS = 91
_PERSON_NAMES = ("__background__", "person")


@dataclass(frozen=True, slots=True)
class RcnnOutputs:
    """Names of the outputs; None where the graph has none."""

    boxes: str
    labels: str
    scores: str
    masks: str | None = None
    keypoints: str | None = None
    keypoint_scores: str | None = None


class RcnnDecoder(Family):
    """Decodes boxes (n, 4) in pixels, labels (n,) int64, scores (n,); n differs by picture.

    Labels are class ids as they are: 0 is the background, so the class names begin with it. Masks
    are patches (n, 1, 28, 28) stretched over their boxes, or planes as large as the input, as
    torchvision pastes them inside the graph. Keypoints are (n, k, 3); their scores (n, k), where
    the graph gives them, are heights of a heatmap and go through a sigmoid.
    """

    kind: ClassVar[str] = "rcnn"
    form: ClassVar[str] = (
        "outputs boxes float [n, 4], labels int64 [n], scores float [n], and masks [n, 1, h, w] "
        "or keypoints [n, k, 3] with their scores [n, k]"
    )

    def __init__(
        self, tensors: RcnnOutputs, size_wh: tuple[int, int], class_count: int, *, people: bool
    ) -> None:
        self._tensors = tensors
        self._size_wh = size_wh
        self.class_count = class_count
        if people:
            self.names = _PERSON_NAMES

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph, told apart by axes and dtype: names are often numbers.

        Where no names are known: COCO's 91 labels; background and person where there are keypoints.
        """
        tensors = _find(graph.outputs)
        if tensors is None:
            raise cls.misfit(graph, "its outputs cannot be told apart as boxes, labels and scores")
        people = tensors.keypoints is not None and class_count is None
        count = len(_PERSON_NAMES) if people else class_count or _COCO_LABELS
        return cls(tensors, size_wh, count, people=people)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003 - one signature
        """Return the reason: three outputs without batch axis, one of them whole numbers."""
        return f"boxes, whole-number labels and scores as torchvision gives them ({cls.form})"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB 0..1, picture at the top left: the graph normalises on its own."""
        return Preprocessing(size_wh, fit="letterbox_top_left", scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        t = self._tensors
        boxes = as_f32(read(outputs, t.boxes, (None, 4)))
        labels = read(outputs, t.labels, (len(boxes),)).astype(np.int64)
        scores = as_f32(read(outputs, t.scores, (len(boxes),)))
        reject_nan(scores, self.kind)
        keep = np.flatnonzero(scores >= score_threshold)
        check_class_ids(self.kind, labels[keep], self.class_count)
        masks: MaskSource | None = None
        if t.masks is not None:
            # Not `read`: the axis of size 1 is the masks' own, and n may be 1 as well.
            planes = as_f32(read(outputs, t.masks, (len(boxes), 1, None, None)))[keep, 0]
            pasted = planes.shape[:0:-1] == self._size_wh
            masks = PlaneMasks(planes) if pasted else PatchMasks(planes, boxes[keep])
        return candidates(
            self.kind,
            boxes[keep],
            scores[keep],
            labels[keep],
            suppressed=True,
            masks=masks,
            keypoints=self._keypoints(outputs, len(boxes), keep),
        )

    def _keypoints(self, outputs: Outputs, count: int, keep: I64) -> F32 | None:
        t = self._tensors
        if t.keypoints is None:
            return None
        points: F32 = as_f32(read(outputs, t.keypoints, (count, None, 3)))[keep].copy()
        if t.keypoint_scores is not None:
            heights = read(outputs, t.keypoint_scores, (count, points.shape[1]))[keep]
            points[..., 2] = sigmoid(heights)
        return points


def _find(outputs: Sequence[TensorInfo]) -> RcnnOutputs | None:
    """Tell the outputs apart; None where that is not possible."""
    floats = [o for o in outputs if o.dtype.startswith("float")]
    by_axes = {n: [o for o in floats if len(o.shape) == n] for n in (1, 2, 3, 4)}
    labels = [o.name for o in outputs if len(o.shape) == 1 and o.dtype == "int64"]
    boxes = [o.name for o in by_axes[2] if o.shape[1] == 4]
    scores = [o.name for o in by_axes[1]]
    masks = [o.name for o in by_axes[4] if o.shape[1] == 1]
    points = [o for o in by_axes[3] if o.shape[2] == 3]
    heights = [o.name for o in by_axes[2] if points and o.shape[1] == points[0].shape[1] != 4]
    known = len(labels) + len(boxes) + len(scores) + len(masks) + len(points) + len(heights)
    if [len(labels), len(boxes), len(scores)] != [1, 1, 1] or known != len(outputs):
        return None
    if max(len(masks), len(points), len(heights)) > 1:
        return None
    return RcnnOutputs(
        boxes[0],
        labels[0],
        scores[0],
        masks[0] if masks else None,
        points[0].name if points else None,
        heights[0] if heights else None,
    )
