"""The recipe `instances`: Mask R-CNN for your own pictures, from random weights, on the CPU.

The network is the one that `export maskrcnn-mobilenet` writes, built by the same function and fed
the same input. One process, one thread of ours; torch uses as many cores as it is told.
"""

from __future__ import annotations

import csv
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList

from exporters.zoo import find
from models.torchvision_raw import maskrcnn_mobilenet
from models.train.instances_data import InstancesData, Sample, flipped
from models.train.instances_result import recalibrate, save_whole, stack
from pipeline.errors import UsageError

MODEL: Final = "maskrcnn-mobilenet"
"""The exportable model that is trained."""
PREPROCESSING: Final = find(MODEL).preprocessing
"""How pictures become inputs, in training and in the exported file alike."""

_CLIP: Final = 10.0
"""Longest gradient: the first steps of an untrained box head are wild."""
_POSITIVE_SHARE: Final = 0.25
"""Of the boxes that the heads learn from (torchvision's)."""
_LOG_EVERY: Final = 10
_SAVE_EVERY: Final = 25


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training run."""

    steps: int = 150
    batch_size: int = 6
    learning_rate: float = 1e-3
    warmup_steps: int = 30
    weight_decay: float = 1e-4
    boxes: int = 32
    """Boxes of a picture that the heads learn from in a step; a mask costs 0.9 GFLOP forwards, so
    torchvision's 512 would take ten times as long."""
    flips: bool = True
    """Half of the pictures are seen mirrored."""
    seed: int = 0
    threads: int = 2


def build(recipe: Recipe, size_wh: tuple[int, int] = PREPROCESSING.size_wh) -> nn.Module:
    """Return the untrained network for one class and the background; see `Recipe.seed`."""
    torch.manual_seed(recipe.seed)
    network: nn.Module = maskrcnn_mobilenet(size_wh, classes=2)
    sampler = BalancedPositiveNegativeSampler(recipe.boxes, _POSITIVE_SHARE)
    network.inner.roi_heads.fg_bg_sampler = sampler
    return network


def losses(network: nn.Module, samples: list[Sample]) -> dict[str, Tensor]:
    """Return torchvision's five losses of a batch, by name; the network is in training mode.

    Goes through the parts that the exported network consists of and leaves out torchvision's own
    resizing, which is not exported.
    """
    inner = network.inner
    images = stack(samples)
    sizes = [tuple(images.shape[-2:])] * len(samples)
    targets = [
        {
            "boxes": torch.from_numpy(sample.xyxy),
            "labels": torch.ones(len(sample.xyxy), dtype=torch.int64),
            "masks": half_a_pixel_on(torch.from_numpy(sample.masks)),
        }
        for sample in samples
    ]
    features = inner.backbone(images)
    proposals, first = inner.rpn(ImageList(images, sizes), features, targets)
    _, second = inner.roi_heads(features, proposals, sizes, targets)
    return {**first, **second}


def half_a_pixel_on(masks: Tensor) -> Tensor:
    """Return masks (n, h, w) moved right and down by half a pixel.

    torchvision cuts what a mask shall be with `roi_align(aligned=False)`, for which the centre of
    pixel k lies at k instead of k + 0.5: outlines would be learnt half a pixel left and up.
    """
    return functional.avg_pool2d(functional.pad(masks[:, None], (1, 0, 1, 0)), 2, stride=1)[:, 0]


def train(
    recipe: Recipe,
    data: InstancesData,
    folder: Path,
    *,
    say: Callable[[str], None] = print,
) -> nn.Module:
    """Train from scratch, or from `folder/checkpoint.pt` where there is one of the same recipe.

    Args:
        recipe: see there.
        data: the pictures.
        folder: gets `checkpoint.pt` every 25 steps and `log.csv`, a line every 10.
        say: gets those lines.

    Returns:
        The network in evaluation mode, its normalisation measured over all pictures.

    Raises:
        UsageError: the checkpoint is of another recipe, or no checkpoint.
        SourceError: a picture or mask file is broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _threads(recipe.threads):
        run = _Run(recipe, data)
        checkpoint = folder / "checkpoint.pt"
        if checkpoint.exists():
            run.load(checkpoint)
            say(f"continuing at step {run.step} with {checkpoint}")
        # The time that earlier, interrupted parts of this run took counts as well.
        started = time.monotonic() - run.wall_s
        while run.step < recipe.steps:
            values = run.advance()
            run.wall_s = time.monotonic() - started
            if run.step % _LOG_EVERY == 0 or run.step in (1, recipe.steps):
                row = run.describe(values)
                _append(folder / "log.csv", row)
                say(" ".join(f"{name}={value}" for name, value in row.items()))
            if run.step % _SAVE_EVERY == 0 or run.step == recipe.steps:
                run.save(checkpoint)
        recalibrate(run.network, data, recipe.batch_size)
    return run.network.eval()


class _Run:
    """A training run between two steps: all that a checkpoint has to hold."""

    def __init__(self, recipe: Recipe, data: InstancesData) -> None:
        self.recipe = recipe
        self.data = data
        self.network = build(recipe, data.preprocessing.size_wh)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,  # 12 ms a step instead of 87 (22 million parameters, one core)
        )
        self.step = 0
        self.wall_s = 0.0

    def advance(self) -> dict[str, Tensor]:
        """Make one step; return the losses before it."""
        recipe, data = self.recipe, self.data
        progress = self.step / recipe.steps
        rate = recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / recipe.warmup_steps)
        # Seeded by the step: a continued run sees the batches that an unbroken one would.
        rng = np.random.default_rng((recipe.seed, self.step))
        torch.manual_seed(int(rng.integers(1 << 62)))
        rows = rng.choice(len(data), min(recipe.batch_size, len(data)), replace=False)
        samples = [data[int(k)] for k in rows]
        if recipe.flips:
            samples = [flipped(s) if rng.random() < 0.5 else s for s in samples]
        self.network.train()
        values = losses(self.network, samples)
        total = torch.stack(list(values.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.optimizer.step()
        self.step += 1
        return {name.removeprefix("loss_"): value.detach() for name, value in values.items()}

    def describe(self, values: Mapping[str, Tensor]) -> dict[str, str]:
        """Return a line of the log."""
        return {
            "step": str(self.step),
            "loss": f"{float(sum(values.values())):.3f}",
            **{name: f"{float(value):.4f}" for name, value in values.items()},
            "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.2e}",
            "wall_s": f"{self.wall_s:.0f}",
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            **self._identity(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "wall_s": self.wall_s,
        }
        save_whole(content, path)

    def load(self, path: Path) -> None:
        """Read a checkpoint of the same recipe and pictures."""
        try:
            state = torch.load(path, weights_only=True)
            theirs = {"recipe": dict(state["recipe"]), "pictures": state["pictures"]}
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
            raise UsageError(
                f"{path} is no checkpoint of this recipe ({type(e).__name__}): move it away, or "
                "give another --work"
            ) from e
        for name, value in self._identity().items():
            if theirs[name] != value:
                raise UsageError(
                    f"{path} is of another run: its {name} was {_short(theirs[name])}, now "
                    f"{_short(value)}. Give another --work, or remove it to begin anew"
                )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.wall_s = state["step"], state["wall_s"]

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        recipe = asdict(self.recipe)
        # Cores decide how long it takes, not what is computed.
        del recipe["threads"]
        return {"recipe": recipe, "pictures": [pair.picture.name for pair in self.data.pairs]}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _append(path: Path, row: Mapping[str, str]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
