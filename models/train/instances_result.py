"""What a trained `instances` network is worth, and the file that it becomes.

Judged with torchvision's own pasting in the network's pixels: nothing of ours between the network
and the verdict. One thread; runs the network.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from models.train.instances_data import InstancesData, Sample

_SCORE: Final = 0.5
"""What counts as found when the result is shown."""
_IOU: Final = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """How the trained network does on its own training pictures, in the network's pixels."""

    objects: int
    found: int
    """Objects with a box of IoU above 0.5 and, in it, a mask of IoU above 0.5."""
    box_iou: float
    """Mean over all objects, of the best box."""
    mask_iou: float
    """Mean over all objects, of that box's mask."""
    surplus: int
    """Detections above score 0.5 that are no object's best."""

    def line(self) -> str:
        """Return it as text."""
        return (
            f"found {self.found} of {self.objects} objects of the training pictures, "
            f"{self.surplus} too many; mean IoU: boxes {self.box_iou:.3f}, masks "
            f"{self.mask_iou:.3f}"
        )


def recalibrate(network: nn.Module, data: InstancesData, batch_size: int) -> None:
    """Set the statistics of batch normalisation to those of all pictures under the final weights.

    The running means of training lag behind: after 30 steps on two pictures a network found nothing
    with them and everything without; after 150 steps on eight both did as well.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what has been seen
    network.train()
    with torch.no_grad():
        # Parts of nearly equal size, because each counts the same.
        for rows in np.array_split(np.arange(len(data)), math.ceil(len(data) / batch_size)):
            network.inner.backbone(stack([data[int(k)] for k in rows]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def evaluate(network: nn.Module, data: InstancesData) -> Found:
    """Return how well the network, in evaluation mode, finds the objects of the pictures."""
    boxes, masks, surplus = [], [], 0
    for index in range(len(data)):
        sample = data[index]
        with torch.no_grad():
            xyxy, _, scores, patches = network(stack([sample]))
        keep = scores >= _SCORE
        xyxy, patches = xyxy[keep], patches[keep]
        objects = len(sample.xyxy)
        if not objects or not len(xyxy):
            surplus += len(xyxy)
            boxes += [0.0] * objects
            masks += [0.0] * objects
            continue
        pasted = paste_masks_in_image(patches, xyxy, sample.tensor.shape[1:])[:, 0] > 0.5
        iou, best = box_iou(torch.from_numpy(sample.xyxy), xyxy).max(1)
        surplus += len(xyxy) - len(best[iou > _IOU].unique())
        truth = torch.from_numpy(sample.masks) > 0.5
        both = (truth & pasted[best]).sum((1, 2))
        either = (truth | pasted[best]).sum((1, 2)).clamp(min=1)
        boxes += iou.tolist()
        masks += (both / either).tolist()
    good = sum(b > _IOU and m > _IOU for b, m in zip(boxes, masks, strict=True))
    mean_box, mean_mask = float(np.mean(boxes)), float(np.mean(masks))
    return Found(len(boxes), good, mean_box, mean_mask, surplus)


def write(network: nn.Module, path: Path, class_name: str) -> None:
    """Write what `export maskrcnn-mobilenet --weights FILE` reads, whole or not at all."""
    content = {"model": network.inner.state_dict(), "class_names": [class_name]}
    save_whole(content, path)


def stack(samples: list[Sample]) -> Tensor:
    """Return the pictures as one batch, (b, 3, h, w) float32."""
    return torch.from_numpy(np.stack([sample.tensor for sample in samples]))


def save_whole(content: object, path: Path) -> None:
    """Write what torch.load reads, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    torch.save(content, part)
    os.replace(part, path)  # noqa: PTH105 - the same as Path.replace, and atomic
