"""Keypoints, skeletons, class maps and legend: which pixels change, and what must not crash."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.detections import Detections
from pipeline.frame import Frame, FrameId, FrameTime, Segmentation
from pipeline.stage import RunContext
from stages import drawing, drawing_results
from stages.overlay import OverlayConfig, OverlayStage
from tests.unit.test_overlay import FixedClock, canvas, detections, frame

NAMES = ("__background__", "road", "person")
ONLY = {"boxes": False, "labels": False}


def drawn(item, **config):
    stage = OverlayStage(OverlayConfig(**config), "overlay")
    stage.open(RunContext(clock=FixedClock()))
    (result,) = stage.process([item])
    return result


def posed(points, **fields):
    points = np.array(points, np.float32)[None]
    return frame(detections((20, 20, 220, 220), class_id=[0], keypoints=points), **fields)


def pose_17(score=1.0):
    """A person's 17 points, spread over a circle."""
    angle = np.linspace(0, 2 * np.pi, 17, endpoint=False)
    xy = 120 + 80 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.column_stack([xy, np.full(17, score)])


def mapped(class_id, names=NAMES, **fields):
    item = frame(size_wh=class_id.shape[::-1], **fields)
    return replace(item, segmentation=Segmentation(class_id.astype(np.uint8), names))


def test_five_points_are_dots_without_limbs():
    points = [(40, 60, 1), (120, 60, 1), (80, 90, 1), (50, 130, 1), (110, 130, 1)]
    item = posed(points)
    image = drawn(item, **ONLY).image
    for x, y, _ in points:
        assert image[y, x].tolist() == [255, 255, 255]
        assert (image[y, x - 5 : x + 6] < 90).all(axis=1).any()  # a rim
    changed = (image != item.image).any(axis=2)
    assert changed.sum() < 5 * 120
    assert not changed[60, 60:100].any()


def test_seventeen_points_are_joined_by_cocos_limbs():
    points = pose_17()
    item = posed(points)
    image = drawn(item, **ONLY).image
    color = drawing.color_of(0)
    for a, b in drawing_results.COCO_LIMBS:
        x, y = np.floor((points[a, :2] + points[b, :2]) / 2).astype(int)
        near = image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).astype(int)
        assert (abs(near - color).max(axis=1) < 12).any(), (a, b)
    assert len(drawing_results.COCO_LIMBS) == len(set(drawing_results.COCO_LIMBS)) == 19
    # Every point is part of the figure, and left limbs mirror right ones (odd: left, even: right).
    assert {p for limb in drawing_results.COCO_LIMBS for p in limb} == set(range(17))
    mirror = {0: 0} | {p: p + 1 if p % 2 else p - 1 for p in range(1, 17)}
    limbs = {frozenset(limb) for limb in drawing_results.COCO_LIMBS}
    assert {frozenset(mirror[p] for p in limb) for limb in limbs} == limbs


def test_points_below_the_threshold_and_their_limbs_are_left_out():
    points = pose_17()
    points[5, 2] = 0.4
    with_all = drawn(posed(pose_17()), **ONLY).image
    item = posed(points)
    image = drawn(item, **ONLY).image
    x, y = points[5, :2].astype(int)
    assert image[y, x].tolist() != [255, 255, 255]
    assert (image != item.image).sum() < (with_all != item.image).sum()
    assert np.array_equal(drawn(item, keypoint_threshold=0.3, **ONLY).image, with_all)
    assert drawn(posed(pose_17(0.1)), **ONLY).image.tolist() == item.image.tolist()


def test_keypoints_can_be_turned_off():
    item = posed(pose_17())
    assert drawn(item, keypoints=False, **ONLY) is item


def test_subpixel_moves_move_the_drawing():
    points = pose_17()
    one = drawn(posed(points), **ONLY).image
    points[:, 0] += 0.5
    assert not np.array_equal(one, drawn(posed(points), **ONLY).image)


@pytest.mark.parametrize("size_wh", [(1, 1), (3, 200), (64, 48)])
@pytest.mark.parametrize("far", [0, 1e4, 1e30, -1e30])
def test_points_anywhere_and_any_size_of_picture(size_wh, far):
    points = pose_17()
    points[::2, 0] += far
    result = drawn(posed(points, size_wh=size_wh))
    assert result.image.shape == (size_wh[1], size_wh[0], 3)


