"""torchvision's detectors in the form that is exported: pictures in, boxes and scores out.

One-stage detectors end with decoded boxes and class scores and leave overlaps in (suppression
inside an SSD graph makes it 15 times slower); Faster R-CNN is exported whole. Normalising and
resizing are left to preprocessing. Imports torch and nothing of ours; one thread at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

_LARGEST_LOG = math.log(1000 / 16)
"""torchvision's limit of what a box may grow by (`BoxCoder.bbox_xform_clip`)."""


class RawDetector(nn.Module):
    """A one-stage detector for pictures of one size, its anchors constants of the graph."""

    def __init__(self, inner: nn.Module, size_wh: tuple[int, int]) -> None:
        super().__init__()
        self.inner = inner.eval()
        """What torchvision's checkpoints fit."""
        self._size_wh = size_wh
        width, height = size_wh
        with torch.no_grad():
            blank = torch.zeros(1, 3, height, width)
            maps = self._features(blank)
            anchors = inner.anchor_generator(ImageList(blank, [(height, width)]), maps)[0]
        self.register_buffer("anchors", anchors, persistent=False)

    def _features(self, images: Tensor) -> list[Tensor]:
        return list(self.inner.backbone(images).values())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predictions of all anchors.

        Args:
            images: (b, 3, h, w) float32, normalised.

        Returns:
            (b, n, 4) xyxy in pixels of the input, clipped to it, and (b, n, c) scores in 0..1.
        """
        found = self.inner.head(self._features(images))
        boxes = self._boxes(found["bbox_regression"])
        width, height = self._size_wh
        x = boxes[..., 0::2].clamp(0, width)
        y = boxes[..., 1::2].clamp(0, height)
        corners = torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)
        return corners, self._scores(found)

    def _boxes(self, codes: Tensor) -> Tensor:
        wx, wy, ww, wh = self.inner.box_coder.weights
        sizes = self.anchors[:, 2:] - self.anchors[:, :2]
        centres = self.anchors[:, :2] + 0.5 * sizes
        shift = torch.stack((codes[..., 0] / wx, codes[..., 1] / wy), -1)
        growth = torch.stack((codes[..., 2] / ww, codes[..., 3] / wh), -1)
        middle = shift * sizes + centres
        half = 0.5 * growth.clamp(max=_LARGEST_LOG).exp() * sizes
        return torch.cat((middle - half, middle + half), -1)

    def _scores(self, found: dict[str, Tensor]) -> Tensor:
        return found["cls_logits"].sigmoid()


class RawSsd(RawDetector):
    """SSD and SSDLite: softmax over the classes, of which the first is the background."""

    def _scores(self, found: dict[str, Tensor]) -> Tensor:
        return found["cls_logits"].softmax(-1)


class RawFcos(RawDetector):
    """FCOS: distances to the four sides in units of the cell; scores weighted by centreness."""

    def _boxes(self, codes: Tensor) -> Tensor:
        sizes = self.anchors[:, 2:] - self.anchors[:, :2]
        centres = self.anchors[:, :2] + 0.5 * sizes
        return torch.cat((centres - codes[..., :2] * sizes, centres + codes[..., 2:] * sizes), -1)

    def _scores(self, found: dict[str, Tensor]) -> Tensor:
        return (found["cls_logits"].sigmoid() * found["bbox_ctrness"].sigmoid()).sqrt()


class WholeRcnn(nn.Module):
    """A two-stage detector with its suppression, for one picture of one size."""

    def __init__(self, inner: nn.Module, size_wh: tuple[int, int]) -> None:
        super().__init__()
        self.inner = inner.eval()
        """What torchvision's checkpoints fit."""
        self._sizes = [(size_wh[1], size_wh[0])]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, h, w) to boxes (n, 4) xyxy in pixels of the input, labels (n,), scores (n,)."""
        features = self.inner.backbone(images)
        proposals, _ = self.inner.rpn(ImageList(images, self._sizes), features)
        found, _ = self.inner.roi_heads(features, proposals, self._sizes)
        return found[0]["boxes"], found[0]["labels"], found[0]["scores"]


def ssd300(size_wh: tuple[int, int]) -> RawSsd:
    """Return SSD300 with VGG16 and 91 classes, weights random."""
    return RawSsd(detection.ssd300_vgg16(weights=None, weights_backbone=None), size_wh)


def ssdlite320(size_wh: tuple[int, int]) -> RawSsd:
    """Return SSDLite320 with MobileNetV3 and 91 classes, weights random."""
    network = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return RawSsd(network, size_wh)


def retinanet(size_wh: tuple[int, int]) -> RawDetector:
    """Return RetinaNet with ResNet50-FPN and 91 classes, weights random."""
    network = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    return RawDetector(network, size_wh)


def fcos(size_wh: tuple[int, int]) -> RawFcos:
    """Return FCOS with ResNet50-FPN and 91 classes, weights random."""
    return RawFcos(detection.fcos_resnet50_fpn(weights=None, weights_backbone=None), size_wh)


def fasterrcnn_mobilenet(size_wh: tuple[int, int]) -> WholeRcnn:
    """Return Faster R-CNN with MobileNetV3-320-FPN and 91 classes, weights random."""
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    return WholeRcnn(network, size_wh)
