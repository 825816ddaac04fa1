"""What a detector is trained towards: which cells answer for which boxes, and how wrong they are.

The assignment is SimOTA's (YOLOX, arXiv 2107.08430, section 2.1), for a whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.yolo import STRIDES, grid

_CENTRE_CELLS = 2.5
"""A cell may answer for a box whose centre is at most so many cells away (YOLOX)."""
_TOP = 10
"""A box gets as many cells as the IoUs of its best `_TOP` candidates add up to (YOLOX)."""
_BOX_WEIGHT = 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch's loss and its parts, each a mean over the assigned cells."""

    total: Tensor
    box: float
    objectness: float
    classes: float
    assigned: int


def pair_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of boxes (..., 4) xyxy that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    union = (area_a + area_b - both).clamp(min=1e-6)
    iou = both / union
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    around = hull.clamp(min=0).prod(-1).clamp(min=1e-6)
    return iou, iou - (around - union) / around


def cell_centres(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (n, 2) centres in input pixels and (n,) strides of a (height, width) input's cells."""
    centres, strides = [], []
    for stride in STRIDES:
        cells = grid(height // stride, width // stride).to(device, torch.float32)
        centres.append((cells + 0.5) * stride)
        strides.append(torch.full((len(cells),), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


@torch.no_grad()
def assign(
    xyxy: Tensor,
    logits: Tensor,
    boxes: Tensor,
    kinds: Tensor,
    real: Tensor,
    centres: Tensor,
    strides: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the cells that answer for each box.

    Args:
        xyxy: (b, n, 4) predicted boxes.
        logits: (b, n, 1 + c) objectness and classes.
        boxes: (b, g, 4) true boxes; `kinds` (b, g) their classes, `real` (b, g) false where
            a row only fills up.
        centres: (n, 2) of the cells; `strides` (n,).

    Returns:
        Which cells are assigned (b, n) bool; to which box (b, n) int64; the IoU with it (b, n).
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    apart = (centres - middle[:, :, None]).abs().amax(-1)
    near = apart < _CENTRE_CELLS * strides
    inside = (
        torch.cat((centres - boxes[:, :, None, :2], boxes[:, :, None, 2:] - centres), -1).amin(-1)
        > 0
    )
    possible = (near | inside) & real[..., None]
    iou, _ = pair_iou(boxes[:, :, None], xyxy[:, None])
    iou = torch.where(possible, iou, 0.0)
    # The class part, -log(sqrt(objectness x class)) for the true class alone.
    chance = (logits[..., :1].sigmoid() * logits[..., 1:].sigmoid()).clamp(1e-8, 1).sqrt()
    own = chance.transpose(1, 2).gather(1, kinds[..., None].expand(-1, -1, chance.shape[1]))
    cost = -own.log() - 3 * (iou + 1e-8).log() + 1e5 * ~(near & inside) + 1e8 * ~possible
    wanted = iou.topk(_TOP, -1).values.sum(-1).int().clamp(min=1)
    best = cost.topk(_TOP, -1, largest=False)
    taken = (torch.arange(_TOP, device=cost.device) < wanted[..., None]) & (best.values < 1e7)
    chosen = torch.zeros_like(possible).scatter_(2, best.indices, taken)
    # A cell that several boxes want goes to the one it suits best.
    owner = torch.where(chosen, cost, torch.inf).argmin(1)
    assigned = chosen.any(1)
    return assigned, owner, iou.gather(1, owner[:, None])[:, 0]


def detection_loss(
    rows: Tensor, boxes: Tensor, kinds: Tensor, real: Tensor, input_hw: tuple[int, int]
) -> Loss:
    """Compare a batch's predictions with the truth.

    Args:
        rows: (b, n, 5 + c) from `Yolo.forward`.
        boxes: (b, g, 4) xyxy in input pixels; `kinds` (b, g); `real` (b, g) bool.
        input_hw: the input's height and width.

    Objectness is trained towards the IoU that the cell reaches, so that the score ranks boxes by
    how well they fit, which is what the stricter IoU thresholds of mAP reward.
    """
    centres, strides = cell_centres(*input_hw, rows.device)
    half = rows[..., 2:4] / 2
    xyxy = torch.cat((rows[..., :2] - half, rows[..., :2] + half), -1)
    assigned, owner, iou = assign(
        xyxy.detach(), rows[..., 4:].detach(), boxes, kinds, real, centres, strides
    )
    count = max(1, int(assigned.sum()))
    picture, cell = assigned.nonzero(as_tuple=True)
    box = owner[picture, cell]
    _, giou = pair_iou(xyxy[picture, cell], boxes[picture, box])
    box_loss = (1 - giou).sum() / count
    target = torch.where(assigned, iou, 0.0)
    objectness = (
        functional.binary_cross_entropy_with_logits(rows[..., 4], target, reduction="sum") / count
    )
    class_logits = rows[..., 5:][picture, cell]
    wanted = functional.one_hot(kinds[picture, box], class_logits.shape[-1]).to(class_logits)
    classes = (
        functional.binary_cross_entropy_with_logits(class_logits, wanted, reduction="sum") / count
    )
    return Loss(
        _BOX_WEIGHT * box_loss + objectness + classes,
        float(box_loss.detach()),
        float(objectness.detach()),
        float(classes.detach()),
        count,
    )
