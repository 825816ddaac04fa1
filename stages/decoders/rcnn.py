"""torchvision's detectors exported whole: boxes, labels, scores, and masks of Mask R-CNN.

The graph resizes, normalises and suppresses on its own: it wants RGB 0..1 and gives boxes in the
pixels of the picture it was fed. Masks are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from stages.decoders.decoder import Candidates, GraphInfo, Outputs, Preprocessing
from stages.decoders.family import (
    Family,
    as_f32,
    candidates,
    check_class_ids,
    read,
    reject_nan,
)

_COCO_LABELS = 91


class RcnnDecoder(Family):
    """Decodes boxes (n, 4) in pixels, labels (n,) int64, scores (n,); n differs by picture.

    Labels are class ids as they are: 0 is the background, so the class names begin with it.
    """

    kind: ClassVar[str] = "rcnn"
    form: ClassVar[str] = "outputs boxes float [n, 4], labels int64 [n], scores float [n]"

    def __init__(
        self, boxes: str, labels: str, scores: str, class_count: int, *, masks: bool = False
    ) -> None:
        self._boxes = boxes
        self._labels = labels
        self._scores = scores
        self.class_count = class_count
        self.note = "masks are not decoded yet" if masks else ""

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],  # noqa: ARG003 - boxes are pixels already
        class_count: int | None,
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph, told apart by axes and dtype: names are often numbers.

        COCO's 91 labels where no names are known.
        """
        boxes = [o for o in graph.outputs if len(o.shape) == 2 and o.shape[1] == 4]
        labels = [o for o in graph.outputs if len(o.shape) == 1 and o.dtype == "int64"]
        scores = [o for o in graph.outputs if len(o.shape) == 1 and o.dtype.startswith("float")]
        masks = [o for o in graph.outputs if len(o.shape) == 4]
        if [len(boxes), len(labels), len(scores)] != [1, 1, 1] or len(graph.outputs) > 3 + len(
            masks
        ):
            raise cls.misfit(graph, "its outputs cannot be told apart as boxes, labels and scores")
        return cls(
            boxes[0].name,
            labels[0].name,
            scores[0].name,
            class_count or _COCO_LABELS,
            masks=bool(masks),
        )

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003
        """Return the reason: three outputs without batch axis, one of them whole numbers."""
        return f"boxes, whole-number labels and scores as torchvision gives them ({cls.form})"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB 0..1, picture at the top left: the graph normalises on its own."""
        return Preprocessing(size_wh, fit="letterbox_top_left", scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        boxes = as_f32(read(outputs, self._boxes, (None, 4)))
        labels = read(outputs, self._labels, (len(boxes),)).astype(np.int64)
        scores = as_f32(read(outputs, self._scores, (len(boxes),)))
        reject_nan(scores, self.kind)
        keep = scores >= score_threshold
        check_class_ids(self.kind, labels[keep], self.class_count)
        return candidates(self.kind, boxes[keep], scores[keep], labels[keep], suppressed=True)
