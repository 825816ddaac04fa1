"""The shipped detector on scenes it was not trained on, through the project's own stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from benchmarks.coco import measure
from benchmarks.shapes_accuracy import shapes_accuracy, true_shapes, unseen_frames
from pipeline.detections import Detections
from stages.model_files import resolve_model
from stages.sources.scenes import CLASS_NAMES
from stages.sources.synthetic import SyntheticConfig


@pytest.fixture(scope="module")
def frames():
    return list(unseen_frames(range(700, 712), 2, SyntheticConfig()))


def test_the_shipped_model_finds_the_shapes(frames):
    accuracy = shapes_accuracy("shapes", frames)
    assert accuracy.frames == 24
    assert set(accuracy.by_class) == set(CLASS_NAMES)
    assert accuracy.map50 > 0.95
    # The promise is 0.80 over many seeds; a few frames vary by some hundredths around the mean.
    assert accuracy.map50_95 > 0.80


def test_the_shipped_model_is_small():
    assert resolve_model("shapes").stat().st_size < 2_000_000


def test_the_measure_is_one_for_the_truth_and_falls_with_every_error(frames):
    perfect = [f.meta["truth"].detections for f in frames]

    def score(found):
        pairs = zip(map(true_shapes, frames), found, strict=True)
        return measure(pairs, CLASS_NAMES).map50_95

    assert score(perfect) == pytest.approx(1.0)
    shifted = [replace(t, xyxy=t.xyxy + np.float32(6)) for t in perfect]
    swapped = [replace(t, class_id=(t.class_id + 1) % len(CLASS_NAMES)) for t in perfect]
    assert 0.3 < score(shifted) < 0.9
    assert score(swapped) < 0.05
    assert 0.3 < score([t[::2] for t in perfect]) < 0.7
    assert score([Detections.empty(CLASS_NAMES) for _ in perfect]) == 0
