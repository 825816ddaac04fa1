"""Real clips through our stages against detectors written a second time in plain NumPy."""

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
from tests.helpers.reference import Reference, count_matches

pytestmark = [pytest.mark.assets, pytest.mark.slow]

SCORE, IOU = 0.3, 0.45
CLIPS = {"car-detection.mp4": 20, "one-by-one-person-detection.mp4": 60, "vtest_gk.mp4": 25}
FACES = {"peekingduck_wave.mp4": 20, "vtest_gk.mp4": 60}
# Model, reference, clips with one frame in how many, then the share that must match, at which IoU.
# Both run the same arithmetic in another order, so what is left is rounding. It is largest for the
# 8-bit graphs: they choose their activations' scale by each picture, and one step moves a score
# by up to 0.02.
CASES = [
    ("yolox_nano_iinfer", "yolox", 1, 0.995, 0.98),
    ("picodet_s_416_coco", "picodet", 2, 0.99, 0.95),
    ("nanodet_m_416_hpc203", "nanodet", 2, 0.99, 0.95),
    ("nanodet_m_320_hpc203", "nanodet", 2, 0.99, 0.95),
    ("yolo_fastestv2_hpc203", "fastestv2", 2, 0.99, 0.95),
    ("yolov8n_int8_udaypartha", "yolov8", 2, 0.99, 0.95),
    ("yolov8n-seg_int8", "yolov8", 4, 0.99, 0.95),
    ("converted/ssd_mobilenet", "tflite_ssd", 2, 0.99, 0.95),
    ("ultraface_version-RFB-320", "ultraface", 1, 0.99, 0.95),
]


def frames(path, every):
    """Return one frame in `every` of a clip, BGR."""
    import cv2

    clip, images = cv2.VideoCapture(str(path)), []
    index = 0
    while clip.grab():
        if index % every == 0:
            images.append(clip.retrieve()[1])
        index += 1
    clip.release()
    assert len(images) > 3
    return images


class Ours:
    """The chain preprocess, infer, nms on single pictures."""

    def __init__(self, path, **nms):
        self.model = load_model(InferConfig(model=str(path), device="cpu"), lambda _: None)
        context = RunContext()
        self.stages = (
            PreprocessStage(PreprocessConfig(), "preprocess", self.model),
            InferStage(InferConfig(), "infer", self.model),
            NmsStage(NmsConfig(**nms), "nms", self.model),
        )
        for stage in self.stages:
            stage.open(context)

    def detect(self, image):
        """Return (n, 6): xyxy, score, class; the same form as the reference's."""
        items = [Frame(FrameId("clip", 0, 0), FrameTime(0, 0, Fraction(1, 25)), image)]
        for stage in self.stages:
            items = stage.process(items)
        (frame,) = items
        found = frame.detections
        return np.column_stack([found.xyxy, found.score, found.class_id]).astype(np.float64)

    def close(self):
        for stage in self.stages:
            stage.close()


@pytest.mark.parametrize(("name", "kind", "thin", "share", "least_iou"), CASES)
def test_stages_find_what_the_reference_finds(assets, name, kind, thin, share, least_iou):
    path = assets / "models" / f"{name}.onnx"
    clips = FACES if kind == "ultraface" else CLIPS
    ours = Ours(path, score_threshold=SCORE, iou_threshold=IOU)
    try:
        reference = Reference(path, kind)
        expected_count = found_count = matched = at_edge = 0
        for clip, every in clips.items():
            for image in frames(assets / "video" / clip, every * thin):
                expected = reference.detect(image, SCORE, IOU)
                found = ours.detect(image)
                height, width = image.shape[:2]
                expected_count += len(expected)
                found_count += len(found)
                matched += count_matches(expected, found, least_iou, 0.01)
                at_edge += int((expected[:, :2] <= 0).any(axis=1).sum())
                at_edge += int((expected[:, 2:4] >= [width, height]).any(axis=1).sum())
    finally:
        ours.close()
    assert expected_count > (10 if kind == "ultraface" else 50), "the clips show too little"
    assert at_edge > 0 or kind == "ultraface", "no box touches an edge"
    assert matched >= share * max(expected_count, found_count), (
        f"{matched} matched of {expected_count} expected and {found_count} found"
    )


@pytest.mark.parametrize(
    ("name", "clip", "every", "least"),
    [
        ("models/yolox_nano_iinfer", "vtest_gk.mp4", 100, {"person": 2, "car": 0}),
        ("models/yolov8n_int8_udaypartha", "vtest_gk.mp4", 100, {"person": 2, "car": 0}),
        ("models/converted/ssd_mobilenet", "vtest_gk.mp4", 100, {"person": 1, "car": 0}),
        ("models/picodet_s_416_coco", "vtest_gk.mp4", 100, {"person": 2, "car": 0}),
        ("models/nanodet_m_320_hpc203", "vtest_gk.mp4", 100, {"person": 2, "car": 0}),
        ("models/ultraface_version-RFB-320", "peekingduck_wave.mp4", 10, {"face": 0}),
    ],
)
def test_classes_are_called_by_the_right_names(assets, name, clip, every, least):
    """A class table that is off by one passes every parity test: the reference would be too."""
    image = frames(assets / "video" / clip, every)[-1]
    ours = Ours(assets / f"{name}.onnx", score_threshold=SCORE)
    try:
        found = [ours.model.class_names[int(row[5])] for row in ours.detect(image)]
    finally:
        ours.close()
    for class_name, more_than in least.items():
        assert found.count(class_name) > more_than, found


@pytest.mark.parametrize(
    "name",
    [
        "models/selfie_segmentation",
        "models/yunet_2026may",
        "depth/tcmonodepth_tcsmallnet_192x320",
        "depth/optimized_pydnet++",
    ],
)
def test_graphs_that_are_not_certain_are_refused(assets, name):
    from pipeline.errors import ModelError

    with pytest.raises(ModelError, match=r"choices|yolox") as caught:
        load_model(InferConfig(model=str(assets / f"{name}.onnx"), device="cpu"), lambda _: None)
    assert "Seen: inputs:" in str(caught.value)
