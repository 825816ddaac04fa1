"""An anchor-free detector in the YOLOX form: CSP backbone, PAFPN neck, decoupled head.

Module names follow the published YOLOX code, so that its state dicts fit the same tree; the channel
counts are free. Imports torch and nothing of ours. Modules are used by one thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class YoloConfig:
    """The size of a network. YOLOX's own sizes are `YoloConfig.yolox(classes, depth, width)`."""

    classes: int
    channels: tuple[int, int, int, int, int]
    """Of the stem and the four stages behind it (strides 2, 4, 8, 16, 32)."""
    depths: tuple[int, int, int, int]
    """Bottlenecks in the four stages."""
    neck_depth: int
    """Bottlenecks in each stage of the neck."""
    head_channels: int
    depthwise: bool = False
    """Split 3x3 convolutions into depthwise and pointwise, as YOLOX-nano does."""

    @classmethod
    def yolox(
        cls, classes: int, depth: float, width: float, *, depthwise: bool = False
    ) -> YoloConfig:
        """Return the published scaling: nano is depth 0.33, width 0.25, depthwise."""
        base, deep = int(width * 64), max(round(depth * 3), 1)
        return cls(
            classes=classes,
            channels=(base, base * 2, base * 4, base * 8, base * 16),
            depths=(deep, deep * 3, deep * 3, deep),
            neck_depth=deep,
            head_channels=int(256 * width),
            depthwise=depthwise,
        )


class BaseConv(nn.Module):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class DWConv(nn.Module):
    """A depthwise convolution followed by a pointwise one."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.dconv = BaseConv(inputs, inputs, size, stride, groups=inputs)
        self.pconv = BaseConv(inputs, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        out: Tensor = self.pconv(self.dconv(x))
        return out


def _conv(inputs: int, outputs: int, size: int, stride: int, *, depthwise: bool) -> nn.Module:
    if depthwise:
        return DWConv(inputs, outputs, size, stride)
    return BaseConv(inputs, outputs, size, stride)


class Bottleneck(nn.Module):
    """1x1 then 3x3, added to the input where `shortcut`."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = BaseConv(channels, channels, 1, 1)
        self.conv2 = _conv(channels, channels, 3, 1, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape."""
        out: Tensor = self.conv2(self.conv1(x))
        return out + x if self.shortcut else out


class CSPLayer(nn.Module):
    """Half of the channels pass `depth` bottlenecks, half pass none."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, *, shortcut: bool, depthwise: bool
    ) -> None:
        super().__init__()
        hidden = outputs // 2
        self.conv1 = BaseConv(inputs, hidden, 1, 1)
        self.conv2 = BaseConv(inputs, hidden, 1, 1)
        self.conv3 = BaseConv(2 * hidden, outputs, 1, 1)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        out: Tensor = self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), 1))
        return out


class SPPBottleneck(nn.Module):
    """Pools over 5, 9 and 13 cells beside the plain features: a wide field of view at stride 32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs // 2
        self.conv1 = BaseConv(inputs, hidden, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.conv2 = BaseConv(hidden * 4, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        x = self.conv1(x)
        out: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return out


class Focus(nn.Module):
    """Every 2x2 block becomes one cell of 12 channels, then a convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = BaseConv(12, outputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, outputs, h / 2, w / 2)."""
        top_left, top_right = x[..., ::2, ::2], x[..., ::2, 1::2]
        low_left, low_right = x[..., 1::2, ::2], x[..., 1::2, 1::2]
        out: Tensor = self.conv(torch.cat((top_left, low_left, top_right, low_right), 1))
        return out


class CSPDarknet(nn.Module):
    """The backbone: features at strides 8, 16 and 32."""

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        split = config.depthwise
        c1, c2, c3, c4, c5 = config.channels
        d2, d3, d4, d5 = config.depths

        def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
            return nn.Sequential(
                _conv(inputs, outputs, 3, 2, depthwise=split),
                CSPLayer(outputs, outputs, depth, shortcut=True, depthwise=split),
            )

        self.stem = Focus(c1)
        self.dark2 = stage(c1, c2, d2)
        self.dark3 = stage(c2, c3, d3)
        self.dark4 = stage(c3, c4, d4)
        self.dark5 = nn.Sequential(
            _conv(c4, c5, 3, 2, depthwise=split),
            SPPBottleneck(c5, c5),
            CSPLayer(c5, c5, d5, shortcut=False, depthwise=split),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, 3, h, w) to the three feature maps, finest first."""
        fine = self.dark3(self.dark2(self.stem(x)))
        middle = self.dark4(fine)
        return fine, middle, self.dark5(middle)


