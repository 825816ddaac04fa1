"""The drawn scenes: what the truth says is what the picture shows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.sources.numberplate import NUMBER_BITS, Plate, read_frame_number
from stages.sources.scenes import CLASS_NAMES, MIN_VISIBLE_SHARE, ShapesScene

SIZE = (640, 360)


def test_the_same_seed_draws_the_same_frame_whatever_was_drawn_before():
    straight, jumping = ShapesScene(5, SIZE, 8), ShapesScene(5, SIZE, 8)
    for number in range(3):
        straight.draw(number, number / 30)
    image, truth = straight.draw(90, 3.0)
    again, truth_again = jumping.draw(90, 3.0)
    assert np.array_equal(image, again)
    assert np.array_equal(truth.detections.xyxy, truth_again.detections.xyxy)
    assert np.array_equal(truth.depth.values, truth_again.depth.values)
    assert not np.array_equal(image, ShapesScene(6, SIZE, 8).draw(90, 3.0)[0])


def test_frames_are_not_shared():
    scene = ShapesScene(1, SIZE, 4)
    first, truth = scene.draw(0, 0)
    kept, depth = first.copy(), truth.depth.values.copy()
    scene.draw(1, 5.0)
    assert np.array_equal(first, kept)
    assert np.array_equal(truth.depth.values, depth)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_the_extents_of_the_masks_and_lie_in_the_picture(seed):
    detections = ShapesScene(seed, SIZE, 16).draw(0, seed * 1.7)[1].detections
    assert len(detections) > 0
    assert detections.class_names == CLASS_NAMES
    for (x1, y1, x2, y2), mask in zip(detections.xyxy, detections.masks, strict=True):
        assert (mask.x, mask.y) == (x1, y1)
        assert mask.bits.shape == (y2 - y1, x2 - x1)
        for side in (mask.bits[0], mask.bits[-1], mask.bits[:, 0], mask.bits[:, -1]):
            assert side.any()
        assert x1 >= 0
        assert y1 >= 0
        assert x2 <= SIZE[0]
        assert y2 <= SIZE[1]


def test_masks_do_not_overlap_and_the_nearer_object_owns_the_pixels():
    found_pair = False
    for seed in range(12):
        _, truth = ShapesScene(seed, SIZE, 16).draw(0, 2.0)
        owners = np.zeros((SIZE[1], SIZE[0]), int)
        distances = []
        for mask in truth.detections.masks:
            window = (
                np.s_[mask.y : mask.y + mask.bits.shape[0], mask.x :][0],
                slice(mask.x, mask.x + mask.bits.shape[1]),
            )
            owners[window] += mask.bits
            values = truth.depth.values[window][mask.bits]
            assert values.min() == values.max(), "an object has one distance"
            distances.append(float(values[0]))
        assert owners.max() <= 1
        assert distances == sorted(distances), "nearest first"
        assert max(distances) < truth.depth.values.max(), "the wall is behind all"
        boxes = truth.detections.xyxy
        for near in range(len(boxes)):
            for far in range(near + 1, len(boxes)):
                low = np.maximum(boxes[near, :2], boxes[far, :2])
                high = np.minimum(boxes[near, 2:], boxes[far, 2:])
                found_pair |= bool((high - low > 4).all())
    assert found_pair, "no scene had overlapping objects: the test shows nothing"


def test_masks_are_where_the_object_is_painted():
    # One object and the same scene without it: they differ on the mask and on its anti-aliased rim.
    for seed in range(4):
        image, truth = ShapesScene(seed, SIZE, 1).draw(0, 1.0)
        empty, nothing = ShapesScene(seed, SIZE, 0).draw(0, 1.0)
        assert len(nothing.detections) == 0
        if len(truth.detections) == 0:
            continue
        changed = (image != empty).any(axis=2)
        (mask,) = truth.detections.masks
        full = np.zeros_like(changed)
        height, width = mask.bits.shape
        full[mask.y : mask.y + height, mask.x : mask.x + width] = mask.bits
        assert (changed & full).sum() > 0.97 * full.sum()
        rim = cv2.dilate(full.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        assert not (changed & ~rim).any()


def test_mostly_hidden_objects_are_left_out():
    left_out = 0
    for seed in range(12):
        scene = ShapesScene(seed, SIZE, 24)
        _, truth = scene.draw(0, 0)
        found = truth.detections
        left_out += 24 - len(found)
        for row, mask in enumerate(found.masks):
            thing = scene._objects[int(found.track_id[row])]
            points = thing.points_at(0.0, SIZE).astype(np.float32)
            assert mask.bits.sum() >= MIN_VISIBLE_SHARE * cv2.contourArea(points) - 1
            assert CLASS_NAMES[thing.kind] == found.name_of(row)
    assert left_out > 0


def test_objects_turn_and_scale_smoothly():
    scene = ShapesScene(3, SIZE, 6)
    before = {}
    for number in range(60):
        found = scene.draw(number, number / 30)[1].detections
        for thing in scene._objects:
            points = thing.points_at(number / 30, SIZE)
            if thing.number in before:
                assert np.abs(points - before[thing.number]).max() < 0.05 * SIZE[1]
            before[thing.number] = points
        assert len(set(found.track_id.tolist())) == len(found)


@pytest.mark.parametrize("size", [(1280, 720), (640, 360), (321, 243), (96, 96), (360, 640)])
@pytest.mark.parametrize("number", [0, 1, 123_456, 2**NUMBER_BITS - 1])
def test_the_number_is_read_back(size, number):
    image = np.full((size[1], size[0], 3), 130, np.uint8)
    Plate(size).draw(image, number)
    assert read_frame_number(image) == number


@pytest.mark.parametrize("quality", [20, 50])
def test_the_number_survives_compression(quality):
    for number in (7, 4097, 9_999_999):
        image, _ = ShapesScene(number % 13, (640, 360), 10).draw(number, 1.0)
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert read_frame_number(cv2.imdecode(coded, cv2.IMREAD_COLOR)) == number


def test_a_large_number_wraps():
    image = np.zeros((360, 640, 3), np.uint8)
    Plate(SIZE).draw(image, 2**NUMBER_BITS + 5)
    assert read_frame_number(image) == 5


def test_no_plate_and_a_damaged_plate_read_as_none():
    assert read_frame_number(np.full((360, 640, 3), 127, np.uint8)) is None
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8)
    assert read_frame_number(noise) is None
    assert read_frame_number(np.zeros((8, 8, 3), np.uint8)) is None


def test_one_wrong_cell_is_noticed():
    height = SIZE[1]
    cell = 6  # at 360 lines
    clean, _ = ShapesScene(0, SIZE, 0).draw(81, 0)
    for row in range(2):
        for column in range(17):
            damaged = clean.copy()
            y, x = height - cell * (3 - row), cell * (1 + column)
            damaged[y : y + cell, x : x + cell] = 255 - damaged[y : y + cell, x : x + cell]
            assert read_frame_number(damaged) is None, (row, column)


def test_objects_are_drawn_where_their_outline_is():
    offsets = []
    for seed in range(40):
        scene = ShapesScene(seed, SIZE, 1)
        found = scene.draw(0, 0)[1].detections
        points = scene._objects[0].points_at(0.0, SIZE)
        outline = np.concatenate([points.min(axis=0), points.max(axis=0)])
        if len(found) == 0 or outline.min() < 1 or (outline[2:] > np.array(SIZE) - 1).any():
            continue
        if found.xyxy[0, 3] >= Plate(SIZE).area[0].start and found.xyxy[0, 0] < 130:
            continue
        assert np.abs(found.xyxy[0] - outline).max() < 3
        offsets.append(found.xyxy[0] - outline)
    assert len(offsets) > 10
    # The mean says that no half pixel was lost between edges and pixel centres. OpenCV paints a rim
    # of up to half a pixel around the outline, and the acute tips of stars fade: hence the room.
    left, top, right, bottom = np.mean(offsets, axis=0)
    assert abs(left + right) / 2 < 0.3
    assert abs(top + bottom) / 2 < 0.3
