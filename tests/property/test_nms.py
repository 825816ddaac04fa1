"""Laws of suppression over drawn scenes, and agreement with torchvision and with a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import suppression

THRESHOLDS = st.sampled_from([0.1, 0.3, 0.45, 0.7, 0.9])


@st.composite
def scenes(draw, max_size=600):
    """Draw candidates around a few objects, with distinct scores."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, max_size))
    objects = draw(st.integers(1, 12))
    which = generator.integers(0, objects, n)
    centre = generator.uniform(0, 300, (objects, 2))[which] + generator.normal(0, 8, (n, 2))
    size = generator.uniform(5, 120, (objects, 2))[which] * generator.uniform(0.7, 1.4, (n, 2))
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
    score = ((generator.permutation(n) + 1) / (n + 1)).astype(np.float32)
    return xyxy, score, generator.integers(0, draw(st.integers(1, 4)), n)


def iou_matrix(xyxy):
    """Return (n, n) IoU in float64, the obvious way."""
    b = xyxy.astype(np.float64)
    low = np.maximum(b[:, None, :2], b[None, :, :2])
    high = np.minimum(b[:, None, 2:], b[None, :, 2:])
    shared = np.prod((high - low).clip(0), axis=2)
    area = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return shared / (area[:, None] + area - shared)


def plain_loop(xyxy, score, class_id, threshold):
    """Greedy suppression as the textbook has it."""
    iou, kept = iou_matrix(xyxy), []
    for row in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        if all(class_id[row] != class_id[k] or iou[row, k] <= threshold for k in kept):
            kept.append(row)
    return kept


@settings(max_examples=60, deadline=None)
@given(scenes(), THRESHOLDS)
def test_hard_equals_the_plain_loop(scene, threshold):
    assert list(suppression.hard(*scene, threshold)) == plain_loop(*scene, threshold)


@settings(max_examples=60, deadline=None)
@given(scenes(), THRESHOLDS)
def test_hard_is_sorted_idempotent_and_leaves_no_overlap(scene, threshold):
    xyxy, score, class_id = scene
    kept = suppression.hard(xyxy, score, class_id, threshold)
    assert len(set(kept)) == len(kept)
    assert (np.diff(score[kept]) < 0).all()
    again = suppression.hard(xyxy[kept], score[kept], class_id[kept], threshold)
    assert list(again) == list(range(len(kept)))
    over = np.triu(iou_matrix(xyxy[kept]), 1) > threshold + 1e-5
    assert not (over & (class_id[kept][:, None] == class_id[kept])).any()


@settings(max_examples=40, deadline=None)
@given(scenes(), THRESHOLDS, st.randoms(use_true_random=False))
def test_hard_does_not_depend_on_input_order_for_distinct_scores(scene, threshold, random):
    xyxy, score, class_id = scene
    order = np.array(random.sample(range(len(score)), len(score)), np.int64)
    kept = suppression.hard(xyxy, score, class_id, threshold)
    shuffled = suppression.hard(xyxy[order], score[order], class_id[order], threshold)
    assert list(order[shuffled]) == list(kept)


@settings(max_examples=40, deadline=None)
@given(scenes(), THRESHOLDS)
def test_all_classes_at_once_equal_each_class_alone(scene, threshold):
    xyxy, score, class_id = scene
    together = set(suppression.hard(xyxy, score, class_id, threshold))
    alone = set()
    for one in np.unique(class_id):
        rows = np.flatnonzero(class_id == one)
        alone |= set(rows[suppression.hard(xyxy[rows], score[rows], None, threshold)])
    assert together == alone


@settings(max_examples=40, deadline=None)
@given(scenes(), THRESHOLDS)
def test_merge_keeps_the_rows_of_hard_and_stays_within_its_members(scene, threshold):
    xyxy, score, class_id = scene
    rows, merged = suppression.merge(xyxy, score, class_id, threshold)
    assert list(rows) == list(suppression.hard(xyxy, score, class_id, threshold))
    iou = iou_matrix(xyxy)
    for row, box in zip(rows, merged, strict=True):
        near = (iou[row] > threshold - 1e-5) & (class_id == class_id[row])
        assert (box >= xyxy[near].min(0) - 1e-3).all()
        assert (box <= xyxy[near].max(0) + 1e-3).all()


@settings(max_examples=30, deadline=None)
@given(scenes(200), st.booleans())
def test_soft_never_raises_a_score_and_keeps_them_sorted(scene, linear):
    xyxy, score, class_id = scene
    rows, lowered = suppression.soft(
        xyxy, score, class_id, iou_threshold=0.45, score_threshold=0.2, linear=linear
    )
    assert len(set(rows)) == len(rows)
    assert (lowered <= score[rows] + 1e-6).all()
    assert (np.diff(lowered) <= 0).all()
    assert (lowered >= np.float32(0.2) - 1e-6).all()


@pytest.mark.needs_torch
@settings(max_examples=40, deadline=None)
@given(scenes(), THRESHOLDS)
def test_hard_equals_torchvision_batched_nms(scene, threshold):
    import torch
    from torchvision.ops import batched_nms

    xyxy, score, class_id = scene
    wanted = batched_nms(*map(torch.from_numpy, scene), threshold).numpy()
    assert list(suppression.hard(xyxy, score, class_id, threshold)) == list(wanted)
