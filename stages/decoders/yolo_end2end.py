"""YOLO exports that end in finished boxes: YOLOv10, YOLO26, and Ultralytics' `nms=True`.

One row a box: x1, y1, x2, y2 in model pixels, score, class. The graph has already removed overlaps.
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
    shape_without_batch,
)

_MAX_ROWS = 1000
"""More rows than any published export keeps (300); more are cells, not finished boxes."""


class YoloEnd2EndDecoder(Family):
    """Decodes one output (n, 6 [+ m]): corners in pixels, score, class id."""

    kind: ClassVar[str] = "yolo-end2end"
    form: ClassVar[str] = "an output [b, n, 6]: x1, y1, x2, y2 in model pixels, score, class"

    def __init__(self, output: str, class_count: int, coefficients: int = 0) -> None:
        self.output = output
        self.class_count = class_count
        self._columns = 6 + coefficients
        self.note = "masks are not decoded yet" if coefficients else ""

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],  # noqa: ARG003 - boxes are pixels already
        class_count: int | None,
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph; COCO's 80 classes where no names are known."""
        flat = [info for info in graph.outputs if len(info.shape) in (2, 3)]
        prototypes = [info for info in graph.outputs if len(info.shape) == 4]
        if (
            len(flat) != 1
            or len(prototypes) > 1
            or len(flat) + len(prototypes) < len(graph.outputs)
        ):
            raise cls.misfit(graph, f"it has {len(graph.outputs)} outputs")
        coefficients = (prototypes[0].shape[1] or 0) if prototypes else 0
        shape = shape_without_batch(flat[0], 2)
        if shape is None or shape[1] != 6 + coefficients or (shape[0] or 0) > _MAX_ROWS:
            raise cls.misfit(graph, f"output {flat[0].name!r} has another shape")
        return cls(flat[0].name, class_count or 80, coefficients)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003 - one signature
        """Return the reason: Ultralytics' metadata, or its output name and its 300 rows.

        Six columns alone do not do: other toolkits put class and score first.
        """
        stated = graph.metadata.get("end2end") == "True" or (
            "'nms': True" in graph.metadata.get("args", "")
        )
        if stated:
            return "Ultralytics' metadata says that the graph ends in finished boxes"
        first = graph.outputs[0]
        if first.name == "output0" and first.shape[-2:] == (300, 6):
            return "output 'output0' has 300 rows of 6, as Ultralytics exports finished boxes"
        return None

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return RGB 0..1, centred letterbox (ultralytics/ultralytics, `LetterBox`)."""
        return Preprocessing(size_wh, fit="letterbox", pad_value=114, scale=(1 / 255,) * 3)

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        rows = as_f32(read(outputs, self.output, (None, self._columns)))
        reject_nan(rows[:, 4:6], self.kind)
        found = rows[rows[:, 4] >= score_threshold]
        class_id = np.rint(found[:, 5]).astype(np.int64)
        check_class_ids(self.kind, class_id, self.class_count)
        return candidates(self.kind, found[:, :4], found[:, 4], class_id, suppressed=True)
