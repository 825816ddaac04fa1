"""Where the files of models are: shipped with the program, pulled into a folder, or at a path.

What `--model` says is looked up in this order: a file at that path, a shipped model of that name, a
pulled one. Nothing is loaded or downloaded here. Any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import ModelError
from pipeline.problems import did_you_mean

WEIGHTS: Final = Path(__file__).resolve().parent.parent / "models" / "weights"
"""Where the models lie that are shipped."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is said of a model that can be pulled or exported, whether or not it is here."""

    name: str
    task: str
    input_wh: tuple[int, int]
    parameters: int
    licence: str
    """SPDX identifier of the weights' licence."""
    weights_url: str
    weights_here: bool
    """A file of that name is among the downloads; unchecked."""


def home() -> Path:
    """Return where downloads and pulled models are kept: RACKFOCUS_HOME, else
    ~/.cache/rackfocus."""
    chosen = os.environ.get("RACKFOCUS_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "rackfocus"


def pulled_folder() -> Path:
    """Return where `models pull` puts the files of models."""
    return home() / "models"


def pulled_file(name: str) -> Path:
    """Return where the file of a pulled model lies, or would lie."""
    return pulled_folder() / f"{name}.onnx"


def shipped_models() -> dict[str, Path]:
    """Return the files of the models that are shipped, by name."""
    return _models_in(WEIGHTS)


def pulled_models() -> dict[str, Path]:
    """Return the files of the models that were pulled, by name."""
    return _models_in(pulled_folder())


def resolve_model(name_or_path: str, exportable: Callable[[], Iterable[str]] = tuple) -> Path:
    """Return the file that `--model` means. A folder of that name stands in nobody's way.

    Args:
        name_or_path: a path, or the name of a shipped or pulled model.
        exportable: gives the names that can be pulled; asked only where nothing was found.

    Raises:
        ModelError: there is none; the text says what there is and how to get one.
    """
    path = Path(name_or_path).expanduser()
    folder = path.is_dir()
    if path.exists() and not folder:
        return path
    found = shipped_models().get(name_or_path) or pulled_models().get(name_or_path)
    if found is None:
        raise ModelError(_not_found(name_or_path, folder=folder, exportable=tuple(exportable())))
    return found


def _not_found(name: str, *, folder: bool, exportable: tuple[str, ...]) -> str:
    if name in exportable:
        return (
            f"the model {name} is not here yet: `run.py models pull {name}` downloads its official "
            f"weights and keeps it for every later run; `run.py export {name}` writes a file of "
            "it, with other weights too"
        )
    shipped, pulled = shipped_models(), pulled_models()
    near = did_you_mean(name, (*shipped, *pulled, *exportable))
    there = f"shipped models: {', '.join(shipped) or 'none'}"
    there += f"; pulled: {', '.join(pulled)}" if pulled else ""
    what = f"{name} is a folder" if folder else f"there is no model file {name}"
    also = ", or the name of one that `run.py list models` shows" if exportable else ""
    return (
        f"{what}, nor a model of that name{near} ({there}); give --model the path of an .onnx "
        f"file{also}"
    )


def _models_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.onnx")) if path.is_file()}
