"""Masks as COCO writes them: run lengths, and their compressed string. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Mask

# 5 bits a character; 64-bit numbers need at most 13 of them.
_MAX_CHARACTERS: Final = 13


def rle_counts(mask: Mask, size_wh: tuple[int, int]) -> NDArray[np.int64]:
    """Return COCO's run lengths of a mask in its full picture, without making that picture.

    Args:
        mask: Parts of it outside the picture are cut off.
        size_wh: The picture, pixels.

    Returns:
        (k,) int64: lengths of alternating runs of zeros and ones, zeros first (0 where the first
        pixel is set), columns top to bottom and left to right; they sum to width * height.
    """
    width, height = size_wh
    left, top = max(0, -mask.x), max(0, -mask.y)
    right, bottom = max(left, width - mask.x), max(top, height - mask.y)
    bits = mask.bits[top:bottom, left:right]
    # One row per picture column, a zero at both ends: each run has a start and an end.
    columns = np.zeros((bits.shape[1], bits.shape[0] + 2), np.int8)
    columns[:, 1:-1] = bits.T
    steps = np.diff(columns, axis=1)
    base_x, base_y = mask.x + left, mask.y + top
    column, row = np.nonzero(steps == 1)
    starts = (column + base_x) * height + row + base_y
    column, row = np.nonzero(steps == -1)
    ends = (column + base_x) * height + row + base_y
    # A run that reaches the bottom goes on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    if len(starts):
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, width * height
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    # No empty run of zeros at the end.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def rle_string(counts: NDArray[np.int64]) -> str:
    """Return run lengths as COCO's compressed string (as pycocotools' `rleToString` writes it)."""
    # From the fourth on, the difference to the run of the same colour before it.
    values = counts.astype(np.int64).copy()
    values[3:] -= counts[1:-2]
    digits = np.zeros((len(values), _MAX_CHARACTERS), np.uint8)
    used = np.zeros((len(values), _MAX_CHARACTERS), np.bool_)
    alive = np.ones(len(values), np.bool_)
    for i in range(_MAX_CHARACTERS):
        if not alive.any():
            break
        low = values & 0x1F
        values >>= 5
        # Ends when what is left is only the sign, and the sign bit of this digit says the same.
        more = np.where(low & 0x10, values != -1, values != 0)
        digits[:, i] = low + 0x20 * more + 48
        used[:, i] = alive
        alive &= more
    return digits[used].tobytes().decode("ascii")
