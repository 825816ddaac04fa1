"""YOLOv5 and relatives: decoded boxes with objectness, one candidate a row.

YOLOv5, YOLOv7 and YOLOv3 of Ultralytics export boxes as centre and size in model pixels already. A
segmentation export adds mask coefficients to each row and prototypes as a second output.
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
    corners,
    grid_rows,
    read,
    reject_nan,
    shape_without_batch,
)
from stages.decoders.masks import PrototypeMasks

_ANCHORS_PER_CELL = 3
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))


class Yolov5Decoder(Family):
    """Decodes one output (n, 5 + c [+ m]): centre, size in pixels, objectness, class scores."""

    kind: ClassVar[str] = "yolov5"
    form: ClassVar[str] = "an output [b, n, 5 + classes], boxes as centre and size in model pixels"

    def __init__(
        self,
        output: str,
        class_count: int,
        rows: int | None = None,
        coefficients: int = 0,
        prototypes: str | None = None,
    ) -> None:
        self.output = output
        self.class_count = class_count
        self._shape = (rows, 5 + class_count + coefficients)
        self._coefficients = coefficients
        self._prototypes = prototypes

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],  # noqa: ARG003 - boxes are pixels already
        class_count: int | None,  # noqa: ARG003 - the shape says it
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`.

        Outputs of five axes are passed over: old exports also give the raw heads.
        """
        flat = [info for info in graph.outputs if len(info.shape) in (2, 3)]
        prototypes = [info for info in graph.outputs if len(info.shape) == 4]
        if len(flat) != 1 or len(prototypes) > 1:
            raise cls.misfit(graph, f"it has {len(graph.outputs)} outputs")
        shape = shape_without_batch(flat[0], 2)
        coefficients = (prototypes[0].shape[1] or 0) if prototypes else 0
        if shape is None or shape[1] is None or shape[1] < 6 + coefficients:
            raise cls.misfit(graph, f"output {flat[0].name!r} has too few columns")
        if shape[0] is not None and shape[0] < shape[1]:
            raise cls.misfit(
                graph,
                f"output {flat[0].name!r} has fewer rows ({shape[0]}) than columns ({shape[1]})",
            )
        name = prototypes[0].name if prototypes else None
        return cls(flat[0].name, shape[1] - 5 - coefficients, shape[0], coefficients, name)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason: three anchors a cell, which the anchor-free relatives do not have."""
        rows = next(info.shape[-2] for info in graph.outputs if len(info.shape) in (2, 3))
        if rows in {_ANCHORS_PER_CELL * sum(grid_rows(size_wh, s)) for s in _STRIDES}:
            return (
                f"{rows} rows are three anchors for each cell of a {size_wh[0]}x{size_wh[1]} input"
            )
        return None

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB 0..1, centred letterbox (ultralytics/yolov5, `letterbox`)."""
        return Preprocessing(size_wh, fit="letterbox", pad_value=114, scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        rows = read(outputs, self.output, self._shape)
        reject_nan(rows[:, 4], self.kind)
        # A class score is at most 1, so objectness alone rules out nearly every row.
        found = as_f32(rows[as_f32(rows[:, 4]) >= score_threshold])
        classes = found[:, 5 : 5 + self.class_count]
        class_id = classes.argmax(axis=1)
        score = found[:, 4] * np.take_along_axis(classes, class_id[:, None], axis=1)[:, 0]
        reject_nan(score, self.kind)
        keep = score >= score_threshold
        xyxy = corners(found[keep, :2], found[keep, 2:4])
        masks = None
        if self._prototypes is not None:
            planes = as_f32(read(outputs, self._prototypes, (self._coefficients, None, None)))
            masks = PrototypeMasks(found[keep, 5 + self.class_count :], planes)
        return candidates(self.kind, xyxy, score[keep], class_id[keep], masks=masks)
