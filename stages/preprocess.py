"""The preprocess stage: a frame becomes a tensor as the model wants it, in one pass.

What the model wants (size, fit, colour order, mean, scale) belongs to the model: it comes from its
metadata or recognition, and `infer` holds the settings that override it. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import StageConfig
from pipeline.frame import Frame, Prepared
from pipeline.stage import RunContext, Stage

if TYPE_CHECKING:
    from stages.fitting import Fitter
    from stages.model import LoadedModel


class PreprocessConfig(StageConfig):
    """No settings of its own: the model says how it wants its pictures; `infer` may override it."""


class PreprocessStage(Stage[Frame, Prepared]):
    """Fits each picture into the model's input. Every tensor is its own array."""

    accepts = Frame
    produces = Prepared
    light = True

    def __init__(self, config: PreprocessConfig, name: str, model: LoadedModel) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._model = model
        self._fitter: Fitter | None = None

    def open(self, context: RunContext) -> None:  # noqa: ARG002 - the contract's signature
        """Allocate the scratch picture."""
        from stages.fitting import Fitter

        self._fitter = Fitter(self._model.preprocessing)

    def process(self, items: Sequence[Frame]) -> Sequence[Prepared]:
        """Return one `Prepared` for each frame, in order.

        Raises:
            RuntimeError: the stage is not open.
        """
        if self._fitter is None:
            raise RuntimeError(f"{self.name} is not open: call open() before process()")
        prepared = []
        for frame in items:
            tensor, letterbox = self._fitter.fit(frame.image)
            prepared.append(Prepared(frame, tensor, letterbox))
        return prepared

    def close(self) -> None:
        """Free the scratch picture."""
        self._fitter = None
