"""YOLOv8 and relatives (v9, v11, v12, v5u): decoded boxes without objectness, transposed.

One column a cell: centre and size in model pixels, then a score for each class. A segmentation
export adds mask coefficients below them and prototypes as a second output.
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
    whole_numbers,
)
from stages.decoders.masks import PrototypeMasks

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
# 4 + 1 class + 17 keypoints x 3, and 4 + 15 classes + angle: the pose and rotated-box relatives.
_POSE_ROWS, _ROTATED_ROWS = 56, 20


class Yolov8Decoder(Family):
    """Decodes one output (4 + c [+ m], n): centre, size in pixels, class scores."""

    kind: ClassVar[str] = "yolov8"
    form: ClassVar[str] = (
        "an output [b, 4 + classes, n], n cells of strides 8, 16 and 32 (4 or 64 may join)"
    )
    options: ClassVar[tuple[str, ...]] = ("strides",)

    def __init__(
        self,
        output: str,
        class_count: int,
        columns: int | None = None,
        coefficients: int = 0,
        prototypes: str | None = None,
    ) -> None:
        self.output = output
        self.class_count = class_count
        self._shape = (4 + class_count + coefficients, columns)
        self._coefficients = coefficients
        self._prototypes = prototypes

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,  # noqa: ARG003 - the shape says it
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        strides = (whole_numbers(options, "strides", ()),) if "strides" in options else _STRIDES
        flat = [info for info in graph.outputs if len(info.shape) in (2, 3)]
        prototypes = [info for info in graph.outputs if len(info.shape) == 4]
        if (
            len(flat) != 1
            or len(prototypes) > 1
            or len(flat) + len(prototypes) < len(graph.outputs)
        ):
            raise cls.misfit(graph, f"it has {len(graph.outputs)} outputs")
        shape = shape_without_batch(flat[0], 2)
        coefficients = (prototypes[0].shape[1] or 0) if prototypes else 0
        counts = {sum(grid_rows(size_wh, s)) for s in strides}
        if shape is None or shape[0] is None or shape[0] < 5 + coefficients:
            raise cls.misfit(graph, f"output {flat[0].name!r} has too few rows")
        if shape[1] is not None and shape[1] not in counts:
            raise cls.misfit(
                graph,
                f"input {size_wh[0]}x{size_wh[1]} has {' or '.join(map(str, sorted(counts)))} "
                f"cells, output {flat[0].name!r} has {shape[1]} columns",
            )
        name = prototypes[0].name if prototypes else None
        return cls(flat[0].name, shape[0] - 4 - coefficients, shape[1], coefficients, name)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason: no other family puts the cells last.

        Row counts of the pose and rotated-box relatives are certain only where metadata gives the
        number of classes.
        """
        rows, columns = next(info.shape[-2:] for info in graph.outputs if len(info.shape) in (2, 3))
        if columns is None:
            return None
        if rows in (_POSE_ROWS, _ROTATED_ROWS) and "names" not in graph.metadata:
            return None
        return f"{columns} columns are the cells of a {size_wh[0]}x{size_wh[1]} input"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB 0..1, centred letterbox (ultralytics/ultralytics, `LetterBox`)."""
        return Preprocessing(size_wh, fit="letterbox", pad_value=114, scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        table = read(outputs, self.output, self._shape)
        classes = table[4 : 4 + self.class_count]
        best = as_f32(classes.max(axis=0))
        reject_nan(best, self.kind)
        keep = np.flatnonzero(best >= score_threshold)
        box = as_f32(table[:4, keep].T)
        class_id = classes[:, keep].argmax(axis=0)
        masks = None
        if self._prototypes is not None:
            planes = as_f32(read(outputs, self._prototypes, (self._coefficients, None, None)))
            masks = PrototypeMasks(as_f32(table[4 + self.class_count :, keep].T), planes)
        xyxy = corners(box[:, :2], box[:, 2:])
        return candidates(self.kind, xyxy, best[keep], class_id, masks=masks)