class YOLOPAFPN(nn.Module):
    """Backbone and the neck that carries meaning down to fine maps and place up to coarse ones."""

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        split, depth = config.depthwise, config.neck_depth
        _, _, c3, c4, c5 = config.channels

        def layer(inputs: int, outputs: int) -> CSPLayer:
            return CSPLayer(inputs, outputs, depth, shortcut=False, depthwise=split)

        self.backbone = CSPDarknet(config)
        self.lateral_conv0 = BaseConv(c5, c4, 1, 1)
        self.C3_p4 = layer(2 * c4, c4)
        self.reduce_conv1 = BaseConv(c4, c3, 1, 1)
        self.C3_p3 = layer(2 * c3, c3)
        self.bu_conv2 = _conv(c3, c3, 3, 2, depthwise=split)
        self.C3_n3 = layer(2 * c3, c4)
        self.bu_conv1 = _conv(c4, c4, 3, 2, depthwise=split)
        self.C3_n4 = layer(2 * c4, c5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, 3, h, w) to the three feature maps, finest first."""
        fine, middle, coarse = self.backbone(x)
        p5 = self.lateral_conv0(coarse)
        p4 = self.reduce_conv1(self.C3_p4(torch.cat((_double(p5), middle), 1)))
        out3 = self.C3_p3(torch.cat((_double(p4), fine), 1))
        out4 = self.C3_n3(torch.cat((self.bu_conv2(out3), p4), 1))
        out5 = self.C3_n4(torch.cat((self.bu_conv1(out4), p5), 1))
        return out3, out4, out5


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class YOLOXHead(nn.Module):
    """For each cell of each map: a box, an objectness and class scores, as logits."""

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        hidden = config.head_channels

        def pair() -> nn.Sequential:
            return nn.Sequential(
                *(_conv(hidden, hidden, 3, 1, depthwise=config.depthwise) for _ in range(2))
            )

        self.stems = nn.ModuleList(BaseConv(c, hidden, 1, 1) for c in config.channels[2:])
        self.cls_convs = nn.ModuleList(pair() for _ in STRIDES)
        self.reg_convs = nn.ModuleList(pair() for _ in STRIDES)
        self.cls_preds = nn.ModuleList(nn.Conv2d(hidden, config.classes, 1) for _ in STRIDES)
        self.reg_preds = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in STRIDES)
        self.obj_preds = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in STRIDES)
        for layer in (*self.cls_preds, *self.obj_preds):
            # Start at a probability of 0.01: nearly every cell is background.
            nn.init.constant_(layer.bias, -4.595)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Return one (b, 5 + classes, h, w) map per stride: x, y, w, h, objectness, classes."""
        maps = []
        for level, feature in enumerate(features):
            x = self.stems[level](feature)
            boxes = self.reg_convs[level](x)
            classes = self.cls_preds[level](self.cls_convs[level](x))
            maps.append(
                torch.cat((self.reg_preds[level](boxes), self.obj_preds[level](boxes), classes), 1)
            )
        return maps


class Yolo(nn.Module):
    """The whole detector."""

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = YOLOPAFPN(config)
        self.head = YOLOXHead(config)

    def forward(self, images: Tensor) -> Tensor:
        """Return the predictions of all cells, boxes decoded, scores as logits.

        Args:
            images: (b, 3, h, w) float32; h and w multiples of 32.

        Returns:
            (b, n, 5 + classes): centre x, centre y, width, height in pixels of the input, then the
            logits of objectness and classes; cells row by row, finest map first.
        """
        rows = []
        for stride, part in zip(STRIDES, self.head(self.backbone(images)), strict=True):
            height, width = part.shape[-2:]
            flat = part.flatten(2).transpose(1, 2)
            cells = grid(height, width).to(flat)
            # float32 from here on: bfloat16 has no room for a pixel's fraction beside its hundreds.
            xy = (flat[..., :2].float() + cells.float()) * stride
            wh = flat[..., 2:4].float().exp() * stride
            rows.append(torch.cat((xy, wh, flat[..., 4:].float()), 2))
        return torch.cat(rows, 1)


def grid(height: int, width: int) -> Tensor:
    """Return the (height * width, 2) x, y of the cells, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y), 2).reshape(-1, 2)


class Scored(nn.Module):
    """The detector as it is exported: scores as probabilities, all else as `Yolo.forward`."""

    def __init__(self, network: Yolo) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, n, 5 + classes): cx, cy, w, h in pixels, objectness, class scores."""
        rows: Tensor = self.network(images)
        return torch.cat((rows[..., :4], rows[..., 4:].sigmoid()), 2)


class RawGrid(nn.Module):
    """The detector as YOLOX itself exports it: grid values of boxes, scores as probabilities."""

    def __init__(self, network: Yolo) -> None:
        super().__init__()
        self.inner = network
        """What published checkpoints fit."""

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, n, 5 + c): x, y in cells from the cell, log w, log h, scores."""
        network = self.inner
        parts = [p.flatten(2) for p in network.head(network.backbone(images))]
        rows = torch.cat(parts, 2).transpose(1, 2)
        return torch.cat((rows[..., :4], rows[..., 4:].sigmoid()), 2)


def published(
    size_wh: tuple[int, int],
    *,
    depth: float,
    width: float,
    depthwise: bool = False,
    classes: int = 80,
) -> RawGrid:
    """Return a YOLOX of a published scaling in its published form; any size of whole cells fits.

    Raises:
        ValueError: a side of `size_wh` is no multiple of 32.
    """
    if any(side % max(STRIDES) for side in size_wh):
        raise ValueError(f"width and height must be multiples of {max(STRIDES)}, got {size_wh}")
    return RawGrid(Yolo(YoloConfig.yolox(classes, depth, width, depthwise=depthwise)))
