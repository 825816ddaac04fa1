"""NanoDet and PicoDet: each side of a box is a distribution over distances.

Two outputs a level, class scores (n, c) and box logits (n, 4 * bins). The distance of a side is the
expectation of its softmax, in strides from the cell's centre. Exports scramble the outputs' names
and order, and some have no batch axis, so the shapes decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import Candidates, GraphInfo, Outputs, Preprocessing, TensorInfo
from stages.decoders.family import (
    Family,
    as_f32,
    candidates,
    cell_grid,
    grid_rows,
    read,
    reject_nan,
    shape_without_batch,
    whole_numbers,
)

# 4 sides x 8 bins: `reg_max: 7` in both projects' published configurations.
_USUAL_BOX_COLUMNS = 32


class _DistributionDecoder(Family):
    """The part that NanoDet and PicoDet share."""

    options: ClassVar[tuple[str, ...]] = ("strides",)
    strides: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        levels: tuple[tuple[str, str], ...],
        size_wh: tuple[int, int],
        strides: tuple[int, ...],
        class_count: int,
        bins: int,
    ) -> None:
        self._levels = levels
        self._rows = grid_rows(size_wh, strides)
        self.class_count = class_count
        self._bins = bins
        cells, self._steps = cell_grid(size_wh, strides)
        self._centres = self._place(cells, self._steps)

    @staticmethod
    def _place(cells: F32, steps: F32) -> F32:
        """Return where the cells' centres lie, (n, 2) model pixels."""
        raise NotImplementedError

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        strides = whole_numbers(options, "strides", cls.strides)
        rows = grid_rows(size_wh, strides)
        tables: dict[tuple[int | None, int], TensorInfo] = {}
        for info in graph.outputs:
            shape = shape_without_batch(info, 2)
            if shape is None or shape[1] is None:
                raise cls.misfit(graph, f"output {info.name!r} has another shape")
            tables[shape[0], shape[1]] = info
        if len(graph.outputs) != 2 * len(strides) or len(tables) != len(graph.outputs):
            raise cls.misfit(
                graph, f"two outputs for each of the {len(strides)} strides are needed"
            )
        columns = {column for _, column in tables}
        box = _box_columns(columns, class_count)
        if box is None or {row for row, _ in tables} != set(rows):
            raise cls.misfit(graph, f"input {size_wh[0]}x{size_wh[1]} has levels of {rows} cells")
        (classes,) = columns - {box}
        levels = tuple((tables[row, classes].name, tables[row, box].name) for row in rows)
        return cls(levels, size_wh, strides, classes, box // 4)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003 - one signature
        """Return the reason: pairs of outputs whose rows are the cells of this family's levels."""
        strides = ", ".join(map(str, cls.strides))
        return f"{len(graph.outputs)} outputs in pairs, rows are the cells of strides {strides}"

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        score, class_id, logits, cell = [], [], [], []
        first = 0
        for (classes_name, box_name), rows in zip(self._levels, self._rows, strict=True):
            classes = read(outputs, classes_name, (rows, self.class_count))
            boxes = read(outputs, box_name, (rows, 4 * self._bins))
            best = as_f32(classes.max(axis=1))
            reject_nan(best, self.kind)
            keep = np.flatnonzero(best >= score_threshold)
            score.append(best[keep])
            class_id.append(classes[keep].argmax(axis=1))
            logits.append(as_f32(boxes[keep]))
            cell.append(keep + first)
            first += rows
        cells = np.concatenate(cell)
        side = _expectation(np.concatenate(logits).reshape(-1, 4, self._bins)) * self._steps[cells]
        centre = self._centres[cells]
        xyxy = np.concatenate((centre - side[:, :2], centre + side[:, 2:]), axis=1)
        return candidates(self.kind, xyxy, np.concatenate(score), np.concatenate(class_id))


class NanodetDecoder(_DistributionDecoder):
    """Decodes NanoDet: strides 8, 16, 32; the centre is that of the cell's pixels."""

    kind: ClassVar[str] = "nanodet"
    form: ClassVar[str] = (
        "six outputs, [n, classes] and [n, 4 x bins] for the cells of strides 8, 16 and 32"
    )
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    @staticmethod
    def _place(cells: F32, steps: F32) -> F32:
        # RangiLyu/nanodet v0.x, `get_single_level_center_point`: (stride - 1) / 2, not stride / 2.
        return cells * steps + (steps - 1) * np.float32(0.5)

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return BGR minus ImageNet's mean, picture at the top left on black."""
        return Preprocessing(
            size_wh,
            fit="letterbox_top_left",
            pad_value=0,
            pixel_order="bgr",
            mean=(103.53, 116.28, 123.675),
            scale=(1 / 57.375, 1 / 57.12, 1 / 58.395),
        )


class PicodetDecoder(_DistributionDecoder):
    """Decodes PicoDet: strides 8, 16, 32, 64; the centre is the cell's middle."""

    kind: ClassVar[str] = "picodet"
    form: ClassVar[str] = (
        "eight outputs, [n, classes] and [n, 4 x bins] for the cells of strides 8, 16, 32 and 64"
    )
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32, 64)

    @staticmethod
    def _place(cells: F32, steps: F32) -> F32:
        return (cells + np.float32(0.5)) * steps

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB minus ImageNet's mean, stretched (PaddleDetection, `keep_ratio: False`)."""
        return Preprocessing(
            size_wh,
            fit="stretch",
            mean=(123.675, 116.28, 103.53),
            scale=(1 / 58.395, 1 / 57.12, 1 / 57.375),
        )


def _box_columns(columns: set[int], class_count: int | None) -> int | None:
    """Tell box columns from class columns, both of which may be divisible by four."""
    if len(columns) != 2:
        return None
    if class_count in columns:
        (box,) = columns - {class_count}
        return box if box % 4 == 0 and box >= 8 else None
    if _USUAL_BOX_COLUMNS in columns:
        return _USUAL_BOX_COLUMNS
    fitting = [column for column in columns if column % 4 == 0 and column >= 8]
    return fitting[0] if len(fitting) == 1 else None


def _expectation(logits: F32) -> F32:
    """Return (n, 4) expected bins of (n, 4, bins) logits."""
    if not np.isfinite(logits).all():
        raise ModelError("the box logits above the threshold have values that are not finite")
    weight = np.exp(logits - logits.max(axis=2, keepdims=True))
    bins = np.arange(logits.shape[2], dtype=np.float32)
    expected: F32 = (weight @ bins) / weight.sum(axis=2)
    return expected
