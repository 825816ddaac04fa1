"""What network and file answer: how `export` and `verify` run the two that they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from exporters.frames import pictures
from exporters.zoo import Entry

if TYPE_CHECKING:
    from torch import nn

    from exporters.certificate import Outcome, Run
    from stages.model import LoadedModel

Say = Callable[[str], None]
"""Told a line for the user."""

RUNTIMES: Final[Mapping[str, tuple[str, str]]] = {
    "onnx cpu": ("onnx", "cpu"),
    "openvino cpu": ("openvino", "cpu"),
    "onnx cuda": ("onnx", "cuda"),
}
"""What a file may be certified on, by name: backend and device. The first always is."""
FIRST_RUNTIME: Final = next(iter(RUNTIMES))
_SHOWN: Final = 12
"""Lines of a table of differences; the number of the others is said."""


def torch_run(network: nn.Module, names: tuple[str, ...]) -> Run:
    """Return a function that runs the network as a backend would."""
    import torch

    def run(batch: Any) -> dict[str, Any]:  # noqa: ANN401 - NumPy arrays
        with torch.no_grad():
            values = network(torch.from_numpy(np.ascontiguousarray(batch)))
        several = (values,) if isinstance(values, torch.Tensor) else values
        return {name: value.numpy() for name, value in zip(names, several, strict=True)}

    return run


def load(path: Path, batch: int = 1, runtime: str = FIRST_RUNTIME) -> LoadedModel:
    """Open a file as a run does.

    Raises:
        ModelError: it is no model, is not recognised, is not the one that was certified, or the
            runtime is not there.
    """
    from stages.infer import InferConfig
    from stages.model import load_model

    backend, device = RUNTIMES[runtime]
    config = {"model": str(path), "backend": backend, "device": device, "batch": batch}
    return load_model(InferConfig.model_validate(config), lambda _: None)


def compare(
    path: Path, entry: Entry, run: Run, frames: str | None, runtime: str = FIRST_RUNTIME
) -> Outcome:
    """Compare a float32 file, run by `runtime`, with its network on the pictures of `frames`."""
    from exporters.certificate import BATCHES, certify

    model = load(path, max(BATCHES) if entry.dynamic_batch else 1, runtime)
    try:
        return certify(
            run,
            model,
            pictures(frames),
            dynamic_batch=entry.dynamic_batch,
            dynamic_size=entry.dynamic_size,
        )
    finally:
        model.close()


def table(problems: Sequence[str]) -> str:
    """Return the first lines, and how many more there are."""
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    more = len(problems) - _SHOWN
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
