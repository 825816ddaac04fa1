"""YuNet, OpenCV's face detector: twelve outputs, three strides, five keypoints a face.

Reads what opencv_zoo publishes (libfacedetection): class score, objectness, box and keypoints for
each cell of strides 8, 16 and 32, relative to the cell.
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

_STRIDES = (8, 16, 32)
_PARTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}


class YunetDecoder(Family):
    """Decodes cls, obj, bbox and kps of strides 8, 16 and 32; score is sqrt(cls * obj).

    Keypoints: right eye, left eye, nose tip, right and left corner of the mouth (of the person, so
    the right eye is on the left of the picture). The graph gives them no scores; they get 1.
    """

    kind: ClassVar[str] = "yunet"
    form: ClassVar[str] = (
        "twelve outputs cls_S, obj_S [b, n, 1], bbox_S [b, n, 4] and kps_S [b, n, 10] for S of 8, "
        "16 and 32; input sides are multiples of 32"
    )
    names = ("face",)

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.class_count = 1
        self._rows = grid_rows(size_wh, _STRIDES)
        self._cells, self._steps = cell_grid(size_wh, _STRIDES)

    @classmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,  # noqa: ARG003 - it is one
        options: Mapping[str, object],  # noqa: ARG003 - it has none
    ) -> Self:
        """Return the decoder for this graph; see `Family.fit`."""
        expected = {f"{part}_{s}": n for part, n in _PARTS.items() for s in _STRIDES}
        if {info.name for info in graph.outputs} != set(expected):
            raise cls.misfit(graph, "its outputs have other names")
        if any(side % _STRIDES[-1] for side in size_wh):
            raise cls.misfit(graph, f"the input is {size_wh[0]}x{size_wh[1]}")
        rows = dict(zip(_STRIDES, grid_rows(size_wh, _STRIDES), strict=True))
        for info in graph.outputs:
            want = (rows[int(info.name.partition("_")[2])], expected[info.name])
            shape = shape_without_batch(info, 2)
            if shape is None or any(
                got not in (None, size) for got, size in zip(shape, want, strict=True)
            ):
                raise cls.misfit(graph, f"output {info.name!r} should be {list(want)}")
        return cls(size_wh)

    @classmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:  # noqa: ARG003 - one signature
        """Return the reason: twelve names of which each says what it holds."""
        return "its outputs are called cls, obj, bbox and kps of strides 8, 16 and 32"

    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return BGR 0..255 at the top left, padded with black (opencv, `FaceDetectorYN`)."""
        return Preprocessing(size_wh, fit="letterbox_top_left", pad_value=0, pixel_order="bgr")

    def decode(self, outputs: Outputs, score_threshold: float) -> Candidates:
        """Decode one picture; see `Decoder.decode`."""
        parts = {}
        for part, columns in _PARTS.items():
            levels = [
                as_f32(read(outputs, f"{part}_{stride}", (rows, columns)))
                for stride, rows in zip(_STRIDES, self._rows, strict=True)
            ]
            parts[part] = np.concatenate(levels)
        # Clipped before multiplying, as OpenCV does it.
        score = np.sqrt(parts["cls"][:, 0].clip(0, 1) * parts["obj"][:, 0].clip(0, 1))
        reject_nan(score, self.kind)
        keep = np.flatnonzero(score >= score_threshold)
        cells, steps = self._cells[keep], self._steps[keep]
        box = parts["bbox"][keep]
        with np.errstate(over="ignore"):  # `candidates` reports what is not finite
            xyxy = corners((cells + box[:, :2]) * steps, np.exp(box[:, 2:]) * steps)
        points = parts["kps"][keep].reshape(-1, 5, 2)
        points = (points + cells[:, None]) * steps[:, None]
        keypoints = np.concatenate((points, np.ones((len(keep), 5, 1), np.float32)), axis=2)
        class_id = np.zeros(len(keep), np.int64)
        return candidates(self.kind, xyxy, score[keep], class_id, keypoints=keypoints)
