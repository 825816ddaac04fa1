"""Packages that exporting needs and a run does not. Pure apart from importing them."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from typing import Final

from pipeline.errors import UsageError

TRACING: Final = ("torch", "torchvision", "onnx", "onnxscript")
"""To export from torch."""
CONVERTING: Final = ("onnx",)
"""To change a file that is there."""


def missing(needed: Sequence[str]) -> str | None:
    """Return the first package that is not installed, or None."""
    for name in needed:
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return None


def need(needed: Sequence[str]) -> None:
    """Raise a UsageError with the remedy where one of them is not installed."""
    lacking = missing(needed)
    if lacking is not None:
        raise UsageError(
            f'export needs {lacking}, which is not installed: pip install -e ".[torch]"'
        )


def versions(of: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of these packages."""
    found = {name: str(importlib.import_module(name).__version__) for name in of}
    return {"python": platform.python_version(), **found}
