"""One decoder over two runtimes: what ONNX Runtime finds on real frames, OpenVINO finds too."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import RunContext
from stages.infer import InferConfig, InferStage
from stages.model import load_model
from stages.nms import NmsConfig, NmsStage
from stages.preprocess import PreprocessConfig, PreprocessStage
from tests.helpers.media import stills

pytestmark = pytest.mark.assets

PEOPLE, STREET, WAVE = (
    "one-by-one-person-detection.mp4",
    "vtest_gk.mp4",
    "peekingduck_wave.mp4",
)


def results(path, backend, images, **infer):
    """Return each picture's frame with its results, and the model's own numbers for it."""
    model = load_model(
        InferConfig(model=str(path), device="cpu", backend=backend, **infer), lambda _: None
    )
    assert model.backend.describe()["name"] == backend
    stages = (
        PreprocessStage(PreprocessConfig(), "preprocess", model),
        InferStage(InferConfig(), "infer", model),
        NmsStage(NmsConfig(), "nms", model),
    )
    for stage in stages:
        stage.open(RunContext())
    found = []
    for image in images:
        items = [Frame(FrameId("clip", 0, 0), FrameTime(0, 0, Fraction(1, 25)), image)]
        for stage in stages:
            items, before = stage.process(items), items
        found.append((items[0], before[0].outputs))
    for stage in reversed(stages):
        stage.close()
    return found


def overlap(one, other):
    """IoU of boxes row by row."""
    width, height = (
        (np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])).clip(0).T
    )
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def compare(one, other, *, score, iou, sure=0.0):
    """Assert that each object of one is in the other: same class, box and score. Return how many.

    Rows are matched and not compared in order: two scores that are nearly equal may change places.
    Objects scored below `sure` need no partner.
    """
    if not sure:
        assert len(one) == len(other)
    one = one[one.score >= sure]
    left = list(range(len(other)))
    for row in range(len(one)):
        same = [k for k in left if other.class_id[k] == one.class_id[row]]
        assert same, one.name_of(row)
        ious = overlap(one.xyxy[[row] * len(same)], other.xyxy[same])
        best = same[int(ious.argmax())]
        assert ious.max() >= iou, (one.name_of(row), ious.max())
        assert abs(one.score[row] - other.score[best]) <= score, one.name_of(row)
        left.remove(best)
    return len(one)


@pytest.mark.parametrize(
    ("file", "clip", "numbers", "least"),
    [
        ("yolox_nano_iinfer", STREET, (0, 100, 200), 15),
        ("picodet_s_416_coco", STREET, (0, 100, 200), 15),
        ("nanodet_m_416_hpc203", STREET, (0, 100, 200), 15),
        ("nanodet_m_320_hpc203", STREET, (0, 100, 200), 10),
        ("yolo_fastestv2_hpc203", STREET, (0, 100, 200), 5),
        ("ultraface_version-RFB-320", WAVE, (0, 60), 2),
        ("yunet_2026may", WAVE, (0, 60), 2),
    ],
)
def test_the_same_objects(assets, file, clip, numbers, least):
    settings = {"input_size": (416, 320)} if file.startswith("yunet") else {}
    path, images = assets / "models" / f"{file}.onnx", stills(assets / "video" / clip, numbers)
    one, other = (results(path, name, images, **settings) for name in ("onnx", "openvino"))
    total = 0
    for (mine, _), (theirs, _) in zip(one, other, strict=True):
        # Sums in another order, over float32 files: a tenth of the last digit that is drawn.
        total += compare(mine.detections, theirs.detections, score=1e-3, iou=0.99)
    assert total >= least


@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("converted/ssd_mobilenet", 8),
        ("yolov8n_int8_udaypartha", 8),
        ("yolov8n-seg_int8", 6),
    ],
)
def test_quantised_files_find_the_same_sure_objects(assets, file, least):
    """In int8 a sum that falls to the other side of a step changes by that step, and so on down.

    Measured on these frames and two more: scores up to 0.032 apart, IoU from 0.87.
    """
    path, images = assets / "models" / f"{file}.onnx", stills(assets / "video" / STREET, (0, 100))
    one, other = (results(path, name, images) for name in ("onnx", "openvino"))
    total = 0
    for (mine, _), (theirs, _) in zip(one, other, strict=True):
        total += compare(mine.detections, theirs.detections, score=0.05, iou=0.85, sure=0.5)
    assert total >= least


@pytest.mark.parametrize(
    ("file", "decoder"),
    [("selfie_segmentation", "segmentation"), ("converted/deeplabv3_257_mv_gpu", None)],
)
def test_the_same_map(assets, file, decoder):
    path = assets / "models" / f"{file}.onnx"
    images = stills(assets / "video" / PEOPLE, (100, 110))
    one, other = (results(path, name, images, decoder=decoder) for name in ("onnx", "openvino"))
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        assert list(mine) == list(theirs)
        for name, array in mine.items():
            # As in a certificate: of the largest value.
            assert np.abs(array - theirs[name]).max() <= 5e-4 * max(1, np.abs(array).max())
    assert max(np.ptp(array) for _, outputs in one for array in outputs.values()) > 0.5
