"""Training pictures of the synthetic scene: drawn once, kept as model-sized uint8.

The shares of sizes, object counts and degradations are part of the recipe; evaluation draws the
plain default scene. Everything follows from the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import F32, Letterbox
from stages.decoders.decoder import Preprocessing
from stages.fitting import plan
from stages.sources.scenes import ShapesScene

U8 = NDArray[np.uint8]

MODEL_WH = (512, 288)
"""16:9 like the scene, so that no input is spent on padding, and whole cells of stride 32."""
PREPROCESSING = Preprocessing(
    size_wh=MODEL_WH, pixel_order="rgb", scale=(1 / 255, 1 / 255, 1 / 255)
)
"""How pictures become inputs, in training and in the exported file alike."""
TRAIN_SEED = 1_000_000
"""First scene seed of training. Seeds below are never trained on: they are for measuring."""
MAX_BOXES = 32
"""Boxes kept for one training picture; scenes of training hold at most 24 objects."""

# (size, probability); the other shapes teach the padding.
_SIZES = (((1280, 720), 0.55), ((640, 360), 0.2), ((1920, 1080), 0.1), ((640, 480), 0.15))
_FRAMES_PER_SCENE = 6
_SECONDS_APART = 17.3


@dataclass(frozen=True, slots=True)
class ShapesData:
    """Pictures and boxes, indexed alike."""

    images: U8
    """(n, h, w, 3) uint8 RGB, letterboxed to `MODEL_WH`."""
    boxes: F32
    """(n, MAX_BOXES, 4) float32 xyxy in model pixels; rows past `counts` are zero."""
    kinds: NDArray[np.int64]
    """(n, MAX_BOXES) class ids."""
    counts: NDArray[np.int64]
    """(n,) boxes in each picture."""

    def __len__(self) -> int:
        return len(self.images)


def letterbox(image: U8) -> tuple[U8, Letterbox]:
    """Fit a (h, w, 3) uint8 BGR picture into the input as `PREPROCESSING` says; values stay 0..255.

    Returns:
        (model h, model w, 3) uint8 RGB, and how it was fitted.
    """
    height, width = image.shape[:2]
    place = plan((width, height), PREPROCESSING)
    (left, top), inner = place.left_top, place.resized_wh
    canvas: U8 = np.full((MODEL_WH[1], MODEL_WH[0], 3), PREPROCESSING.pad_value, np.uint8)
    small = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    canvas[top : top + inner[1], left : left + inner[0]] = small[..., ::-1]
    return canvas, place.letterbox


def draw_training_set(count: int, seed: int) -> ShapesData:
    """Draw `count` pictures of scenes `TRAIN_SEED + seed * 100000` and up; about 15 ms each."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, MODEL_WH[1], MODEL_WH[0], 3), np.uint8)
    boxes = np.zeros((count, MAX_BOXES, 4), np.float32)
    kinds = np.zeros((count, MAX_BOXES), np.int64)
    counts = np.zeros(count, np.int64)
    shares = [share for _, share in _SIZES]
    for index in range(count):
        if index % _FRAMES_PER_SCENE == 0:
            number = TRAIN_SEED + seed * 100_000 + index // _FRAMES_PER_SCENE
            size = _SIZES[int(rng.choice(len(_SIZES), p=shares))][0]
            scene = ShapesScene(number, size, int(rng.integers(4, 19)))
        time_s = (index % _FRAMES_PER_SCENE) * _SECONDS_APART + rng.uniform(0, 5)
        image, truth = scene.draw(int(rng.integers(1 << 24)), time_s)
        found = truth.detections
        if rng.random() < 0.3:
            image = _degrade(image, rng)
        images[index], fit = letterbox(image)
        kept = counts[index] = min(len(found), MAX_BOXES)
        boxes[index, :kept] = fit.to_model(found.xyxy)[:kept]
        kinds[index, :kept] = found.class_id[:kept]
    return ShapesData(images, boxes, kinds, counts)


def _degrade(image: U8, rng: np.random.Generator) -> U8:
    """Compress as a camera or a video file would."""
    quality = int(rng.integers(25, 90))
    _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return np.asarray(decoded, np.uint8)


def batch(
    data: ShapesData, rows: NDArray[np.int64], rng: np.random.Generator
) -> tuple[F32, F32, NDArray[np.int64], NDArray[np.bool_]]:
    """Gather and vary some pictures: flips, colour order, brightness and contrast.

    Returns:
        Images (b, 3, h, w) float32 in 0..1; boxes (b, g, 4); class ids (b, g); which of the g rows
        are real (b, g) bool.
    """
    width, height = MODEL_WH
    most = max(1, int(data.counts[rows].max()))
    boxes = data.boxes[rows, :most].copy()
    real = np.arange(most) < data.counts[rows, None]
    images = np.empty((len(rows), 3, height, width), np.float32)
    for place, row in enumerate(rows):
        picture = data.images[row]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
            boxes[place, :, [0, 2]] = width - boxes[place, :, [2, 0]]
        if rng.random() < 0.5:
            picture = picture[::-1]
            boxes[place, :, [1, 3]] = height - boxes[place, :, [3, 1]]
        order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
        gain, lift = rng.uniform(0.8, 1.2), rng.uniform(-0.08, 0.08)
        varied = picture[..., order].transpose(2, 0, 1).astype(np.float32)
        images[place] = (varied * np.float32(gain / 255) + np.float32(lift)).clip(0, 1)
    return images, boxes, data.kinds[rows, :most], real
