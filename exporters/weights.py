"""A network with the weights that were asked for: published, from a file, or random.

Checkpoints are read as tensors only: a file that wants to run code is refused. One thread; seeds
torch's global generator.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from exporters.download import Progress, cached, fetch
from exporters.frames import pictures
from exporters.zoo import Entry
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

OFFICIAL: Final = "official"
RANDOM: Final = "random"
SEED: Final = 0
_UNKNOWN_LICENCE: Final = "unknown: weights of the user"
_OWN_LICENCE: Final = "Apache-2.0"
_LEAST_DEVIATION: Final = 1e-3
"""Below this a layer does not depend on the picture, and is not blown up."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights are from."""

    kind: str
    """official, random, or file."""
    licence: str
    url: str | None = None
    file_sha256: str | None = None

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
        entry: the model.
        weights: `official`, `random` or the path of a state dict.
        progress: told about a download.
        download: whether `official` may use the network; else the cache only.

    Raises:
        ModelError: weights that cannot be had, read or loaded into this model.
    """
    import torch

    if weights == OFFICIAL:
        published = entry.official
        path = (
            fetch(published.url, published.sha256, progress=progress)
            if download
            else cached(published.url, published.sha256)
        )
        if path is None:
            raise ModelError(f"{published.url} is not in the cache; --weights official fetches it")
        source = Source(OFFICIAL, published.licence, published.url, _sha256(path))
    elif weights != RANDOM:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ModelError(
                f"there is no file {weights}: --weights takes FILE, official or random"
            )
        source = Source("file", _UNKNOWN_LICENCE, None, _sha256(path))
    else:
        path, source = None, Source(RANDOM, _OWN_LICENCE)
    state = None if path is None else read_state(path)
    with _own_random_numbers(SEED):
        module, _, function = entry.builder.partition(":")
        network: nn.Module = getattr(import_module(module), function)(
            entry.preprocessing.size_wh, **entry.arguments
        )
        network.eval().requires_grad_(requires_grad=False)
        if state is None:
            _enliven(network, entry)
    if path is not None and state is not None:
        _load(network, state, entry, path)
    bad = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(
            f"the weights of {entry.name} hold values that are not finite, first in {bad[0]}: the "
            "file is damaged, or its training went wrong"
        )
    return network, source


def read_state(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name; `model` or `state_dict` inside it is unpacked.

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
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"{path} holds no state dict, but {type(state).__name__}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict: not all its values are tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _load(network: nn.Module, state: Mapping[str, Any], entry: Entry, path: Path) -> None:
    import torch

    inner: nn.Module = network.inner
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
        raise ModelError(f"{path} does not fit {entry.name}: {'; '.join([*told, *shapes[:3]])}")
    inner.load_state_dict(dict(state), strict=False)
    # Checkpoints of frozen batch normalisation have no counters, and may have another epsilon.
    for name, module in inner.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and f"{name}.{counters}" not in state:
            module.eps = entry.frozen_eps


def _enliven(network: nn.Module, entry: Entry) -> None:
    """Make outputs depend on the picture: statistics of batch normalisation from real pictures,
    and last layers whose outputs spread so that some things are found."""
    import torch

    from stages.fitting import Fitter

    fitter = Fitter(entry.preprocessing)
    images = [p.image for p in pictures(None)]
    batch = torch.from_numpy(np.stack([fitter.fit(i)[0] for i in images]).astype(np.float32))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.train()
            norm.momentum = None  # the plain mean over what has been seen
            norm.reset_running_stats()
            # Half a deviation around half a deviation: activations stay nearly linear. Untrained
            # layers that bend fully are chaotic together: rounding grew 5000-fold in YOLOX-nano.
            norm.weight.fill_(0.5)
            norm.bias.fill_(0.5)
        for one in _runs(batch, entry):
            network(one)
        for norm in norms:
            norm.eval()
        with _moments(network, entry.lively) as moments:
            for one in _runs(batch, entry):
                network(one)
        for name, module in network.named_modules():
            if name not in moments:
                continue
            mean, deviation = moments[name].result()
            goal_mean, goal_deviation = next(
                goal for pattern, goal in entry.lively.items() if fnmatch(name, pattern)
            )
            # One gain for the layer: its stillest channels would be blown up, and rounding with
            # them.
            gain = goal_deviation / float(deviation.median().clamp(min=_LEAST_DEVIATION))
            module.weight.mul_(gain)
            module.bias.copy_((module.bias - mean) * gain + goal_mean)


def _runs(batch: Any, entry: Entry) -> Sequence[Any]:  # noqa: ANN401 - torch.Tensor, imported late
    return [batch] if entry.dynamic_batch else list(batch.split(1))


class _Moments:
    """Mean and deviation of each channel over all calls of a layer."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def see(self, module: Any, inputs: object, output: Any) -> None:  # noqa: ANN401, ARG002 - torch's hook
        channels = output.transpose(0, 1) if output.ndim == 4 else output.transpose(0, -1)
        flat = channels.reshape(len(channels), -1).double()
        self._count += flat.shape[1]
        self._sum = self._sum + flat.sum(1)
        self._squares = self._squares + flat.square().sum(1)

    def result(self) -> tuple[Any, Any]:
        mean = self._sum / self._count
        return mean, (self._squares / self._count - mean.square()).clamp(min=0).sqrt()


@contextmanager
def _moments(network: nn.Module, patterns: Mapping[str, object]) -> Iterator[dict[str, _Moments]]:
    import torch

    seen: dict[str, _Moments] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and any(
            map(partial(fnmatch, name), patterns)
        ):
            seen[name] = _Moments()
            hooks.append(module.register_forward_hook(seen[name].see))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


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
