"""Masks and class maps against slow, obvious versions that interpolate pixel by pixel."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.geometry import Letterbox
from stages.decoders.masks import PatchMasks, PlaneMasks, PrototypeMasks, ScoreMap, ThresholdMap

# A centred letterbox with two slightly different scales, as real ones have.
FITTED = Letterbox((0.5, 0.49), (4.0, 10.0), (112, 81), (64, 60))
STRETCHED = Letterbox((64 / 50, 60 / 90), (0.0, 0.0), (50, 90), (64, 60))
LARGE = Letterbox((0.1, 0.1), (0.0, 3.0), (640, 480), (64, 60))
BOXES = np.array(
    [[10.2, 8.7, 60.4, 70.1], [0, 0, 112, 81], [100, 70, 112, 81], [30.1, 30.1, 30.3, 30.2]],
    np.float32,
)


def interpolated(plane, x, y, letterbox):
    """The plane's value at the centre of picture pixel (x, y), linear between cell centres."""
    height, width = plane.shape
    u = ((x + 0.5) * letterbox.scale_xy[0] + letterbox.pad_xy[0]) * width / letterbox.model_wh[0]
    v = ((y + 0.5) * letterbox.scale_xy[1] + letterbox.pad_xy[1]) * height / letterbox.model_wh[1]
    u, v = min(max(u - 0.5, 0), width - 1), min(max(v - 0.5, 0), height - 1)
    x0, y0 = min(floor(u), width - 2), min(floor(v), height - 2)
    fx, fy = u - x0, v - y0
    top = plane[y0, x0] * (1 - fx) + plane[y0, x0 + 1] * fx
    bottom = plane[y0 + 1, x0] * (1 - fx) + plane[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def full(plane, letterbox):
    width, height = letterbox.source_wh
    return np.array(
        [[interpolated(plane, x, y, letterbox) for x in range(width)] for y in range(height)]
    )


def pasted(mask, letterbox):
    width, height = letterbox.source_wh
    picture = np.zeros((height, width), bool)
    h, w = mask.bits.shape
    assert mask.x >= 0
    assert mask.y >= 0
    assert mask.x + w <= width
    assert mask.y + h <= height
    picture[mask.y : mask.y + h, mask.x : mask.x + w] = mask.bits
    return picture


def in_box(box, letterbox):
    """Pixels whose centre lies in the box."""
    width, height = letterbox.source_wh
    x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


def boxes_for(letterbox):
    width, height = letterbox.source_wh
    return BOXES * np.array([width / 112, height / 81] * 2, np.float32)


@pytest.mark.parametrize("letterbox", [FITTED, STRETCHED], ids=["fitted", "stretched"])
@pytest.mark.parametrize("cells", [(15, 16), (60, 64), (7, 5)], ids=str)
def test_prototype_masks_are_the_sigmoid_of_the_weighted_sum_inside_the_box(letterbox, cells):
    rng = np.random.default_rng(4)
    prototypes = rng.normal(size=(6, *cells)).astype(np.float32)
    weights = rng.normal(size=(4, 6)).astype(np.float32)
    boxes = boxes_for(letterbox)
    masks = PrototypeMasks(weights, prototypes).cut(letterbox, boxes)
    seen = 0
    for row, mask in enumerate(masks):
        total = np.tensordot(weights[row].astype(np.float64), prototypes.astype(np.float64), 1)
        probability = 1 / (1 + np.exp(-full(total, letterbox)))
        expected = (probability > 0.5) & in_box(boxes[row], letterbox)
        sure = abs(probability - 0.5) > 1e-4
        if row == 3:  # too small to hold a pixel's centre: one pixel, for there is an object
            assert mask.bits.shape == (1, 1)
            continue
        assert (expected == pasted(mask, letterbox))[sure].all()
        seen += int(expected.sum())
        left, top = np.ceil(boxes[row, :2] - 0.5)
        assert (mask.x, mask.y) == (left, top)
    assert seen > 500


def test_masks_are_cropped_and_never_full_frames():
    prototypes = np.ones((1, 15, 16), np.float32)
    boxes = np.array([[100, 50, 140, 90]], np.float32)
    (mask,) = PrototypeMasks(np.ones((1, 1), np.float32), prototypes).cut(LARGE, boxes)
    assert (mask.x, mask.y, mask.bits.shape, mask.bits.dtype) == (100, 50, (40, 40), bool)
    assert mask.bits.all()


def test_rows_are_taken_in_the_order_asked_for():
    prototypes = np.ones((1, 15, 16), np.float32)
    source = PrototypeMasks(np.array([[1], [-1], [1]], np.float32), prototypes)
    taken = source.take(np.array([1, 0])).cut(FITTED, BOXES[[0, 1]])
    assert [mask.bits.any() for mask in taken] == [False, True]
    patches = np.stack([np.full((4, 4), v, np.float32) for v in (0.0, 1.0)])
    taken = PatchMasks(patches, BOXES[:2]).take(np.array([1, 0])).cut(FITTED, BOXES[:2])
    assert [mask.bits.any() for mask in taken] == [True, False]
    taken = PlaneMasks(patches).take(np.array([1])).cut(FITTED, BOXES[:1])
    assert taken[0].bits.all()


def test_no_rows_give_no_masks():
    nothing = np.zeros((0, 4), np.float32)
    assert (
        PrototypeMasks(np.zeros((0, 2), np.float32), np.ones((2, 3, 3), np.float32)).cut(
            FITTED, nothing
        )
        == ()
    )
    assert PatchMasks(np.zeros((0, 28, 28), np.float32), nothing).cut(FITTED, nothing) == ()
    assert PlaneMasks(np.zeros((0, 60, 64), np.float32)).cut(FITTED, nothing) == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coefficients_and_patches_that_are_not_finite_are_an_error(value):
    with pytest.raises(ModelError, match="not finite"):
        PrototypeMasks(np.full((1, 1), value, np.float32), np.ones((1, 9, 9), np.float32)).cut(
            FITTED, BOXES[:1]
        )
    with pytest.raises(ModelError, match="not finite"):
        PatchMasks(np.full((1, 4, 4), value, np.float32), BOXES[:1]).cut(FITTED, BOXES[:1])


@pytest.mark.needs_torch
@pytest.mark.parametrize("side", [28, 14, 5])
def test_patches_are_pasted_as_torchvision_does(side):
    torch = pytest.importorskip("torch")
    paste = pytest.importorskip("torchvision").models.detection.roi_heads.paste_masks_in_image
    rng = np.random.default_rng(side)
    width, height = 320, 240
    # All touch the picture: torchvision fails on a box that does not.
    low = rng.uniform(-30, 200, (60, 2))
    size = np.where(low < 0, 30, 0) + rng.uniform(0.2, 150, (60, 2))
    boxes = np.concatenate([low, low + size], 1).astype(np.float32)
    # Smooth, so that few pixels lie at the threshold itself.
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    centre = rng.uniform(-0.5, 0.5, (2, 60, 1, 1))
    distance = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    patches = np.exp(-distance * 2).astype(np.float32)
    identity = Letterbox((1.0, 1.0), (0.0, 0.0), (width, height), (width, height))
    theirs = paste(
        torch.from_numpy(patches)[:, None], torch.from_numpy(boxes), (height, width)
    ).numpy()[:, 0]
    masks = PatchMasks(patches, boxes).cut(identity, boxes)
    compared = 0
    for probability, mask in zip(theirs, masks, strict=True):
        # 1e-4: both interpolate in float32, in another order.
        sure = abs(probability - 0.5) > 1e-4
        assert ((probability > 0.5) == pasted(mask, identity))[sure].all()
        compared += int((probability > 0.5).sum())
    assert compared > 20_000


def test_patches_follow_the_letterbox():
    patch = np.ones((1, 28, 28), np.float32)
    model = np.array([[14, 29.5, 34, 49.1]], np.float32)
    source = FITTED.to_source(model)
    (mask,) = PatchMasks(patch, model).cut(FITTED, source)
    height, width = mask.bits.shape
    assert abs(mask.x - source[0, 0]) <= 2
    assert abs(mask.y - source[0, 1]) <= 2
    assert abs(mask.x + width - source[0, 2]) <= 3
    assert abs(mask.y + height - source[0, 3]) <= 3


def test_a_patch_outside_the_picture_is_an_empty_mask():
    model = np.array([[-90, 0, -50, 20]], np.float32)
    (mask,) = PatchMasks(np.ones((1, 28, 28), np.float32), model).cut(FITTED, BOXES[:1])
    assert mask.bits.size == 0


def test_planes_are_cut_off_at_their_boxes():
    rng = np.random.default_rng(1)
    planes = rng.random((2, 60, 64)).astype(np.float32)
    masks = PlaneMasks(planes).cut(FITTED, BOXES[:2])
    for plane, box, mask in zip(planes, BOXES, masks, strict=False):
        values = full(plane.astype(np.float64), FITTED)
        expected = (values > 0.5) & in_box(box, FITTED)
        assert (expected == pasted(mask, FITTED))[abs(values - 0.5) > 1e-4].all()


@pytest.mark.parametrize("letterbox", [FITTED, STRETCHED], ids=["fitted", "stretched"])
@pytest.mark.parametrize("cells", [(15, 16), (60, 64)], ids=str)
def test_a_class_map_is_the_best_class_of_the_interpolated_scores(letterbox, cells):
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(5, *cells)).astype(np.float32)
    scores[3] -= 100  # wins nowhere
    painted = ScoreMap(scores).paint(letterbox)
    assert painted.shape == letterbox.source_wh[::-1]
    assert painted.dtype == np.uint8
    values = np.stack([full(plane.astype(np.float64), letterbox) for plane in scores])
    ordered = np.sort(values, axis=0)
    sure = ordered[-1] - ordered[-2] > 1e-4
    assert (painted == values.argmax(axis=0))[sure].all()
    assert sure.mean() > 0.99
    assert set(np.unique(painted)) == {0, 1, 2, 4}


