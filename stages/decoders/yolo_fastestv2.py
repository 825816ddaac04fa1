"""Yolo-FastestV2: two levels of three anchors, objectness for each, class scores for the cell.

One row a cell: 12 box values (3 anchors x 4), 3 objectness values, then the class scores that its
anchors share; all have been through their sigmoid or softmax.
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
    cell_grid,
    corners,
    grid_rows,
    read,
    reject_nan,
    shape_without_batch,
)

_STRIDES = (16, 32)
# dog-qiuqiu/Yolo-FastestV2, data/coco.data: width and height in pixels of the 352 px input.
_ANCHORS = (
    ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
)
_COCO_CLASSES = 80


class YoloFastestV2Decoder(Family):
    """Decodes one output (n, 15 + c); the anchors are those of the published COCO weights."""

    kind: ClassVar[str] = "yolo-fastestv2"
    form: ClassVar[str] = "one output [n, 15 + classes], n cells of strides 16 and 32"

    def __init__(self, output: str, size_wh: tuple[int, int], class_count: int) -> None:
        self.output = output
        self.class_count = class_count
        self._cells, self._steps = cell_grid(size_wh, _STRIDES)
        level = (self._steps[:, 0] == _STRIDES[1]).astype(np.int64)
        self._anchors = np.array(_ANCHORS, dtype=np.float32)[level]

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,  # noqa: ARG003 - the shape says it
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        rows = sum(grid_rows(size_wh, _STRIDES))
        if len(graph.outputs) != 1:
            raise cls.misfit(graph, f"it has {len(graph.outputs)} outputs")
        shape = shape_without_batch(graph.outputs[0], 2)
        if shape is None or shape[1] is None or shape[1] < 16 or shape[0] not in (rows, None):
            raise cls.misfit(graph, f"input {size_wh[0]}x{size_wh[1]} has {rows} cells")
        return cls(graph.outputs[0].name, size_wh, shape[1] - 15)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason; only COCO's weights have the anchors that are known here."""
        if graph.outputs[0].shape[-1] != 15 + _COCO_CLASSES:
            return None
        rows = sum(grid_rows(size_wh, _STRIDES))
        return f"{rows} rows are the cells of strides 16 and 32, of 15 + 80 values each"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return BGR 0..1, stretched (dog-qiuqiu/Yolo-FastestV2, `test.py`)."""
        return Preprocessing(size_wh, fit="stretch", pixel_order="bgr", scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        table = read(outputs, self.output, (len(self._cells), 15 + self.class_count))
        reject_nan(table[:, 12:15], self.kind)
        # A class score is at most 1, so objectness alone rules out nearly every anchor.
        row, anchor = np.nonzero(as_f32(table[:, 12:15]) >= score_threshold)
        found = as_f32(table[row])
        class_id = found[:, 15:].argmax(axis=1)
        best = np.take_along_axis(found[:, 15:], class_id[:, None], axis=1)[:, 0]
        score = found[np.arange(len(row)), 12 + anchor] * best
        reject_nan(score, self.kind)
        keep = score >= score_threshold
        row, anchor, found = row[keep], anchor[keep], found[keep]
        box = found[:, :12].reshape(-1, 3, 4)[np.arange(len(row)), anchor]
        centre = (box[:, :2] * 2 - np.float32(0.5) + self._cells[row]) * self._steps[row]
        size = (box[:, 2:] * 2) ** 2 * self._anchors[row, anchor]
        return candidates(self.kind, corners(centre, size), score[keep], class_id[keep])
