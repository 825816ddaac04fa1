"""One frame as one line: format, rounding, run lengths, hash."""

import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.detections import Detections, Mask
from pipeline.frame import Caption, Frame, FrameId, FrameTime, Segmentation
from stages.run_lengths import rle_counts, rle_string
from stages.sinks.record import DetectionsHash, frame_record, record_line

SIZE = (40, 30)


def frame(pts=6144, captured_ns=0, **more):
    time = FrameTime(captured_ns, pts, Fraction(1, 15360))
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    return Frame(FrameId("street", 0, 12), time, image, **more)


def detections(**more):
    values = {
        "xyxy": np.array([[1.004, 2.006, 30.0, 25.553]], np.float32),
        "score": np.array([0.91004], np.float32),
        "class_id": np.array([0]),
        "class_names": ("person",),
    }
    return Detections(**(values | more))


def test_line_is_the_documented_format():
    record = frame_record(frame(detections=detections(track_id=np.array([7]))))
    assert list(record) == ["stream", "epoch", "seq", "pts", "time_base", "time_s", "detections"]
    assert record["time_base"] == "1/15360"
    assert record["time_s"] == 0.4
    assert record["detections"] == [
        {
            "xyxy": [1.0, 2.01, 30.0, 25.55],
            "score": 0.91,
            "class_id": 0,
            "class_name": "person",
            "track_id": 7,
        }
    ]


def test_what_does_not_apply_is_left_out():
    assert list(frame_record(frame(pts=None))) == ["stream", "epoch", "seq"]
    assert frame_record(frame(detections=Detections.empty()))["detections"] == []
    untracked = frame_record(frame(detections=detections(track_id=np.array([-1]))))
    assert "track_id" not in untracked["detections"][0]


def test_captions_stay_readable_text_on_one_line():
    caption = Caption('두 사람\n"cross"', "test", FrameId("street", 0, 12))
    line = record_line(frame(captions=(caption,)))
    assert "\n" not in line
    assert "두 사람" in line
    assert json.loads(line)["captions"] == ['두 사람\n"cross"']


def test_equal_numbers_are_equal_bytes():
    minus = detections(xyxy=np.array([[-0.001, 0, 1, 1]], np.float32))
    plus = detections(xyxy=np.array([[0.001, 0, 1, 1]], np.float32))
    assert record_line(frame(detections=minus)) == record_line(frame(detections=plus))


def test_hash_is_that_of_the_file_and_knows_no_capture_time():
    frames = [frame(pts=i, detections=detections()) for i in range(3)]
    text = "".join(record_line(f) + "\n" for f in frames)
    total, later = DetectionsHash(), DetectionsHash()
    for i, f in enumerate(frames):
        total.add(f)
        later.add(frame(pts=i, captured_ns=999, detections=detections()))
    assert total.hexdigest() == hashlib.sha256(text.encode()).hexdigest() == later.hexdigest()
    assert total.frames == 3


def masks():
    rng = np.random.default_rng(5)
    full = np.ones((SIZE[1], SIZE[0]), bool)
    yield "empty", Mask(3, 4, np.zeros((5, 6), bool))
    yield "no pixels", Mask(3, 4, np.zeros((0, 0), bool))
    yield "full", Mask(0, 0, full)
    yield "columns touching top and bottom", Mask(4, 0, full[:, :7])
    yield "first and last pixel", Mask(0, 0, np.pad([[1]], ((0, 29), (0, 39))).astype(bool))
    yield "overhanging", Mask(-3, -2, full[:10, :10])
    yield "overhanging far corner", Mask(35, 25, full[:10, :10])
    yield "outside", Mask(50, 50, full[:3, :3])
    for k in range(8):
        yield f"noise {k}", Mask(5, 3, rng.random((20, 25)) < rng.random())


@pytest.mark.parametrize(
    ("what", "mask"), list(masks()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_run_lengths_equal_pycocotools(what, mask):
    picture = np.zeros((SIZE[1] + 200, SIZE[0] + 200), np.uint8, order="F")
    height, width = mask.bits.shape
    picture[100 + mask.y :, 100 + mask.x :][:height, :width] = mask.bits
    picture = np.asfortranarray(picture[100 : 100 + SIZE[1], 100 : 100 + SIZE[0]])
    counts = rle_counts(mask, SIZE)
    assert counts.sum() == SIZE[0] * SIZE[1]
    assert rle_string(counts) == coco.encode(picture)["counts"].decode()


def test_run_lengths_of_a_large_mask():
    bits = np.add.outer(np.arange(2000), np.arange(3000)) % 701 < 350
    expected = coco.encode(np.asfortranarray(bits.astype(np.uint8)))["counts"].decode()
    assert rle_string(rle_counts(Mask(0, 0, bits), (3000, 2000))) == expected


def test_keypoints_are_rows_of_x_y_score():
    points = np.array([[[1.005, 2.006, 0.77777], [-0.001, 3, 1]]], np.float32)
    record = frame_record(frame(detections=detections(keypoints=points)))
    assert record["detections"][0]["keypoints"] == [[1.0, 2.01, 0.7778], [0.0, 3.0, 1.0]]
    assert list(record["detections"][0])[-1] == "keypoints"


def test_segmentation_is_the_share_of_each_class_that_is_present():
    class_id = np.zeros(SIZE[::-1], np.uint8)
    class_id[:, :7], class_id[0, 39] = 2, 3
    found = Segmentation(class_id, ("background", "road", "person", "person"))
    record = frame_record(frame(segmentation=found))
    assert "detections" not in record
    total = SIZE[0] * SIZE[1]
    assert record["segmentation"] == {
        "background": round(1 - (7 * SIZE[1] + 1) / total, 4),
        "person": round((7 * SIZE[1] + 1) / total, 4),
    }
