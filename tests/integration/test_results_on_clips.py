"""Masks, faces and class maps of real files on real clips, against independent readings of them."""

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
from stages.sinks.record import record_line
from tests.helpers.media import stills

pytestmark = pytest.mark.assets

PEOPLE, CARS, WAVE = "one-by-one-person-detection.mp4", "car-detection.mp4", "peekingduck_wave.mp4"


class Chain:
    """preprocess, infer and nms on single pictures."""

    def __init__(self, path, nms=None, **infer):
        self.model = load_model(InferConfig(model=str(path), device="cpu", **infer), lambda _: None)
        self.stages = (
            PreprocessStage(PreprocessConfig(), "preprocess", self.model),
            InferStage(InferConfig(), "infer", self.model),
            NmsStage(NmsConfig(**(nms or {})), "nms", self.model),
        )
        for stage in self.stages:
            stage.open(RunContext())

    def __call__(self, image):
        """Return the frame with its results, and what the graph gave."""
        items = [Frame(FrameId("clip", 0, 0), FrameTime(0, 0, Fraction(1, 25)), image)]
        for stage in self.stages:
            items, before = stage.process(items), items
        return items[0], before[0]

    def close(self):
        for stage in reversed(self.stages):
            stage.close()


@pytest.fixture
def chain(assets):
    made = []

    def make(name, **settings):
        made.append(Chain(assets / "models" / name, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def pasted(mask, shape):
    full = np.zeros(shape, bool)
    height, width = mask.bits.shape
    full[mask.y : mask.y + height, mask.x : mask.x + width] = mask.bits
    return full


@pytest.mark.parametrize(("clip", "numbers"), [(PEOPLE, (100, 200)), (CARS, (80, 130, 180))])
def test_yolo_masks_equal_the_published_recipe(assets, chain, clip, numbers):
    """Ultralytics' `process_mask`, written out: sum, enlarge to the input, crop, cut the padding.

    It judges at the model's pixels and we at the picture's, so edges differ by a pixel or so.
    """
    cv2 = pytest.importorskip("cv2")
    run = chain("yolov8n-seg_int8.onnx")
    compared = 0
    for image in stills(assets / "video" / clip, numbers):
        frame, raw = run(image)
        found, box = frame.detections, raw.letterbox
        table, prototypes = raw.outputs["output0"][0], raw.outputs["output1"][0]
        pad_x, pad_y = (round(v) for v in box.pad_xy)
        inner_w, inner_h = (round(s * k) for s, k in zip(box.source_wh, box.scale_xy, strict=True))
        for row, mask in enumerate(found.masks):
            model_box = box.to_model(found.xyxy[row : row + 1])[0]
            centre = (model_box[:2] + model_box[2:]) / 2
            # The row it came from: same class and score, nearest centre.
            scores = table[4 + found.class_id[row]]
            near = np.abs(table[:2].T - centre).sum(axis=1) + 1e3 * np.abs(
                scores - found.score[row]
            )
            weights = table[84:, near.argmin()]
            total = np.tensordot(weights, prototypes, 1)
            large = cv2.resize(total, (320, 320), interpolation=cv2.INTER_LINEAR)
            inside = large[pad_y : pad_y + inner_h, pad_x : pad_x + inner_w]
            expected = cv2.resize(inside, box.source_wh, interpolation=cv2.INTER_LINEAR) > 0
            x1, y1, x2, y2 = np.rint(found.xyxy[row]).astype(int)
            cropped = np.zeros_like(expected)
            cropped[y1:y2, x1:x2] = expected[y1:y2, x1:x2]
            got = pasted(mask, cropped.shape)
            iou = (got & cropped).sum() / max((got | cropped).sum(), 1)
            assert iou > 0.97, (row, iou)
            assert mask.bits.shape[0] <= y2 - y1 + 1
            assert mask.bits.shape[1] <= x2 - x1 + 1
            compared += 1
    assert compared >= 1


def test_a_person_mask_covers_the_person_and_not_the_floor(assets, chain):
    (image,) = stills(assets / "video" / PEOPLE, (100,))
    frame, _ = chain("yolov8n-seg_int8.onnx", nms={"classes": ("person",)})(image)
    (mask,) = frame.detections.masks
    share = mask.bits.mean()
    assert 0.5 < share < 0.85  # a standing person in a tight box
    full = pasted(mask, image.shape[:2])
    assert full[200, 440]  # the back
    assert not full[380, 395]  # the floor beside the feet, inside the box


def test_faces_are_those_of_opencvs_own_detector(assets, chain):
    cv2 = pytest.importorskip("cv2")
    path = assets / "models" / "yunet_2026may.onnx"
    nms = {"score_threshold": 0.6, "iou_threshold": 0.3}
    run = chain(path.name, input_size=(736, 544), nms=nms)
    compared = 0
    for image in stills(assets / "video" / WAVE, (0, 60, 200, 400)):
        height, width = image.shape[:2]
        # Our input with nothing scaled: the picture at the top left, padded with black.
        padded = np.zeros((544, 736, 3), np.uint8)
        padded[:height, :width] = image
        theirs = cv2.FaceDetectorYN.create(str(path), "", (736, 544), 0.6, 0.3)
        _, faces = theirs.detect(padded)
        frame, _ = run(padded)
        found = frame.detections
        assert len(found) == len(faces) >= 1
        for row, face in enumerate(faces):
            x, y, w, h = face[:4]
            np.testing.assert_allclose(found.xyxy[row], [x, y, x + w, y + h], atol=0.05)
            np.testing.assert_allclose(
                found.keypoints[row, :, :2], face[4:14].reshape(5, 2), atol=0.05
            )
            assert found.score[row] == pytest.approx(face[14], abs=1e-4)
            compared += 1
        # The same face where the input is scaled.
        frame, _ = run(image)
        assert abs(frame.detections.xyxy[0] - found.xyxy[0]).max() < 12
    assert compared >= 4


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("selfie_segmentation.onnx", {"decoder": "segmentation"}, {"background", "person"}),
        ("converted/deeplabv3_257_mv_gpu.onnx", {}, {"__background__", "person"}),
    ],
)
def test_class_maps_equal_a_plain_reading(assets, chain, name, settings, expected):
    cv2 = pytest.importorskip("cv2")
    run = chain(name, **settings)
    (image,) = stills(assets / "video" / WAVE, (100,))
    frame, raw = run(image)
    found = frame.segmentation
    assert frame.detections is None
    assert found.class_id.shape == image.shape[:2]
    (values,) = raw.outputs.values()
    large = cv2.resize(values[0], image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    plain = large.argmax(axis=2) if large.ndim == 3 else large > 0.5
    # Rounding at borders; classes that win nowhere in the graph's own pixels may win between them.
    assert (plain == found.class_id).mean() > 0.9999
    shares = {found.class_names[k]: share for k, share in found.shares().items()}
    assert set(shares) == expected
    assert 0.3 < shares["person"] < 0.6


@pytest.mark.parametrize(
    ("name", "clip", "settings"),
    [
        ("yolov8n-seg_int8.onnx", PEOPLE, {}),
        ("yunet_2026may.onnx", WAVE, {"input_size": (640, 480)}),
        ("converted/deeplabv3_257_mv_gpu.onnx", WAVE, {}),
    ],
)
def test_equal_input_gives_equal_lines_whatever_the_threads(assets, chain, name, clip, settings):
    images = stills(assets / "video" / clip, (100, 110, 120))
    lines = []
    for threads in (1, 2):
        run = chain(name, threads=threads, **settings)
        lines.append([record_line(run(image)[0]) for image in images])
    assert lines[0] == lines[1]
    assert any(word in lines[0][0] for word in ('"mask"', '"keypoints"', '"segmentation"'))
