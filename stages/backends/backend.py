"""The contract of what runs a graph: few members, no knowledge of pictures, boxes or decoders.

A backend is passive. It may be opened on one thread and run on another, but only one thread uses it
at a time. Arrays that `run` returns belong to the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stages.decoders.decoder import TensorInfo

Array = NDArray[np.generic]


class Backend(ABC):
    """Runs one graph on one device. `inputs`, `outputs` and `metadata` are valid after `open`."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    metadata: Mapping[str, str] = {}
    """The key-value pairs that the file carries about itself."""

    @abstractmethod
    def open(self) -> None:
        """Load the graph. Does nothing when it is open; open-close-open works.

        Raises:
            ModelError: the file is missing, unreadable or no graph.
            DeviceError: the device asked for is not there and no fallback is allowed.
        """

    @abstractmethod
    def run(self, tensor: Array) -> dict[str, Array]:
        """Return every output by name for one input batch. The input is not modified.

        Raises:
            ModelError: not open, shape or dtype do not fit (the text shows both), or the run
                failed.
        """

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return name, requested, device, provider, reason and fallback (bool) for the report."""

    @abstractmethod
    def close(self) -> None:
        """Release the graph. Idempotent."""
