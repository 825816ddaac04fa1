"""Pictures labelled with a mask for each object, in the layout that `models.train` trains on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from exporters.accuracy.labelled import LabelledPicture
from models.train.instances_data import Pair, find_pairs, read_masks
from pipeline.detections import Bits


def read_mask_pictures(folder: Path) -> tuple[LabelledPicture, ...]:
    """Return the pictures of `folder/images` with the objects of `folder/masks`, all of class 0.

    Raises:
        UsageError: a picture has no mask file, or there are none.
        SourceError: a mask file is broken; the text starts with its name.
    """
    return tuple(map(_picture, find_pairs(folder)))


def _picture(pair: Pair) -> LabelledPicture:
    found = read_masks(pair.masks)
    count, height, width = found.bits.shape
    return LabelledPicture(
        pair.picture,
        pair.picture.name,
        pair.masks,
        found.xyxy.astype(np.float64),
        np.zeros(count, np.int64),
        found.bits.sum(axis=(1, 2)).astype(np.float64),
        np.zeros(count, bool),
        (width, height),
        partial(_bits, pair.masks),
    )


def _bits(path: Path) -> Bits:
    return read_masks(path).bits
