"""Where the files of models are: shipped with the program, pulled into a folder, or at a path.

What `--model` says is looked up in this order: a file at that path, a shipped model of that name, a
pulled one. Nothing is loaded or downloaded here. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.errors import ModelError
from pipeline.home import home_folder
from pipeline.problems import did_you_mean

if TYPE_CHECKING:
    from stages.backends.network import Networks

WEIGHTS: Final = Path(__file__).resolve().parent.parent / "models" / "weights"
"""Where the models lie that are shipped."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is said of a model that can be pulled or exported, whether or not it is here."""

    name: str
    task: str
    input_wh: tuple[int, int]
    parameters: int
    licence: str | None
    """SPDX identifier of the weights' licence; None where nobody has published any."""
    weights_url: str | None
    weights_here: bool
    """A file of that name is among the downloads; unchecked."""


def pulled_folder() -> Path:
    """Return where `models pull` puts the files of models."""
    return home_folder() / "models"


def pulled_file(name: str) -> Path:
    """Return where the file of a pulled model lies, or would lie."""
    return pulled_folder() / f"{name}.onnx"


def shipped_models() -> dict[str, Path]:
    """Return the files of the models that are shipped, by name."""
    return _models_in(WEIGHTS)


def pulled_models() -> dict[str, Path]:
    """Return the files of the models that were pulled, by name."""
    return _models_in(pulled_folder())


def resolve_model(name_or_path: str, networks: Callable[[], Networks] | None = None) -> Path:
    """Return the file that `--model` means. A folder of that name stands in nobody's way.

    Args:
        name_or_path: a path, or the name of a shipped or pulled model.
        networks: gives the models that can be pulled or exported; asked only where nothing was
            found, for the message.

    Raises:
        ModelError: there is none; the text says what there is and how to get one.
    """
    path = Path(name_or_path).expanduser()
    folder = path.is_dir()
    if path.exists() and not folder:
        return path
    found = shipped_models().get(name_or_path) or pulled_models().get(name_or_path)
    if found is None:
        known = None if networks is None else networks()
        raise ModelError(_not_found(name_or_path, known, folder=folder))
    return found


def _not_found(name: str, networks: Networks | None, *, folder: bool) -> str:
    if networks is not None and name in networks.names:
        pull = (
            f"`run.py models pull {name}` downloads its official weights and keeps it for every "
            f"later run; `run.py export {name}` writes a file of it, with other weights too"
            if name in networks.published
            else f"nobody has published weights of it; `run.py export {name} --weights FILE` "
            "writes a file of it with yours"
        )
        return (
            f"the model {name} is not here yet: {pull}; add --backend torch to run it in torch, "
            "without a file"
        )
    exportable = () if networks is None else tuple(networks.names)
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