def test_a_class_map_of_one_class_and_of_equal_scores():
    scores = np.zeros((3, 15, 16), np.float32)
    assert (ScoreMap(scores).paint(FITTED) == 0).all()
    scores[2] = 1
    assert (ScoreMap(scores).paint(FITTED) == 2).all()
    # Classes 0 and 2 win a corner each and are equal elsewhere: the lower id has it.
    scores[0] = 1
    scores[2, :4, :2], scores[0, :4, -2:] = 2, 2
    painted = ScoreMap(scores).paint(FITTED)
    assert painted[0, 0] == 2
    assert (painted[40:] == 0).all()


def test_padding_does_not_count():
    # Rows 0..9 and 50..59 of the input are padding: class 1 lies only there.
    scores = np.zeros((2, 60, 64), np.float32)
    scores[0, 8:52], scores[1, :8], scores[1, 52:] = 1, 1, 1
    assert (ScoreMap(scores).paint(FITTED) == 0).all()


def test_a_threshold_map_is_one_above_the_threshold():
    plane = np.random.default_rng(3).random((60, 64)).astype(np.float32)
    painted = ThresholdMap(plane, 0.7).paint(FITTED)
    values = full(plane.astype(np.float64), FITTED)
    assert (painted == (values > 0.7))[abs(values - 0.7) > 1e-4].all()
    assert 0 < painted.mean() < 0.5


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 300), (7680, 4320)])
def test_any_size_of_picture(size_wh):
    width, height = size_wh
    letterbox = Letterbox((64 / width, 60 / height), (0.0, 0.0), size_wh, (64, 60))
    boxes = np.array([[0, 0, width, height]], np.float32)
    prototypes = np.ones((1, 15, 16), np.float32)
    (mask,) = PrototypeMasks(np.ones((1, 1), np.float32), prototypes).cut(letterbox, boxes)
    assert mask.bits.shape == (height, width)
    assert mask.bits.all()
    model = np.array([[0, 0, 64, 60]], np.float32)
    (mask,) = PatchMasks(np.ones((1, 28, 28), np.float32), model).cut(letterbox, boxes)
    # The added border of empty cells takes half a cell on each side.
    assert mask.bits[height // 2, width // 2]
    assert mask.bits.mean() > 0.9
    assert ThresholdMap(np.ones((5, 5), np.float32), 0.5).paint(letterbox).all()
