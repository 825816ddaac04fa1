"""The accuracy benchmark on real files and real labels, beside an evaluation of our own.

Nothing of the project is in that one: labels are read here, detectors are those of
tests/helpers/reference.py, average precision is that of tests/helpers/average_precision.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from benchmarks import accuracy
from exporters.accuracy.layouts import read_labelled
from tests.helpers.average_precision import mean_average_precision
from tests.helpers.reference import Reference

pytestmark = [pytest.mark.assets, pytest.mark.slow]

SCORE, IOU, MOST = 0.001, 0.45, 100
EVERY = 8
"""One picture in so many. All of them, for every file: see "Accuracy" in docs/models.md."""
CASES = [
    ("yolox_nano_iinfer", "yolox"),
    ("picodet_s_416_coco", "picodet"),
    ("nanodet_m_416_hpc203", "nanodet"),
    ("nanodet_m_320_hpc203", "nanodet"),
    ("yolo_fastestv2_hpc203", "fastestv2"),
    ("yolov8n_int8_udaypartha", "yolov8"),
    ("yolov8n-seg_int8", "yolov8"),
    ("converted/ssd_mobilenet", "tflite_ssd"),
]
# The converted SSD numbers COCO's classes as COCO does, with gaps, from 0.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
WITHOUT_GAPS = np.cumsum([k not in GAPS for k in range(1, 91)]) - 1


def labels(path, width, height):
    """Return (n, 5): x1, y1, x2, y2 in pixels, class."""
    text = path.read_text() if path.exists() else ""
    rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
    centre, size = rows[:, 1:3], rows[:, 3:5]
    edges = np.hstack([centre - size / 2, centre + size / 2])
    return np.column_stack([edges * [width, height, width, height], rows[:, 0]])


def evaluate_independently(model, kind, folder, every):
    """Return mAP50-95 and mAP50, and how many objects there are."""
    import cv2

    reference = Reference(model, kind)
    truths, founds = [], []
    for path in sorted((folder / "images").iterdir())[::every]:
        image = cv2.imread(str(path))
        truths.append(
            labels(folder / "labels" / f"{path.stem}.txt", image.shape[1], image.shape[0])
        )
        found = reference.detect(image, SCORE, IOU)
        found = found[np.argsort(-found[:, 4], kind="stable")][:MOST]
        if kind == "tflite_ssd":
            found[:, 5] = WITHOUT_GAPS[found[:, 5].astype(int)]
        founds.append(found)
    table = np.array(list(mean_average_precision(truths, founds).values()))
    return table.mean(), table[:, 0].mean(), sum(map(len, truths))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_benchmark_agrees_with_an_independent_evaluation(assets, monkeypatch, name, kind):
    folder = assets / "datasets" / "coco128_train"
    model = assets / "models" / f"{name}.onnx"

    def some(data, names):
        every = read_labelled(data, names)
        return replace(every, pictures=every.pictures[::EVERY])

    monkeypatch.setattr(accuracy, "read_labelled", some)
    result = accuracy.evaluate(str(model), folder, assignments=[f"nms.iou_threshold={IOU}"])
    got = result["accuracy"]
    expected, expected50, objects = evaluate_independently(model, kind, folder, EVERY)
    assert got["objects"] == objects > 50
    assert expected > 0.1, "the file finds too little to tell anything"
    assert got["map50_95"] == pytest.approx(expected, abs=0.01)
    assert got["map50"] == pytest.approx(expected50, abs=0.01)
    assert result["settings"]["nms"]["score_threshold"] == SCORE
    assert result["settings"]["nms"]["max_detections"] == MOST


def test_cocos_own_labels_are_read(assets):
    """The same command on COCO's JSON: outlines' areas, crowds, category ids with gaps."""
    model = assets / "models" / "yolo_fastestv2_hpc203.onnx"
    result = accuracy.evaluate(str(model), assets / "datasets" / "tiny_coco_train")
    assert result["data"]["layout"] == "coco"
    assert result["data"]["pictures"] == 50
    # 470 annotations, 5 of them crowds.
    assert result["accuracy"]["objects"] == 465
    # With classes shifted by one, or x for y, next to nothing is left.
    assert 0.10 < result["accuracy"]["map50_95"] < 0.25
