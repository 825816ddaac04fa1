"""COCO's measures: pycocotools as we feed it, beside a second computation in plain NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from exporters.accuracy.coco import Truth, measure
from pipeline.detections import Detections, Mask
from pipeline.errors import UsageError
from tests.helpers.average_precision import mean_average_precision

NAMES = ("a", "b", "c", "d")


def random_boxes(generator, count):
    corner = generator.uniform(0, 400, (count, 2))
    # Sizes around both limits of COCO's sizes, 32 and 96.
    return np.column_stack([corner, corner + generator.uniform(8, 200, (count, 2))])


def random_picture(generator, classes):
    """Objects, and detections: some shifted objects, some of another class, some of nothing."""
    count = int(generator.integers(0, 12))
    boxes = random_boxes(generator, count)
    kinds = generator.integers(0, classes, count)
    near = boxes + generator.normal(0, 6, boxes.shape)
    twice = boxes + generator.normal(0, 3, boxes.shape)
    wild = random_boxes(generator, int(generator.integers(0, 10)))
    found = np.concatenate([near, twice[::2], wild])
    found_kinds = np.concatenate([kinds, kinds[::2], generator.integers(0, classes, len(wild))])
    other = generator.random(len(found)) < 0.1
    found_kinds = np.where(other, (found_kinds + 1) % classes, found_kinds)
    scores = generator.random(len(found)) * np.where(np.arange(len(found)) < count, 1, 0.7)
    keep = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
    return (boxes, kinds), (found[keep], scores[keep], found_kinds[keep])


def detections(xyxy, score, class_id, names=NAMES):
    return Detections(
        np.asarray(xyxy, np.float32).reshape(-1, 4),
        np.asarray(score, np.float32),
        np.asarray(class_id, np.int64),
        names,
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_boxes_get_the_precision_of_the_definition(seed):
    generator = np.random.default_rng(seed)
    pictures = [random_picture(generator, 3) for _ in range(30)]
    # The class d has no object: it must not count, whatever is found of it.
    pictures[0][1][2][:1] = 3
    pairs = [(Truth.of_boxes(*t), detections(*f)) for t, f in pictures]
    got = measure(pairs, NAMES)
    expected = mean_average_precision(
        [np.column_stack([b, k]) for (b, k), _ in pictures],
        # As float32, as the detections hold them: an overlap of exactly a threshold is rare enough.
        [np.column_stack([d.xyxy, d.score, d.class_id]).astype(float) for _, d in pairs],
    )
    table = np.array(list(expected.values()))
    assert 0.1 < got.map50_95 < 0.9, "too easy or too hard to tell anything"
    # Both are means of the same fractions, summed in another order.
    assert got.map50_95 == pytest.approx(table.mean(), abs=1e-9)
    assert got.map50 == pytest.approx(table[:, 0].mean(), abs=1e-9)
    assert got.map75 == pytest.approx(table[:, 5].mean(), abs=1e-9)
    assert list(got.by_class) == ["a", "b", "c"]
    assert list(got.by_class.values()) == pytest.approx(table.mean(axis=1), abs=1e-9)
    assert list(got.map50_by_class.values()) == pytest.approx(table[:, 0], abs=1e-9)
    assert got.objects == sum(len(b) for (b, _), _ in pictures)


def test_only_the_best_hundred_of_a_class_count():
    box = [[10, 10, 60, 60]]
    wrong = [[300, 300, 340, 340]] * 100
    scores = np.linspace(0.9, 0.5, 101)
    last = detections(wrong + box, scores, [0] * 101)
    assert measure([(Truth.of_boxes(box, [0]), last)], NAMES).map50 == 0
    assert measure([(Truth.of_boxes(box, [0]), last[1:])], NAMES).map50 == pytest.approx(0.01)


def test_the_size_is_that_of_the_outline_and_a_crowd_neither_gains_nor_costs():
    truth = Truth(
        np.array([[0, 0, 100, 100], [200, 0, 400, 200]], float),
        np.array([0, 0]),
        np.array([900.0, 40_000.0]),
        np.array([False, True]),
    )
    boxes = [[0, 0, 100, 100], [210, 10, 250, 50], [300, 100, 350, 150]]
    got = measure([(truth, detections(boxes, [0.5, 0.9, 0.8], [0, 0, 0]))], NAMES)
    assert got.map50_95 == pytest.approx(1)
    assert got.by_size == {"small": pytest.approx(1)}
    assert got.recall["1"] == 0, "the best detection is in the crowd"
    assert got.recall["10"] == pytest.approx(1)
    assert (got.objects, got.objects_by_class) == (1, {"a": 1})


def test_nothing_found_is_zero_and_nothing_to_find_is_an_error(capsys):
    truth = Truth.of_boxes([[0, 0, 10, 10]], [1])
    got = measure([(truth, Detections.empty(NAMES))], NAMES)
    assert (got.map50_95, got.map50, got.by_class) == (0, 0, {"b": 0})
    assert got.recall == {"1": 0, "10": 0, "100": 0}
    nothing = Truth.of_boxes(np.zeros((0, 4)), np.zeros(0, int))
    with pytest.raises(UsageError, match="no labelled object in 1 pictures"):
        measure([(nothing, detections([[0, 0, 9, 9]], [0.5], [0]))], NAMES)
    assert capsys.readouterr().out == ""


def bar(length):
    """A row of `length` pixels in a picture of 100 x 3, as object and as detection."""
    bits = np.zeros((3, 100), bool)
    bits[1, :length] = True
    return bits


def masked(bits, found):
    """An object of which the box is found exactly, and the mask as `found` pixels of it."""
    box = [[0, 1, 100, 2]]
    truth = Truth.of_boxes(np.array(box), np.array([0]))
    truth = replace(truth, masks=bits[None])
    return truth, replace(detections(box, [0.9], [0]), masks=(Mask(0, 1, bar(found)[1:2]),))


def test_masks_are_judged_by_their_pixels_not_by_their_boxes():
    got = measure([masked(bar(100), 100), masked(bar(100), 62)], NAMES)
    assert got.map50_95 == pytest.approx(1)
    # Both count up to IoU 0.60, three of ten thresholds; above, the first half of the recalls does:
    # 51 of the 101 at which COCO reads the curve (equal scores, first picture first).
    assert got.masks.map50 == pytest.approx(1)
    assert got.masks.map75 == pytest.approx(51 / 101)
    assert got.masks.map50_95 == pytest.approx((3 + 7 * 51 / 101) / 10)


def test_a_mask_beside_its_object_is_wrong_although_the_box_is_right():
    truth, found = masked(bar(100), 40)
    elsewhere = replace(found, masks=(Mask(60, 0, np.ones((1, 40), bool)),))
    got = measure([(truth, elsewhere)], NAMES)
    assert (got.map50, got.masks.map50) == (pytest.approx(1), 0)


def test_without_masks_on_both_sides_only_boxes_are_judged():
    truth, found = masked(bar(100), 100)
    assert measure([(truth, replace(found, masks=None))], NAMES).masks is None
    assert measure([(replace(truth, masks=None), found)], NAMES).masks is None
    # Nothing found is a result, and no lack of masks.
    nothing = Detections.empty(NAMES)
    got = measure([(truth, nothing), (truth, found)], NAMES)
    assert got.masks.map50 == pytest.approx(51 / 101)
