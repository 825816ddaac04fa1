"""YOLOX: raw grid values, one cell a row, anchor-free.

Published exports leave the last arithmetic to the reader (`decode_in_inference=False`):
xy = (p + cell) * stride, wh = exp(p) * stride, score = objectness * class score; both scores have
been through their sigmoid.
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
    whole_numbers,
)

STRIDES = (8, 16, 32)
# 80 classes without objectness: a transposed yolov8 has the same shape as a YOLOX of 79 classes.
_TRANSPOSED_YOLOV8_COLUMNS = 84


class YoloxDecoder(Family):
    """Decodes one output (n, 5 + c): x, y, w, h in grid units, objectness, class scores."""

    kind: ClassVar[str] = "yolox"
    form: ClassVar[str] = "one output [b, n, 5 + classes], n cells of strides 8, 16 and 32, raw"
    options: ClassVar[tuple[str, ...]] = ("strides",)

    def __init__(
        self,
        output: str,
        size_wh: tuple[int, int],
        class_count: int,
        strides: tuple[int, ...] = STRIDES,
    ) -> None:
        self.output = output
        self.class_count = class_count
        self._cells, self._steps = cell_grid(size_wh, strides)

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,  # noqa: ARG003 - the shape says it
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        strides = whole_numbers(options, "strides", STRIDES)
        rows = sum(grid_rows(size_wh, strides))
        if len(graph.outputs) != 1:
            raise cls.misfit(graph, f"it has {len(graph.outputs)} outputs")
        shape = shape_without_batch(graph.outputs[0], 2)
        if shape is None or shape[1] is None or shape[1] < 6 or shape[0] not in (rows, None):
            raise cls.misfit(graph, f"input {size_wh[0]}x{size_wh[1]} has {rows} cells")
        return cls(graph.outputs[0].name, size_wh, shape[1] - 5, strides)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return the reason: YOLOX's own exporter calls the output "output".

        The shape alone does not do: YOLOv6 (output "outputs") and YOLOX exported with
        `decode_in_inference=True` give decoded pixels in the same shape. The latter cannot be told
        apart at all; it is read with `decoder: yolov5` and YOLOX's preprocessing.
        """
        output = graph.outputs[0]
        if output.name != "output" or output.shape[-1] == _TRANSPOSED_YOLOV8_COLUMNS:
            return None
        return (
            f"output {output.name!r} has one row for each of the "
            f"{sum(grid_rows(size_wh, STRIDES))} cells of strides 8, 16 and 32"
        )

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return BGR 0..255, picture at the top left (Megvii-BaseDetection/YOLOX, `preproc`)."""
        return Preprocessing(size_wh, fit="letterbox_top_left", pad_value=114, pixel_order="bgr")

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        grid = read(outputs, self.output, (len(self._cells), 5 + self.class_count))
        reject_nan(grid[:, 4], self.kind)
        # A class score is at most 1, so objectness alone rules out nearly every cell.
        rows = np.flatnonzero(as_f32(grid[:, 4]) >= score_threshold)
        found = as_f32(grid[rows])
        class_id = found[:, 5:].argmax(axis=1)
        score = found[:, 4] * np.take_along_axis(found[:, 5:], class_id[:, None], axis=1)[:, 0]
        reject_nan(score, self.kind)
        keep = score >= score_threshold
        rows, found = rows[keep], found[keep]
        step = self._steps[rows]
        with np.errstate(over="ignore"):  # reported as not finite
            size = np.exp(found[:, 2:4]) * step
        xyxy = corners((found[:, :2] + self._cells[rows]) * step, size)
        return candidates(self.kind, xyxy, score[keep], class_id[keep])
