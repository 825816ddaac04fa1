"""COCO's average precision a second time: plain NumPy, after the definition. No crowds, no sizes.

Nothing here imports the project or pycocotools.
"""

from __future__ import annotations

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of one class in one picture that count


def mean_average_precision(truths, founds):
    """Return AP by class and threshold: {class: (10,)}, of the classes that have objects.

    Args:
        truths: (n, 5) of each picture: x1, y1, x2, y2, class.
        founds: (m, 6) of each picture: x1, y1, x2, y2, score, class.
    """
    classes = sorted({int(k) for truth in truths for k in truth[:, 4]})
    return {k: class_precision(truths, founds, k) for k in classes}


def class_precision(truths, founds, k):
    """Return (10,): the average precision of one class at each threshold."""
    scores, hits, objects = [], [], 0
    for truth, found in zip(truths, founds, strict=True):
        boxes = truth[truth[:, 4] == k, :4]
        rows = found[found[:, 5] == k]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MOST]
        objects += len(boxes)
        scores.append(rows[:, 4])
        hits.append(greedy_hits(boxes, rows[:, :4]))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(hits, axis=1)[:, order]
    return np.array([interpolated(row, objects) for row in hits])


def greedy_hits(boxes, found):
    """Return (10, m) bool: which detections, best first, get an object of their own."""
    overlaps = iou_table(found, boxes)
    hits = np.zeros((len(THRESHOLDS), len(found)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(boxes), bool)
        for m in range(len(found)):
            fits = np.where(free, overlaps[m], -1)
            if len(boxes) and fits.max() >= threshold:
                free[fits.argmax()] = False
                hits[t, m] = True
    return hits


def interpolated(hits, objects):
    """Return the mean of the best precision at or beyond each of 101 recalls."""
    true = np.cumsum(hits)
    recall = true / objects
    precision = true / np.arange(1, len(hits) + 1)
    return np.mean([precision[recall >= r].max(initial=0) for r in RECALLS])


def iou_table(a, b):
    """Return (len(a), len(b)) intersection over union."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return both / (area_a[:, None] + area_b[None] - both)
