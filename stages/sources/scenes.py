"""The drawing of synthetic scenes: pictures, and the truth about them, from seed and frame number.

A frame is a closed function of seed, size, object count and time, so any frame can be drawn alone.
An instance is used by one thread; what it returns is never written again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Detections, Mask
from pipeline.frame import DepthMap
from stages.sources.numberplate import Plate

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CLASS_NAMES: Final = ("circle", "square", "triangle", "star")
MIN_VISIBLE_SHARE: Final = 0.3
"""Objects of which less than this share of the area is in sight are left out of the truth: the rest
of a shape can then not be told from its corner, by people either."""
MIN_SIDE_SHARE: Final = 1 / 60
"""So are those whose visible part is narrower than this share of the picture's shorter side."""

# Metres: where objects move, and where the wall behind them stands at the bottom and top.
_NEAR_M, _FAR_M = 2.0, 10.0
_WALL_M = (14.0, 24.0)
# Radius at an object's middle distance, as a share of the picture's shorter side.
_RADIUS = (0.045, 0.17)
_SHIFT: Final = 4
"""Fractional bits of the coordinates given to OpenCV: 1/16 px."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is exactly known about a synthetic frame."""

    detections: Detections
    """The visible objects, nearest first, score 1. Boxes are the extents of each object's visible
    part (whole pixels: the edges of the outermost ones that it covers by at least half); `masks`
    are that part, cropped to the box; `track_id` is the object's number, the same in all frames."""
    depth: DepthMap
    """Metres (`depth_m`) for every pixel; the number plate has the distance of what it covers."""


