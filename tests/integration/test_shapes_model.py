"""The shipped detector on scenes it was not trained on, through the project's own stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from models.train.shapes_accuracy import OnnxDetector, measure, unseen_frames
from pipeline.detections import Detections
from stages.sources.scenes import CLASS_NAMES
from stages.sources.synthetic import SyntheticConfig

SHIPPED = Path(__file__).parents[2] / "models" / "weights" / "shapes.onnx"


@pytest.fixture(scope="module")
def frames():
    return list(unseen_frames(range(700, 712), 2, SyntheticConfig()))


def test_the_shipped_model_finds_the_shapes(frames):
    detector = OnnxDetector(SHIPPED)
    try:
        accuracy = measure((f.meta["truth"].detections, detector(f)) for f in frames)
    finally:
        detector.close()
    assert accuracy.frames == 24
    assert set(accuracy.by_class) == set(CLASS_NAMES)
    assert accuracy.ap50 > 0.95
    # The promise is 0.80 over many seeds; a few frames vary by some hundredths around the mean.
    assert accuracy.map50_95 > 0.80


def test_the_shipped_model_is_small():
    assert SHIPPED.stat().st_size < 2_000_000


def test_the_measure_is_one_for_the_truth_and_falls_with_every_error(frames):
    truths = [f.meta["truth"].detections for f in frames]
    assert measure((t, t) for t in truths).map50_95 == pytest.approx(1.0)
    shifted = [replace(t, xyxy=t.xyxy + np.float32(6)) for t in truths]
    swapped = [replace(t, class_id=(t.class_id + 1) % len(CLASS_NAMES)) for t in truths]
    halved = [t[::2] for t in truths]
    nothing = [Detections.empty(CLASS_NAMES) for _ in truths]
    assert 0.3 < measure(zip(truths, shifted, strict=True)).map50_95 < 0.9
    assert measure(zip(truths, swapped, strict=True)).map50_95 < 0.05
    assert 0.3 < measure(zip(truths, halved, strict=True)).map50_95 < 0.7
    assert measure(zip(truths, nothing, strict=True)).map50_95 == 0
