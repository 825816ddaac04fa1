"""Random weights with which a network sees something: for trying exports without a download.

Untrained networks give the same answer to every picture; a comparison of two runtimes on them shows
nothing. One thread; uses torch's global generator as the caller has seeded it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from exporters.entry import Entry
from exporters.frames import pictures

if TYPE_CHECKING:
    from torch import nn

_LEAST_DEVIATION: Final = 1e-3
"""Below this a layer does not depend on the picture, and is not blown up."""
_CHOOSES: Final = ".cls_score"
"""End of the names of layers that say what each box is, the background first."""
_FAR: Final = 50.0
"""A logit that no other comes up to."""
_PASSES: Final = 2
"""Layers for masks and keypoints see nothing before the layer that chooses boxes is spread."""


def enliven(network: nn.Module, entry: Entry) -> None:
    """Change random weights so that outputs depend on the picture and some things are found.

    Batch normalisation gets its statistics from pictures of the synthetic scene, and the layers of
    `Entry.lively` are scaled so that their outputs spread.

    Args:
        network: of `entry`, with random weights, in evaluation mode; changed in place.
        entry: says which layers shall spread, and how far.
    """
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
        waiting: dict[str, Any] = dict(network.named_modules())
        for choosing in (m for name, m in waiting.items() if name.endswith(_CHOOSES)):
            # Nothing is found until it is spread: masks and keypoints of noise take long.
            choosing.bias[0] += _FAR
        for one in _runs(batch, entry):
            network(one)
        for norm in norms:
            norm.eval()
        for _ in range(_PASSES):
            with _moments(waiting, entry.lively) as moments:
                if not moments:
                    break
                for one in _runs(batch, entry):
                    network(one)
            for name, seen in moments.items():
                if seen.count:
                    module = waiting.pop(name)
                    _spread(module, seen, _goal(name, entry.lively))
                    if name.endswith(_CHOOSES):
                        module.bias[0] += entry.lively_lead


def _spread(module: Any, seen: _Moments, goal: tuple[float, float]) -> None:  # noqa: ANN401 - a layer
    """Bring the layer's outputs to mean and deviation of `goal`."""
    mean, deviation = seen.result()
    # One gain for the layer: its stillest channels would be blown up, and rounding with them.
    gain = goal[1] / float(deviation.median().clamp(min=_LEAST_DEVIATION))
    module.weight.mul_(gain)
    module.bias.copy_((module.bias - mean) * gain + goal[0])


def _goal(name: str, lively: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    return next(goal for pattern, goal in lively.items() if fnmatch(name, pattern))


def _runs(batch: Any, entry: Entry) -> Sequence[Any]:  # noqa: ANN401 - torch.Tensor, imported late
    return [batch] if entry.dynamic_batch else list(batch.split(1))


class _Moments:
    """Mean and deviation of each channel over all calls of a layer."""

    def __init__(self) -> None:
        self.count = 0
        """Values a channel."""
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def see(self, module: Any, inputs: object, output: Any) -> None:  # noqa: ANN401, ARG002 - torch's hook
        channels = output.transpose(0, 1) if output.ndim == 4 else output.transpose(0, -1)
        flat = channels.reshape(len(channels), -1).double()
        self.count += flat.shape[1]
        self._sum = self._sum + flat.sum(1)
        self._squares = self._squares + flat.square().sum(1)

    def result(self) -> tuple[Any, Any]:
        mean = self._sum / self.count
        return mean, (self._squares / self.count - mean.square()).clamp(min=0).sqrt()


@contextmanager
def _moments(
    modules: Mapping[str, nn.Module], patterns: Mapping[str, object]
) -> Iterator[dict[str, _Moments]]:
    import torch

    seen: dict[str, _Moments] = {}
    hooks = []
    kinds = torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear
    for name, module in modules.items():
        if isinstance(module, kinds) and any(map(partial(fnmatch, name), patterns)):
            seen[name] = _Moments()
            hooks.append(module.register_forward_hook(seen[name].see))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