def test_a_map_tints_its_classes_and_leaves_the_background():
    class_id = np.zeros((240, 320))
    class_id[100:200, 50:150] = 2
    class_id[200:, :] = 1
    item = mapped(class_id)
    image = drawn(item, opacity=0.5, legend=False).image
    expected = item.image.astype(float)
    for k in (1, 2):
        expected[class_id == k] = (128 + np.array(drawing.color_of(k))) / 2
    assert abs(image - expected).max() <= 0.5
    assert (image[class_id == 0] == 128).all()
    assert (item.image == 128).all()


def test_without_a_background_class_0_is_tinted_too():
    image = drawn(mapped(np.zeros((240, 320)), ("road", "car")), legend=False).image
    assert (image != 128).any(axis=2).all()


def test_the_legend_names_what_is_there_largest_first():
    class_id = np.zeros((240, 320))
    class_id[0, :9], class_id[1, :99] = 2, 1
    found = Segmentation(class_id.astype(np.uint8), NAMES)
    assert drawing_results.legend_of(found) == [
        ("road", drawing.color_of(1)),
        ("person", drawing.color_of(2)),
    ]
    whole = drawing_results.legend_of(replace(found, class_names=("sky", "road", "person")))
    assert [name for name, _ in whole] == ["sky", "road", "person"]


def test_the_legend_stands_at_the_top_right_with_its_colours():
    class_id = np.zeros((240, 320))
    class_id[200:] = 2
    item = mapped(class_id)
    image = drawn(item, segmentation=False).image
    rows, columns = np.nonzero((image != item.image).any(axis=2))
    assert rows.max() < 40
    assert columns.min() > 160
    assert columns.max() == 319
    assert (image == drawing.color_of(2)).all(axis=2).sum() >= 49


def test_a_legend_too_long_for_the_picture_says_how_many_are_missing():
    sheet, texts = canvas((320, 60), 11), []
    sheet._text = lambda text, *rest: texts.append(text)
    sheet.legend([(f"class {i}", (0, 255, 0)) for i in range(40)])
    assert texts[:2] == ["class 0", "class 1"]
    assert texts[-1] == f"+ {40 - len(texts) + 1} more"
    sheet.legend([])
    tiny = canvas((8, 8), 11)
    tiny.legend([("road", (0, 255, 0))])
    assert not tiny.image.any()


def test_labels_keep_off_the_legend():
    class_id = np.full((240, 320), 1)
    with_map = mapped(class_id)
    found = detections((250, 2, 319, 200), class_id=[0])
    sheet = canvas((320, 240), 11)
    sheet.legend([("road", (0, 255, 0)), ("person", (0, 0, 255))])
    before = sheet.image.copy()
    sheet.label((250, 2, 319, 200), "person", (255, 0, 0), " 0.91")
    assert np.array_equal(sheet.image[:25, 270:], before[:25, 270:])
    assert drawn(replace(with_map, detections=found)).image.shape == (240, 320, 3)


def test_with_map_and_legend_off_the_frame_passes_unchanged():
    item = mapped(np.ones((240, 320)))
    assert drawn(item, segmentation=False, legend=False) is item


@pytest.mark.parametrize("size_wh", [(1, 1), (2, 500), (16, 16)])
def test_maps_of_any_size(size_wh):
    item = mapped(np.ones(size_wh[::-1]))
    assert drawn(item).image.shape == (size_wh[1], size_wh[0], 3)


def test_a_map_that_is_not_contiguous():
    class_id = np.arange(240 * 320).reshape(320, 240).T % 3
    straight = mapped(np.ascontiguousarray(class_id))
    turned = replace(straight, segmentation=Segmentation(class_id.astype(np.uint8), NAMES))
    assert np.array_equal(drawn(turned).image, drawn(straight).image)


def test_segmentation_checks_itself():
    with pytest.raises(ValueError, match=r"\(h, w\) uint8, got \(3, 4\) int64"):
        Segmentation(np.zeros((3, 4), np.int64), NAMES)
    with pytest.raises(ValueError, match=r"picture's size \(240, 320\), got \(3, 4\)"):
        replace(frame(), segmentation=Segmentation(np.zeros((3, 4), np.uint8), NAMES))
    assert not Segmentation(np.zeros((3, 4), np.uint8), ()).has_background
    empty = Detections.empty(NAMES)
    item = Frame(FrameId("s", 0, 0), FrameTime(0, 0, frame().time.time_base), frame().image, empty)
    assert item.segmentation is None