def _outline(kind: int) -> F64:
    """Return the unit shape of class `kind` as (k, 2) points around the origin."""
    if kind == 0:
        angles = np.arange(64) * (2 * np.pi / 64)
        radii = np.ones(64)
    elif kind == 1:
        angles, radii = np.pi / 4 + np.arange(4) * np.pi / 2, np.ones(4)
    elif kind == 2:
        angles, radii = np.arange(3) * (2 * np.pi / 3), np.ones(3)
    else:
        angles = np.arange(10) * (np.pi / 5)
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _area(points: F64) -> float:
    """Return the area of a simple polygon (the shoelace formula)."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _bounce(value: float, span: float) -> float:
    """Reflect `value` into 0..span, as a ball between two walls."""
    value = value % (2 * span)
    return min(value, 2 * span - value)


@dataclass(frozen=True, slots=True)
class _Object:
    """One moving shape: all that its place at a time follows from. Lengths are in pixels."""

    number: int
    kind: int
    radius: float
    depth_m: float
    sway: float
    sway_rad_s: float
    phase: float
    start_xy: tuple[float, float]
    speed_xy: tuple[float, float]
    angle: float
    spin_rad_s: float
    fill: tuple[int, int, int]
    edge: tuple[int, int, int]
    edge_share: float

    def depth_at(self, t: float) -> float:
        """Distance in metres; it swings by the share `sway` around `depth_m`."""
        return self.depth_m * (1 + self.sway * math.sin(self.sway_rad_s * t + self.phase))

    def points_at(self, t: float, size_wh: tuple[int, int]) -> F64:
        """Return the outline (k, 2) in pixels; the size follows from the distance."""
        scale = self.radius * self.depth_m / self.depth_at(t)
        angle = self.angle + self.spin_rad_s * t
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        centre = [
            _bounce(start + speed * t, span)
            for start, speed, span in zip(self.start_xy, self.speed_xy, size_wh, strict=True)
        ]
        points: F64 = _OUTLINES[self.kind] @ turn * scale + np.array(centre)
        return points


_OUTLINES: Final = tuple(_outline(kind) for kind in range(len(CLASS_NAMES)))


class ShapesScene:
    """Circles, squares, triangles and stars before a textured wall that drifts by slowly."""

    def __init__(self, seed: int, size_wh: tuple[int, int], count: int) -> None:
        rng = np.random.default_rng(seed)
        self.size_wh = size_wh
        width, height = size_wh
        self._plate = Plate(size_wh)
        self._margin = max(8, min(size_wh) // 10)
        self._wall = _wall(rng, (width + 2 * self._margin, height + 2 * self._margin))
        self._pan = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.1, 0.4, 2)
        far, near = _WALL_M[1], _WALL_M[0]
        rows = np.linspace(far, near, height, dtype=np.float32)[:, None]
        self._wall_depth: F32 = np.ascontiguousarray(np.broadcast_to(rows, (height, width)))
        # Classes in turn, so that a scene has its share of each.
        first = int(rng.integers(len(CLASS_NAMES)))
        self._objects = [_make_object(rng, k, first + k, size_wh) for k in range(count)]

    def draw(self, number: int, time_s: Fraction | float) -> tuple[U8, Truth]:
        """Draw the frame `number`, which stands at `time_s` of the scene.

        Returns:
            A new (h, w, 3) uint8 BGR picture and its truth.
        """
        t = float(time_s)
        width, height = self.size_wh
        phase, speed = self._pan
        left, top = (
            round(self._margin * (1 + math.sin(phase[axis] + speed[axis] * t))) for axis in (0, 1)
        )
        image = self._wall[top : top + height, left : left + width].copy()
        labels = np.zeros((height, width), np.uint8)
        depth = self._wall_depth.copy()
        placed = []
        # Far to near: what is nearer covers what is farther.
        for thing in sorted(self._objects, key=lambda item: (-item.depth_at(t), item.number)):
            points = thing.points_at(t, self.size_wh)
            box = self._paint(image, labels, depth, thing, points, thing.depth_at(t))
            if box is not None:
                placed.append((thing, _area(points), box))
        self._plate.draw(image, number)
        rows, columns = self._plate.area
        labels[rows, columns] = 0
        return image, Truth(self._find(labels, placed[::-1]), DepthMap(depth, "depth_m"))

    def _paint(
        self, image: U8, labels: U8, depth: F32, thing: _Object, points: F64, depth_m: float
    ) -> tuple[int, int, int, int] | None:
        """Draw one object into the three; return its box on the picture, None if outside."""
        width, height = self.size_wh
        x1, y1 = np.floor(points.min(axis=0) - 2).astype(int)
        x2, y2 = np.ceil(points.max(axis=0) + 2).astype(int)
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if x1 >= x2 or y1 >= y2:
            return None
        cover: U8 = np.zeros((y2 - y1, x2 - x1), np.uint8)
        # OpenCV's coordinates name pixel centres, ours name edges: half a pixel apart.
        local = points - (x1 + 0.5, y1 + 0.5)
        cv2.fillPoly(cover, [_fixed(local)], 255, cv2.LINE_AA, _SHIFT)
        picture = image[y1:y2, x1:x2]
        paint = np.empty_like(picture)
        paint[:] = thing.edge
        centre = local.mean(axis=0)
        inner = centre + (local - centre) * (1 - thing.edge_share)
        cv2.fillPoly(paint, [_fixed(inner)], thing.fill, cv2.LINE_AA, _SHIFT)
        cv2.copyTo(_blend(picture, paint, cover), None, picture)
        solid = cover >= 128
        labels[y1:y2, x1:x2][solid] = thing.number + 1
        depth[y1:y2, x1:x2][solid] = depth_m
        return int(x1), int(y1), int(x2), int(y2)

    def _find(
        self, labels: U8, placed: list[tuple[_Object, float, tuple[int, int, int, int]]]
    ) -> Detections:
        """Return what is left to see of each object, in the order given."""
        boxes, kinds, numbers, masks = [], [], [], []
        shortest = max(2.0, min(self.size_wh) * MIN_SIDE_SHARE)
        for thing, area, (x1, y1, x2, y2) in placed:
            bits = labels[y1:y2, x1:x2] == thing.number + 1
            seen = int(np.count_nonzero(bits))
            if seen < MIN_VISIBLE_SHARE * area:
                continue
            columns, rows = np.flatnonzero(bits.any(axis=0)), np.flatnonzero(bits.any(axis=1))
            left, right = int(columns[0]), int(columns[-1]) + 1
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            if min(right - left, bottom - top) < shortest:
                continue
            boxes.append((x1 + left, y1 + top, x1 + right, y1 + bottom))
            kinds.append(thing.kind)
            numbers.append(thing.number)
            masks.append(Mask(x1 + left, y1 + top, bits[top:bottom, left:right].copy()))
        return Detections(
            xyxy=np.array(boxes, np.float32).reshape(-1, 4),
            score=np.ones(len(boxes), np.float32),
            class_id=np.array(kinds, np.int64),
            class_names=CLASS_NAMES,
            masks=tuple(masks),
            track_id=np.array(numbers, np.int64),
        )


def _fixed(points: F64) -> NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _blend(below: U8, above: U8, cover: U8) -> U8:
    """Mix two pictures by `cover` (h, w): 255 takes `above`."""
    weight = cover.astype(np.float32) * np.float32(1 / 255)
    mixed: U8 = cv2.blendLinear(above, below, weight, 1 - weight)
    return mixed


def _make_object(
    rng: np.random.Generator, number: int, kind: int, size_wh: tuple[int, int]
) -> _Object:
    short = min(size_wh)
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(140, 255), rng.uniform(120, 255)
    fill = _bgr(hue, saturation, value)
    # The rim is a darker or a lighter shade, so that neighbours of one colour stay apart.
    rim = value * 0.45 if value > 170 else min(255.0, value * 1.7)
    speed = rng.uniform(0.03, 0.25) * short
    heading = rng.uniform(0, 2 * math.pi)
    return _Object(
        number=number,
        kind=kind % len(CLASS_NAMES),
        radius=short * math.exp(rng.uniform(math.log(_RADIUS[0]), math.log(_RADIUS[1]))),
        depth_m=float(rng.uniform(_NEAR_M, _FAR_M)),
        sway=float(rng.uniform(0.05, 0.25)),
        sway_rad_s=float(rng.uniform(0.2, 1.0)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        start_xy=(float(rng.uniform(0, size_wh[0])), float(rng.uniform(0, size_wh[1]))),
        speed_xy=(speed * math.cos(heading), speed * math.sin(heading)),
        angle=float(rng.uniform(0, 2 * math.pi)),
        spin_rad_s=float(rng.uniform(-1.2, 1.2)),
        fill=fill,
        edge=_bgr(hue, saturation, rim),
        edge_share=float(rng.uniform(0.06, 0.2)),
    )


def _bgr(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    blue, green, red = cv2.cvtColor(
        np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2BGR
    )[0, 0]
    return int(blue), int(green), int(red)


def _wall(rng: np.random.Generator, size_wh: tuple[int, int]) -> U8:
    """Return a muted texture: clouds of four sizes, stripes or squares, and grain."""
    width, height = size_wh
    base = np.array(_bgr(rng.uniform(0, 180), rng.uniform(0, 90), rng.uniform(70, 190)), np.float32)
    wall = np.zeros((height, width, 3), np.float32) + base
    for cells, strength in ((3, 28.0), (9, 20.0), (30, 12.0)):
        grid = rng.normal(0, strength, (cells, cells * 2, 3)).astype(np.float32)
        # Mostly gray: half of each cell's deviation is shared by the three colours.
        grid = grid * 0.5 + grid.mean(axis=2, keepdims=True)
        wall += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    angle, pitch = rng.uniform(0, math.pi), min(size_wh) * rng.uniform(0.03, 0.15)
    along = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / pitch))
    across = np.sin((y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / pitch))
    pattern = (np.sign(along), np.sign(along * across), along * across, 0 * x)[rng.integers(4)]
    wall += pattern[..., None].astype(np.float32) * np.float32(rng.uniform(4, 14))
    wall += rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    texture: U8 = wall.clip(0, 255).astype(np.uint8)
    return texture
