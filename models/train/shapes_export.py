"""The trained shapes detector as the ONNX file that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporters.onnx_export import Card, Parity, export
from models.train.shapes_data import PREPROCESSING
from models.yolo import Scored, Yolo
from stages.fitting import Fitter
from stages.sources.scenes import CLASS_NAMES, ShapesScene

_FRAMES = 8
_FIRST_SEED = 900_000
"""Scenes for the comparison with torch; neither trained nor measured on."""


def export_shapes(network: Yolo, path: Path) -> Parity:
    """Write `network` to `path`, checked against torch on drawn frames; return the difference."""
    fitter = Fitter(PREPROCESSING)
    scenes = (ShapesScene(_FIRST_SEED + k, (1280, 720), 10) for k in range(_FRAMES))
    tensors = [fitter.fit(scene.draw(k, k / 2)[0])[0] for k, scene in enumerate(scenes)]
    card = Card(
        name="shapes",
        task="detect",
        # Centre, size, objectness, classes, all decoded: the form that YOLOv5 files have.
        decoder="yolov5",
        preprocessing=PREPROCESSING,
        class_names=CLASS_NAMES,
        licence="Apache-2.0",
    )
    return export(Scored(network), path, card, np.stack(tensors).astype(np.float32))
