"""The contract of what runs a graph: few members, no knowledge of pictures, boxes or decoders.

A backend is passive. It may be opened on one thread and run on another, but only one thread uses it
at a time. Arrays that `run` returns belong to the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
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
        """Return what runs the graph, for the report.

        Keys: name, requested (the device), device, provider, reason (of device and backend),
        fallback (bool: something else was asked for), threads (None off the CPU).
        """

    @abstractmethod
    def close(self) -> None:
        """Release the graph. Idempotent."""


def check_file(path: Path) -> None:
    """Raise ModelError where `path` is no file that can be read, or an empty one."""
    if not path.exists():
        raise ModelError(f"there is no model file {path}: check the path")
    if path.is_dir():
        raise ModelError(f"{path} is a directory: give the .onnx file itself")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise ModelError(f"the model file {path} is empty (0 bytes): fetch or export it again")


def check_tensor(file_name: str, want: TensorInfo, tensor: Array) -> None:
    """Raise ModelError where dtype or shape are not the input's; the text shows both."""
    if tensor.dtype.name != want.dtype:
        raise ModelError(
            f"{file_name}: input '{want.name}' takes {want.dtype}, "
            f"but was given {tensor.dtype.name}"
        )
    fits = len(tensor.shape) == len(want.shape) and all(
        asked is None or asked == given
        for asked, given in zip(want.shape, tensor.shape, strict=True)
    )
    if not fits:
        shape = ["any" if size is None else size for size in want.shape]
        raise ModelError(
            f"{file_name}: input '{want.name}' takes shape {shape}, "
            f"but was given {list(tensor.shape)}"
        )
