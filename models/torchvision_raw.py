"""torchvision's networks in the form that is exported: pictures in, boxes or maps of scores out.

One-stage detectors end with decoded boxes and class scores and leave overlaps in (suppression
inside an SSD graph makes it 15 times slower); R-CNNs are exported whole, segmenters without their
auxiliary classifier. Normalising and resizing are left to preprocessing. Imports torch and nothing
of ours; one thread at a time.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
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

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what is found in one picture, best score first.

        Args:
            images: (1, 3, h, w) float32, normalised.

        Returns:
            (n, 4) xyxy in pixels of the input, (n,) labels int64, (n,) scores; then of Mask R-CNN
            (n, 1, 28, 28) masks in 0..1, each spread over its box; of Keypoint R-CNN (n, k, 3)
            x, y, 1 in pixels of the input, and (n, k) heights of the heatmaps there.
        """
        features = self.inner.backbone(images)
        proposals, _ = self.inner.rpn(ImageList(images, self._sizes), features)
        (found,), _ = self.inner.roi_heads(features, proposals, self._sizes)
        names = ("boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores")
        return tuple(found[name] for name in names if name in found)


class SemanticMap(nn.Module):
    """A semantic segmenter of any input size, without what only training needs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.eval()
        """What torchvision's checkpoints fit, but for the auxiliary classifier."""

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) float32, normalised, to (b, classes, h, w): logits for each pixel."""
        scores: Tensor = self.inner(images)["out"]
        return scores


_BARE: Final[dict[str, Any]] = {"weights": None, "weights_backbone": None}
"""Nothing is downloaded: weights are the caller's."""


def ssd300(size_wh: tuple[int, int], *, classes: int = 91) -> RawSsd:
    """Return SSD300 with VGG16, weights random; the background is one of the classes."""
    return RawSsd(detection.ssd300_vgg16(num_classes=classes, **_BARE), size_wh)


def ssdlite320(size_wh: tuple[int, int], *, classes: int = 91) -> RawSsd:
    """Return SSDLite320 with MobileNetV3, weights random; the background is one of the classes."""
    network = detection.ssdlite320_mobilenet_v3_large(num_classes=classes, **_BARE)
    return RawSsd(network, size_wh)


def retinanet(size_wh: tuple[int, int], *, classes: int = 91) -> RawDetector:
    """Return RetinaNet with ResNet50-FPN, weights random; class 0 is never used."""
    return RawDetector(detection.retinanet_resnet50_fpn(num_classes=classes, **_BARE), size_wh)


def fcos(size_wh: tuple[int, int], *, classes: int = 91) -> RawFcos:
    """Return FCOS with ResNet50-FPN, weights random; class 0 is never used."""
    return RawFcos(detection.fcos_resnet50_fpn(num_classes=classes, **_BARE), size_wh)


def fasterrcnn_mobilenet(size_wh: tuple[int, int], *, classes: int = 91) -> WholeRcnn:
    """Return Faster R-CNN with MobileNetV3-320-FPN, weights random; class 0 is the background."""
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(num_classes=classes, **_BARE)
    return WholeRcnn(network, size_wh)


def fasterrcnn(size_wh: tuple[int, int], *, classes: int = 91) -> WholeRcnn:
    """Return Faster R-CNN with ResNet50-FPN, weights random; class 0 is the background."""
    return WholeRcnn(detection.fasterrcnn_resnet50_fpn(num_classes=classes, **_BARE), size_wh)


def maskrcnn(size_wh: tuple[int, int], *, classes: int = 91) -> WholeRcnn:
    """Return Mask R-CNN with ResNet50-FPN, weights random; class 0 is the background."""
    return WholeRcnn(detection.maskrcnn_resnet50_fpn(num_classes=classes, **_BARE), size_wh)


def maskrcnn_mobilenet(size_wh: tuple[int, int], *, classes: int = 91) -> WholeRcnn:
    """Return Mask R-CNN on MobileNetV3-Large-FPN, weights random; class 0 is the background.

    torchvision has the parts but not this network: backbone, anchors and the few proposals are
    those of its Faster R-CNN for 320 pixels, the mask branch is that of its Mask R-CNN. `inner`
    trains as any `MaskRCNN` does; its own resizing leaves pictures of `size_wh` as they are.
    """
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large",
        weights=None,
        fpn=True,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=6,
    )
    levels = 3
    network = detection.MaskRCNN(
        backbone,
        classes,
        rpn_anchor_generator=AnchorGenerator(
            ((32, 64, 128, 256, 512),) * levels, ((0.5, 1.0, 2.0),) * levels
        ),
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_test=150,
        rpn_score_thresh=0.05,
        min_size=min(size_wh),
        max_size=max(size_wh),
    )
    return WholeRcnn(network, size_wh)


def keypointrcnn(size_wh: tuple[int, int], *, classes: int = 2) -> WholeRcnn:
    """Return Keypoint R-CNN with ResNet50-FPN and 17 keypoints; class 0 is the background."""
    return WholeRcnn(detection.keypointrcnn_resnet50_fpn(num_classes=classes, **_BARE), size_wh)


def fcn(size_wh: tuple[int, int], *, classes: int = 21) -> SemanticMap:  # noqa: ARG001 - one signature
    """Return FCN with ResNet50, weights random; class 0 is the background."""
    return SemanticMap(segmentation.fcn_resnet50(num_classes=classes, aux_loss=False, **_BARE))


def deeplabv3(size_wh: tuple[int, int], *, classes: int = 21) -> SemanticMap:  # noqa: ARG001 - one signature
    """Return DeepLabV3 with ResNet50, weights random; class 0 is the background."""
    network = segmentation.deeplabv3_resnet50(num_classes=classes, aux_loss=False, **_BARE)
    return SemanticMap(network)


def deeplabv3_mobilenet(size_wh: tuple[int, int], *, classes: int = 21) -> SemanticMap:  # noqa: ARG001 - one signature
    """Return DeepLabV3 with MobileNetV3-Large, weights random; class 0 is the background."""
    network = segmentation.deeplabv3_mobilenet_v3_large(
        num_classes=classes, aux_loss=False, **_BARE
    )
    return SemanticMap(network)


def lraspp(size_wh: tuple[int, int], *, classes: int = 21) -> SemanticMap:  # noqa: ARG001 - one signature
    """Return LR-ASPP with MobileNetV3-Large, weights random; class 0 is the background."""
    return SemanticMap(segmentation.lraspp_mobilenet_v3_large(num_classes=classes, **_BARE))
