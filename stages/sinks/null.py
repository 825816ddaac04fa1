"""The sink that keeps nothing: for measuring, and for runs whose product is the report.

The sink's thread runs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Config
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink


class NullSinkConfig(Config):
    """`null` has no options."""


class NullSink(Sink):
    """Counts frames and drops them."""

    def __init__(self, config: NullSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._frames = 0

    def open(self, context: RunContext) -> None:  # noqa: ARG002 - the contract's signature
        """Start counting from zero."""
        self._frames = 0

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Count the frames."""
        self._frames += len(items)
        return ()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return the count."""
        return [OutputInfo("null", self._frames)]
