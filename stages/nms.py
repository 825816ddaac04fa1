"""The nms stage: a graph's raw outputs become the results of their frame.

Decodes, suppresses overlaps in the model's pixels, and maps what is left back to the picture, with
masks and keypoints; class maps of semantic segmentation have nothing to suppress and are only
mapped. One thread; results depend on nothing but the outputs and the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import Field

from pipeline.config import StageConfig
from pipeline.detections import F32, I64, Detections
from pipeline.errors import ModelError
from pipeline.frame import Frame, Inferred, Segmentation
from pipeline.stage import RunContext, Stage
from stages import suppression
from stages.decoders.decoder import Candidates, MapSource

if TYPE_CHECKING:
    from stages.model import LoadedModel

CUT: Final = "cut_by_max_detections"
OUTSIDE: Final = "outside_picture"


class NmsConfig(StageConfig):
    """What counts as found, and how overlapping boxes of one object become one."""

    score_threshold: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Lowest score of a detection; lower finds more, and more wrong.",
    )
    iou_threshold: float = Field(
        0.45, ge=0, le=1, description="Boxes that overlap more than this are taken for one object."
    )
    method: Literal["hard", "soft", "merge"] = Field(
        "hard",
        description="hard keeps the best box; soft lowers the score of the others; merge averages "
        "them, weighted by score.",
    )
    soft_decay: Literal["gaussian", "linear"] = Field(
        "gaussian", description="How soft lowers scores: exp(-IoU^2 / sigma), or 1 - IoU."
    )
    soft_sigma: float = Field(0.5, gt=0, le=10, description="Sigma of the gaussian decay.")
    class_agnostic: bool = Field(
        default=False, description="Let boxes of different classes suppress each other."
    )
    max_detections: int = Field(
        300,
        ge=1,
        le=100_000,
        description="Most detections in a frame, best first. Frames where this cuts are counted.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="Keep only these classes, by name; all where it is left out. In a class map "
        "the others become background.",
    )


class NmsStage(Stage[Inferred, Frame]):
    """Adds `detections` to each frame, best score first, or `segmentation` where the model maps.

    A mask or keypoints go with the candidate that stays, also where its score was lowered (`soft`)
    or its box averaged (`merge`): then they are still those of the best candidate.

    Counters: `cut_by_max_detections` is the number of frames in which the limit cut detections off;
    `outside_picture` the number of boxes that lay wholly in the padding or beyond the edge.

    Raises:
        ModelError: `classes` names one that the model does not know.
    """

    accepts = Inferred
    produces = Frame
    light = True

    def __init__(self, config: NmsConfig, name: str, model: LoadedModel) -> None:
        self.name = name
        self.counters = {CUT: 0, OUTSIDE: 0}
        self._config = config
        self._model = model
        self._wanted = _class_ids(config.classes, model.class_names)
        self._context: RunContext | None = None

    def open(self, context: RunContext) -> None:
        """Keep the context for notes."""
        self._context = context

    def process(self, items: Sequence[Inferred]) -> Sequence[Frame]:
        """Return one frame for each item, in order, with its results.

        Raises:
            ModelError: the outputs are not what the decoder reads, or hold NaN.
            RuntimeError: the stage is not open.
        """
        if self._context is None:
            raise RuntimeError(f"{self.name} is not open: call open() before process()")
        try:
            return [self._result(item, self._context) for item in items]
        except ModelError as error:
            raise type(error)(f"model {self._model.name}: {error}") from error

    def close(self) -> None:
        """Forget the run."""
        self._context = None

    def _result(self, item: Inferred, context: RunContext) -> Frame:
        found = self._model.decoder.decode(item.outputs, self._config.score_threshold)
        if found.class_map is not None:
            segmentation = self._segment(found.class_map, item)
            return replace(item.frame, segmentation=segmentation)
        return replace(item.frame, detections=self._detect(found, item, context))

    def _segment(self, found: MapSource, item: Inferred) -> Segmentation:
        result = Segmentation(found.paint(item.letterbox), self._model.class_names)
        if self._wanted is None:
            return result
        if not result.has_background:
            raise ModelError(
                "nms.classes: the model has no background class that could stand for the others; "
                "leave it out"
            )
        keep = np.zeros(256, np.uint8)
        keep[self._wanted] = self._wanted
        return Segmentation(keep[result.class_id], result.class_names)

    def _detect(self, found: Candidates, item: Inferred, context: RunContext) -> Detections:
        if not (np.isfinite(found.xyxy).all() and np.isfinite(found.score).all()):
            raise ModelError(f"the model gave boxes or scores that are not finite in {item.id}")
        if self._wanted is not None:
            found = found.take(np.flatnonzero(np.isin(found.class_id, self._wanted)))
        rows, xyxy, score = self._suppress(found)
        limit = self._config.max_detections
        if len(score) > limit:
            if not self.counters[CUT]:
                context.note(
                    f"{self.name}: max_detections {limit} cut detections off, first in {item.id}; "
                    f"raise {self.name}.max_detections to see all"
                )
            self.counters[CUT] += 1
        # Clipped, not discarded, unless nothing is left: models do place boxes over the edge.
        boxes = item.letterbox.to_source(xyxy[:limit])
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        self.counters[OUTSIDE] += len(inside) - int(inside.sum())
        # Masks and keypoints are made for these rows only: they cost far more than boxes.
        stay = found.take(rows[:limit][inside])
        boxes, letterbox, points = boxes[inside], item.letterbox, stay.keypoints
        return Detections(
            xyxy=boxes,
            score=score[:limit][inside].clip(0, 1),
            class_id=stay.class_id,
            class_names=self._model.class_names,
            masks=None if stay.masks is None else stay.masks.cut(letterbox, boxes),
            keypoints=None if points is None else letterbox.points_to_source(points),
        )

    def _suppress(self, found: Candidates) -> tuple[I64, F32, F32]:
        """Return rows, their boxes and scores, best first: one more than the limit if it cuts."""
        config = self._config
        limit = config.max_detections + 1
        groups = None if config.class_agnostic else found.class_id
        xyxy, score = found.xyxy, found.score
        if found.suppressed:
            rows = suppression.by_score(score, limit)
            return rows, xyxy[rows], score[rows]
        if config.method == "soft":
            rows, lowered = suppression.soft(
                xyxy,
                score,
                groups,
                iou_threshold=config.iou_threshold,
                score_threshold=config.score_threshold,
                sigma=config.soft_sigma,
                linear=config.soft_decay == "linear",
                limit=limit,
            )
            return rows, xyxy[rows], lowered
        if config.method == "merge":
            rows, merged = suppression.merge(xyxy, score, groups, config.iou_threshold, limit)
            return rows, merged, score[rows]
        rows = suppression.hard(xyxy, score, groups, config.iou_threshold, limit)
        return rows, xyxy[rows], score[rows]


def _class_ids(names: tuple[str, ...] | None, known: tuple[str, ...]) -> I64 | None:
    if names is None:
        return None
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(
            f"nms.classes: the model knows no {', '.join(map(repr, unknown))}; "
            f"it knows: {', '.join(known)}"
        )
    return np.array([i for i, name in enumerate(known) if name in names], np.int64)
