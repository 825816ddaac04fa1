"""The values that flow check themselves and say what they got."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pipeline.detections import Detections, Mask
from pipeline.errors import StageError
from pipeline.frame import Frame, FrameId, FrameTime, Inferred, Prepared
from pipeline.geometry import Letterbox
from tests.helpers.fakes import make_frame


def detections(n=3, **more):
    columns = {
        "xyxy": np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        "score": np.linspace(0.1, 0.9, n, dtype=np.float32),
        "class_id": np.arange(n, dtype=np.int64) % 2,
        "class_names": ("person", "car"),
    }
    return Detections(**(columns | more))


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("xyxy", np.zeros((3, 5), np.float32), r"xyxy must be .* got \(3, 5\) float32"),
        ("xyxy", np.zeros((3, 4), np.float64), r"xyxy must be .* float64"),
        ("xyxy", np.full((3, 4), np.nan, np.float32), "not finite"),
        ("score", np.zeros(2, np.float32), r"score must be \(3,\)"),
        ("score", np.array([0, 0.5, 1.5], np.float32), "0..1"),
        ("score", np.array([0, np.nan, 1], np.float32), "0..1"),
        (
            "class_id",
            np.array([0, 1, 2], np.int64),
            r"0\.\.1 \(the class names given\), got 0\.\.2",
        ),
        ("class_id", np.array([0, 1, -1], np.int64), "got -1"),
        ("class_id", np.zeros(3, np.int32), "int64"),
        ("masks", (), "masks must have 3 entries, got 0"),
        ("keypoints", np.zeros((3, 5, 2), np.float32), "keypoints"),
        ("track_id", np.zeros(2, np.int64), "track_id"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_both_shapes(column, value, text):
    with pytest.raises(ValueError, match=text):
        detections(**{column: value})


def test_indexing_by_mask_slice_and_order_gives_new_detections_with_all_columns():
    masks = tuple(Mask(i, 0, np.ones((1, i + 1), bool)) for i in range(3))
    all3 = detections(masks=masks, track_id=np.array([7, 8, 9]))
    picked = all3[all3.score > 0.3]
    assert len(picked) == 2
    assert picked.track_id.tolist() == [8, 9]
    assert [m.x for m in picked.masks] == [1, 2]
    assert all3[:1].xyxy.tolist() == [[0, 1, 2, 3]]
    assert all3[np.array([2, 0])].track_id.tolist() == [9, 7]
    assert len(all3) == 3
    assert all3.name_of(1) == "car"


def test_nothing_found_is_not_the_same_as_no_detector():
    assert len(Detections.empty(("a",))) == 0
    assert make_frame().detections is None


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_a_frame_refuses_what_is_not_a_bgr_picture(image):
    with pytest.raises(ValueError, match=r"\(h, w, 3\) uint8, got"):
        Frame(FrameId("a", 0, 0), FrameTime(0, 0, Fraction(1, 25)), image)


def test_frame_time_is_exact_and_may_be_missing():
    time = FrameTime(0, 1001, Fraction(1, 30000))
    assert time.media_s == Fraction(1001, 30000)
    assert replace(time, pts=None).media_s is None
    with pytest.raises(ValueError, match="positive"):
        FrameTime(0, 0, Fraction(0))


def test_a_missing_system_library_comes_with_the_remedy():
    cause = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    assert "apt-get install libgl1" in str(StageError("preprocess", "open", cause))
    assert "apt-get" not in str(StageError("preprocess", "open", ImportError("no module cv2")))


def test_bytes_count_pictures_tensors_and_outputs():
    frame = make_frame(size=(8, 4))
    assert frame.nbytes == 96
    found = replace(frame, detections=detections())
    assert found.nbytes == 96 + 48 + 12 + 24
    box = Letterbox((1.0, 1.0), (0.0, 0.0), (8, 4), (8, 4))
    prepared = Prepared(frame, np.zeros((3, 4, 8), np.float32), box)
    assert prepared.nbytes == 96 + 384
    assert Inferred(frame, {"o": np.zeros(5, np.float32)}, box).nbytes == 116
    assert str(prepared.id) == "cam/0/0"
