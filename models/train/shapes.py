"""The recipe of `models/weights/shapes.onnx`: a small YOLO trained on drawn scenes, on the CPU.

Everything that decides the result is here and in `shapes_data`; `models/weights/README.md` has what
it reached. One process, one thread of ours; torch uses as many cores as it is told.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.train.losses import Loss, detection_loss
from models.train.shapes_data import MODEL_WH, ShapesData, batch, draw_training_set
from models.yolo import Yolo, YoloConfig
from stages.sources.scenes import CLASS_NAMES

NETWORK = YoloConfig(
    classes=len(CLASS_NAMES),
    channels=(16, 32, 48, 64, 64),
    depths=(1, 2, 2, 1),
    neck_depth=1,
    head_channels=32,
)
"""0.43 million parameters: 1.7 MB as float32."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training run."""

    steps: int = 5500
    batch_size: int = 16
    pictures: int = 6000
    learning_rate: float = 2.5e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    ema_decay: float = 0.999
    fine_share: float = 0.08
    """The last share of the steps computes in float32; before, the network runs in bfloat16."""
    minutes: float | None = None
    """Time limit: the schedule is hurried so that it completes by then. None: no limit, and the
    result follows from the seed alone."""
    seed: int = 0
    threads: int = 2


def build(seed: int = 0, config: YoloConfig = NETWORK) -> Yolo:
    """Return the untrained network; its first weights follow from `seed`."""
    torch.manual_seed(seed)
    return Yolo(config)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    config: YoloConfig = NETWORK,
    data: ShapesData | None = None,
    say: Callable[[str], None] = print,
) -> Yolo:
    """Train from scratch, or from `folder/checkpoint.pt` where there is one.

    Args:
        recipe: see there.
        folder: gets `checkpoint.pt` every 250 steps and `log.csv`, a line every 50.
        config: which network.
        data: pictures to use instead of drawing `recipe.pictures`.
        say: gets a line now and then.

    Returns:
        The averaged (EMA) network in evaluation mode.
    """
    torch.set_num_threads(recipe.threads)
    folder.mkdir(parents=True, exist_ok=True)
    wall_0, cpu_0 = time.monotonic(), time.process_time()
    if data is None:
        data = draw_training_set(recipe.pictures, recipe.seed)
        say(f"drew {len(data)} pictures in {time.monotonic() - wall_0:.0f} s")
    run = _Run(recipe, build(recipe.seed, config))
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
        say(f"continuing at step {run.step}")
    # The time that earlier, interrupted parts of this run took counts as well.
    wall_0, cpu_0 = wall_0 - run.wall_s, cpu_0 - run.cpu_s
    rows = []
    while (progress := run.progress(time.monotonic() - wall_0)) < 1:
        loss = run.advance(data, progress)
        run.wall_s, run.cpu_s = time.monotonic() - wall_0, time.process_time() - cpu_0
        if run.step % 50 == 0 or run.step == 1:
            rows.append(run.describe(loss))
        if run.step % 250 == 0:
            run.save(checkpoint)
            _append(folder / "log.csv", rows)
            say(" ".join(f"{name}={value}" for name, value in rows[-1].items()))
            rows = []
    run.save(checkpoint)
    _append(folder / "log.csv", rows)
    return run.average.eval()


class _Run:
    """A training run between two steps: all that a checkpoint has to hold."""

    def __init__(self, recipe: Recipe, network: Yolo) -> None:
        self.recipe = recipe
        self.network = network.to(memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(network).requires_grad_(requires_grad=False)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        )
        self.step = 0
        self.wall_s = self.cpu_s = 0.0

    def progress(self, wall_s: float) -> float:
        """How much of the schedule is over, 0..1, by steps or by the clock if that is further."""
        done = self.step / self.recipe.steps
        if self.recipe.minutes is not None:
            done = max(done, wall_s / (60 * self.recipe.minutes))
        return done

    def advance(self, data: ShapesData, progress: float) -> Loss:
        """Make one step."""
        recipe = self.recipe
        rate = recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / recipe.warmup_steps)
        # One generator a step: a continued run sees the batches that an unbroken one would.
        rng = np.random.default_rng((recipe.seed, self.step))
        images, boxes, kinds, real = batch(
            data, rng.choice(len(data), min(recipe.batch_size, len(data)), replace=False), rng
        )
        pictures = torch.from_numpy(images).to(memory_format=torch.channels_last)
        coarse = progress < 1 - recipe.fine_share
        with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
            rows = self.network(pictures)
        loss = detection_loss(
            rows.float(),
            torch.from_numpy(boxes),
            torch.from_numpy(kinds),
            torch.from_numpy(real),
            (MODEL_WH[1], MODEL_WH[0]),
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        decay = recipe.ema_decay * (1 - math.exp(-self.step / 200))
        with torch.no_grad():
            new = self.network.state_dict()
            for name, value in self.average.state_dict().items():
                if value.dtype.is_floating_point:
                    value.lerp_(new[name], 1 - decay)
                else:
                    value.copy_(new[name])
        return loss

    def describe(self, loss: Loss) -> dict[str, str]:
        """Return a line of the log."""
        return {
            "step": str(self.step),
            "loss": f"{float(loss.total.detach()):.3f}",
            "box": f"{loss.box:.4f}",
            "objectness": f"{loss.objectness:.4f}",
            "classes": f"{loss.classes:.4f}",
            "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.2e}",
            "wall_s": f"{self.wall_s:.0f}",
            "cpu_s": f"{self.cpu_s:.0f}",
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "recipe": asdict(self.recipe),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "wall_s": self.wall_s,
                "cpu_s": self.cpu_s,
            },
            part,
        )
        os.replace(part, path)  # noqa: PTH105 - the same as Path.replace, and atomic

    def load(self, path: Path) -> None:
        """Read a checkpoint of the same network."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.wall_s, self.cpu_s = state["step"], state["wall_s"], state["cpu_s"]


def _append(path: Path, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
