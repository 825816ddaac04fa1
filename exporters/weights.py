"""A network with the weights that were asked for: published, from a file, or random.

Checkpoints are read as tensors only: a file that wants to run code is refused. One thread; seeds
torch's global generator.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporters.download import Progress, cached, fetch
from exporters.entry import Entry
from exporters.lively import enliven
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

OFFICIAL: Final = "official"
RANDOM: Final = "random"
SEED: Final = 0
_UNKNOWN_LICENCE: Final = "unknown: weights of the user"
_OWN_LICENCE: Final = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights are from."""

    kind: str
    """official, random, or file."""
    licence: str
    url: str | None = None
    file_sha256: str | None = None
    class_names: tuple[str, ...] = ()
    """Of all that the network scores: the checkpoint's, or the entry's."""

    def facts(self) -> Mapping[str, object]:
        """Return what the exported file says about it."""
        facts: dict[str, object] = {"weights": self.kind}
        if self.kind == RANDOM:
            facts["seed"] = SEED
        if self.url is not None:
            facts["url"] = self.url
        if self.file_sha256 is not None:
            facts["file_sha256"] = self.file_sha256
        return facts


def build(
    entry: Entry, weights: str, *, progress: Progress | None = None, download: bool = True
) -> tuple[nn.Module, Source]:
    """Return the network in evaluation mode and where its weights are from.

    Args:
        entry: the model; a checkpoint that names its classes gets a network for as many.
        weights: `official`, `random` or the path of a checkpoint.
        progress: told about a download.
        download: whether `official` may use the network; else the cache only.

    Raises:
        ModelError: weights that cannot be had, read or loaded into this model.
    """
    import torch

    path, source = _find(entry, weights, progress, download=download)
    checkpoint = None if path is None else read_checkpoint(path)
    if checkpoint is not None and checkpoint.class_names:
        entry = entry.named(checkpoint.class_names)
    with _own_random_numbers(SEED):
        module, _, function = entry.builder.partition(":")
        network: nn.Module = getattr(import_module(module), function)(
            entry.preprocessing.size_wh, classes=entry.network_classes, **entry.arguments
        )
        network.eval().requires_grad_(requires_grad=False)
        if checkpoint is None:
            enliven(network, entry)
    if path is not None and checkpoint is not None:
        _load(network, checkpoint, entry, path)
    bad = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(
            f"the weights of {entry.name} hold values that are not finite, first in {bad[0]}: the "
            "file is damaged, or its training went wrong"
        )
    return network, replace(source, class_names=entry.class_names)


def _find(
    entry: Entry, weights: str, progress: Progress | None, *, download: bool
) -> tuple[Path | None, Source]:
    """Return the checkpoint's file, None for random weights, and where it is from."""
    if weights == RANDOM:
        return None, Source(RANDOM, _OWN_LICENCE)
    if weights != OFFICIAL:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ModelError(
                f"there is no file {weights}: --weights takes FILE, official or random"
            )
        return path, Source("file", _UNKNOWN_LICENCE, None, _sha256(path))
    published = entry.official
    if published is None:
        raise ModelError(
            f"nobody has published weights of {entry.name}: give --weights FILE (a checkpoint of "
            "yours), or --weights random to try the path"
        )
    found = (
        fetch(published.url, published.sha256, progress=progress)
        if download
        else cached(published.url, published.sha256)
    )
    if found is None:
        raise ModelError(f"{published.url} is not in the cache; --weights official fetches it")
    return found, Source(OFFICIAL, published.licence, published.url, _sha256(found))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file of weights holds."""

    state: Mapping[str, Any]
    """Tensors by name."""
    class_names: tuple[str, ...] = ()
    """What the network was trained for; empty where the file does not say it."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors of a checkpoint by name, and the names of its classes.

    A plain state dict, or a mapping with the state dict as `model` or `state_dict` and, if its
    classes are not those of the published weights, their names as `class_names`.

    Raises:
        ModelError: no checkpoint, or one with more than tensors and plain values in it.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is refused: it is no checkpoint, or holds objects that run code when loaded; "
            "save it again as a state dict (torch.save(network.state_dict(), FILE))"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be read as a checkpoint: {error}") from error
    class_names: tuple[str, ...] = ()
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            class_names = _names(path, state.get("class_names"))
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"{path} holds no state dict, but {type(state).__name__}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict: not all its values are tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    return Checkpoint(tensors, class_names)


def _names(path: Path, given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or not all(isinstance(name, str) and name for name in given)
        or not given
    ):
        raise ModelError(f"{path}: class_names must be a list of names, got {given!r:.200}")
    return tuple(given)


def _load(network: nn.Module, checkpoint: Checkpoint, entry: Entry, path: Path) -> None:
    import torch

    inner: nn.Module = network.inner
    state = {
        name: value
        for name, value in checkpoint.state.items()
        if not any(fnmatch(name, pattern) for pattern in entry.unused)
    }
    counters = "num_batches_tracked"
    own = inner.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(counters)]
    surplus = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or surplus or shapes:
        told = [f"{len(missing)} tensors are missing, such as {missing[0]}"] if missing else []
        told += [f"{len(surplus)} are unknown, such as {surplus[0]}"] if surplus else []
        text = f"{path} does not fit {entry.name}: {'; '.join([*told, *shapes[:3]])}"
        if shapes:
            whose = (
                "its class_names say" if checkpoint.class_names else "the published weights have"
            )
            text += (
                f". Expected are the {entry.network_classes} classes that {whose}, any background "
                "included; for others save the file with their names: torch.save({'model': "
                "network.state_dict(), 'class_names': ['cat', 'dog']}, FILE)"
            )
        raise ModelError(text)
    inner.load_state_dict(state, strict=False)
    # Checkpoints of frozen batch normalisation have no counters, and may have another epsilon.
    for name, module in inner.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and f"{name}.{counters}" not in state:
            module.eps = entry.frozen_eps


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: its sums, so random weights too, are then the same on every run,
    and small networks are no slower (with two threads on two busy cores, eight times slower)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Seed torch, and give the caller's random numbers back afterwards."""
    import torch

    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
