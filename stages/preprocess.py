"""The preprocess stage: a frame becomes a tensor as the model wants it, in one pass.

What the model wants (size, fit, colour order, mean, scale) belongs to the model: it comes from its
metadata or recognition, and `infer` holds the settings that override it. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import StageConfig
from pipeline.frame import Frame, Prepared
from pipeline.geometry import Letterbox
from pipeline.stage import RunContext, Stage

if TYPE_CHECKING:
    from stages.fitting import Fitter
    from stages.model import LoadedModel


class PreprocessConfig(StageConfig):
    """No settings of its own: the model says how it wants its pictures; `infer` may override it."""


class PreprocessStage(Stage[Frame, Prepared]):
    """Fits each picture into the model's input. Every tensor is its own array.

    Args:
        config: no settings.
        name: unique in the pipeline.
        model: says how it wants its pictures.
        detect_every: `infer.detect_every`; the frames between are marked (`Frame.inferred`) and
            get no tensor. Counted per stream, and anew after a reconnect or a jump in time.
    """

    accepts = Frame
    produces = Prepared
    light = True

    def __init__(
        self, config: PreprocessConfig, name: str, model: LoadedModel, detect_every: int = 1
    ) -> None:
        self.name = name
        self.counters = {}
        self._every = detect_every
        self._turns: dict[str, tuple[int, int]] = {}
        """Of each stream: its epoch, and the frames seen since the last jump."""
        self._config = config
        self._model = model
        self._fitter: Fitter | None = None

    def open(self, context: RunContext) -> None:  # noqa: ARG002 - the contract's signature
        """Allocate the scratch picture."""
        from stages.fitting import Fitter

        self._fitter = Fitter(self._model.preprocessing)
        self._turns = {}

    def process(self, items: Sequence[Frame]) -> Sequence[Prepared]:
        """Return one `Prepared` for each frame, in order.

        Raises:
            RuntimeError: the stage is not open.
        """
        if self._fitter is None:
            raise RuntimeError(f"{self.name} is not open: call open() before process()")
        prepared = []
        for frame in items:
            if not self._due(frame):
                size_wh = frame.size_wh
                same = Letterbox((1.0, 1.0), (0.0, 0.0), size_wh, size_wh)
                between = replace(frame, inferred=False)
                prepared.append(Prepared(between, np.empty(0, np.uint8), same))
                continue
            tensor, letterbox = self._fitter.fit(frame.image)
            prepared.append(Prepared(frame, tensor, letterbox))
        return prepared

    def close(self) -> None:
        """Free the scratch picture."""
        self._fitter = None

    def _due(self, frame: Frame) -> bool:
        epoch, count = self._turns.get(frame.id.stream, (frame.id.epoch, 0))
        # What was known before a jump is of no use behind it: start with a look.
        if frame.discontinuity or frame.id.epoch != epoch:
            count = 0
        self._turns[frame.id.stream] = frame.id.epoch, count + 1
        return count % self._every == 0
