"""Suppression worked out by hand: who survives, in which order, with which score and box."""

from __future__ import annotations

import numpy as np
import pytest

from stages import suppression


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def floats(*values):
    return np.array(values, np.float32)


def ids(*values):
    return np.array(values, np.int64)


# Two boxes of 10x10 that share 10x6: IoU = 60 / 140.
PAIR = boxes([0, 0, 10, 10], [0, 4, 10, 14])
PAIR_IOU = 60 / 140


def test_nothing_gives_nothing():
    none = boxes()
    assert len(suppression.hard(none, floats(), ids(), 0.5)) == 0
    rows, merged = suppression.merge(none, floats(), ids(), 0.5)
    assert len(rows) == 0
    assert merged.shape == (0, 4)
    rows, scores = suppression.soft(none, floats(), ids(), iou_threshold=0.5, score_threshold=0.1)
    assert len(rows) == len(scores) == 0


def test_the_better_of_two_overlapping_boxes_is_kept():
    assert list(suppression.hard(PAIR, floats(0.5, 0.9), None, 0.4)) == [1]


def test_overlap_up_to_the_threshold_is_kept_best_first():
    assert list(suppression.hard(PAIR, floats(0.5, 0.9), None, 0.45)) == [1, 0]


def test_iou_equal_to_the_threshold_is_kept():
    halves = boxes([0, 0, 8, 8], [0, 0, 8, 4])  # IoU is exactly 0.5
    assert list(suppression.hard(halves, floats(0.9, 0.8), None, 0.5)) == [0, 1]


def test_a_suppressed_box_suppresses_nobody():
    chain = boxes([0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18])
    assert list(suppression.hard(chain, floats(0.9, 0.8, 0.7), None, 0.4)) == [0, 2]


def test_classes_do_not_suppress_each_other_unless_asked():
    score = floats(0.9, 0.8)
    same = boxes([0, 0, 10, 10], [0, 0, 10, 10])
    assert list(suppression.hard(same, score, ids(0, 1), 0.5)) == [0, 1]
    assert list(suppression.hard(same, score, None, 0.5)) == [0]


def test_classes_stay_apart_at_coordinates_where_float32_has_no_fraction_left():
    far = boxes([2**24, 0, 2**24 + 8, 8], [2**24, 0, 2**24 + 8, 8], [0, 0, 8, 8])
    rows = suppression.hard(far, floats(0.9, 0.8, 0.7), ids(0, 7, 0), 0.5)
    assert list(rows) == [0, 1, 2]


def test_equal_scores_are_decided_by_index():
    same = np.repeat(boxes([0, 0, 10, 10]), 700, axis=0)
    assert list(suppression.hard(same, np.full(700, 0.5, np.float32), None, 0.5)) == [0]
    apart = boxes(*[[i * 20, 0, i * 20 + 10, 10] for i in range(700)])
    rows = suppression.hard(apart, np.full(700, 0.5, np.float32), None, 0.5)
    assert list(rows) == list(range(700))


def test_boxes_without_area_overlap_nothing():
    flat = boxes([5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 3, 3])
    assert list(suppression.hard(flat, floats(0.9, 0.8, 0.7), None, 0.0)) == [0, 1, 2]


@pytest.mark.parametrize("limit", [1, 2, 300])
def test_a_limit_keeps_the_beginning_of_the_full_answer(limit):
    generator = np.random.default_rng(3)
    start = generator.uniform(0, 300, (2000, 2))
    xyxy = np.concatenate([start, start + generator.uniform(5, 40, (2000, 2))], 1)
    xyxy, score = xyxy.astype(np.float32), generator.random(2000).astype(np.float32)
    full = suppression.hard(xyxy, score, None, 0.45)
    assert len(full) > 300
    assert list(suppression.hard(xyxy, score, None, 0.45, limit)) == list(full[:limit])


def test_merge_averages_by_score():
    rows, merged = suppression.merge(PAIR, floats(0.6, 0.2), None, 0.4)
    assert list(rows) == [0]
    assert merged.tolist() == [[0, 1, 10, 11]]


def test_merge_leaves_a_lone_box_and_its_neighbour_of_another_class_alone():
    rows, merged = suppression.merge(PAIR, floats(0.6, 0.2), ids(0, 1), 0.4)
    assert list(rows) == [0, 1]
    assert np.array_equal(merged, PAIR)


def test_merge_gives_each_box_to_the_best_it_overlaps():
    xyxy = boxes([0, 0, 10, 10], [0, 8, 10, 18], [0, 4, 10, 14])
    rows, merged = suppression.merge(xyxy, floats(0.9, 0.8, 0.1), None, 0.4)
    assert list(rows) == [0, 1]
    np.testing.assert_allclose(merged[0], [0, 0.4, 10, 10.4], rtol=1e-6)
    assert np.array_equal(merged[1], xyxy[1])


def test_soft_gaussian_lowers_by_the_paper_formula():
    rows, scores = suppression.soft(
        PAIR, floats(0.9, 0.8), None, iou_threshold=0.4, score_threshold=0.1, sigma=0.5
    )
    assert list(rows) == [0, 1]
    np.testing.assert_allclose(scores, [0.9, 0.8 * np.exp(-(PAIR_IOU**2) / 0.5)], rtol=1e-6)


@pytest.mark.parametrize(("iou_threshold", "factor"), [(0.4, 1 - PAIR_IOU), (0.45, 1.0)])
def test_soft_linear_lowers_above_the_threshold_only(iou_threshold, factor):
    _, scores = suppression.soft(
        PAIR,
        floats(0.9, 0.8),
        None,
        iou_threshold=iou_threshold,
        score_threshold=0.1,
        linear=True,
    )
    np.testing.assert_allclose(scores, [0.9, 0.8 * factor], rtol=1e-6)


def test_soft_drops_what_falls_below_the_score_threshold_and_minds_classes():
    same = boxes([0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10])
    rows, _ = suppression.soft(
        same, floats(0.9, 0.8, 0.7), ids(0, 0, 1), iou_threshold=0.5, score_threshold=0.3
    )
    assert list(rows) == [0, 2]


def test_soft_puts_a_lowered_box_behind_better_ones():
    xyxy = boxes([0, 0, 10, 10], [0, 1, 10, 11], [50, 0, 60, 10])
    rows, scores = suppression.soft(
        xyxy, floats(0.9, 0.8, 0.7), None, iou_threshold=0.5, score_threshold=0.01
    )
    assert list(rows) == [0, 2, 1]
    assert list(scores) == sorted(scores, reverse=True)


def test_by_score_is_stable_and_limited():
    assert list(suppression.by_score(floats(0.5, 0.9, 0.5, 0.9), 3)) == [1, 3, 0]
