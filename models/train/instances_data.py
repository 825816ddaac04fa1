"""Pictures with a mask for each object: the folder layout, and how they become a network's input.

A folder has `images/` and `masks/`. The mask of `images/a.jpg` is `masks/a.png`: as large as the
picture, one channel, 0 where there is nothing, and one number (1, 2, ...; gaps are fine) for the
pixels of each object. Pictures are read when they are asked for; nothing is kept. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Bits
from pipeline.errors import SourceError, UsageError
from pipeline.geometry import F32, Letterbox
from stages.decoders.decoder import Preprocessing
from stages.fitting import Fitter, plan
from stages.sources.images import SUFFIXES, find_pictures, read_picture


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and the file with its masks."""

    picture: Path
    masks: Path


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The n objects of a picture, by the number that the mask file gives them."""

    xyxy: F32
    """(n, 4) float32, pixels, continuous edges: the extent of what is visible."""
    bits: Bits
    """(n, h, w) bool, as large as the picture."""

    def __len__(self) -> int:
        return len(self.xyxy)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture with its n objects as a network's input."""

    tensor: F32
    """(3, h, w) float32."""
    xyxy: F32
    """(n, 4) float32, pixels of the input."""
    masks: F32
    """(n, h, w) float32: the share of each input pixel that belongs to the object, 0..1."""
    letterbox: Letterbox


def find_pairs(folder: Path, most: int | None = None) -> tuple[Pair, ...]:
    """Return the pictures of a folder with their mask files, in natural order, the first `most`.

    Raises:
        UsageError: the folder has not that layout, or a picture has no mask file.
    """
    images, masks = folder / "images", folder / "masks"
    for inner in (images, masks):
        if not inner.is_dir():
            raise UsageError(
                f"there is no folder {inner}: expected images/ and masks/ in {folder}, where the "
                "mask of images/a.jpg is masks/a.png"
            )
    try:
        pictures = find_pictures(str(images))[:most]
    except SourceError as error:
        raise UsageError(
            f"{images}: there are no pictures ({', '.join(sorted(SUFFIXES))})"
        ) from error
    pairs = tuple(Pair(picture, masks / f"{picture.stem}.png") for picture in pictures)
    bare = [pair for pair in pairs if not pair.masks.is_file()]
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(pairs)} pictures have no mask file, first {bare[0].picture}: "
            f"expected {bare[0].masks}; a file of zeros says that nothing is there"
        )
    return pairs


def read_masks(path: Path) -> Instances:
    """Return the objects of a mask file.

    Raises:
        SourceError: it is no picture of object numbers.
    """
    try:
        # From memory: imread cannot open non-ASCII paths everywhere, and prints when it fails.
        data = np.fromfile(path, np.uint8)
        numbers = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    except (OSError, cv2.error):
        numbers = None
    if numbers is None:
        raise SourceError(f"{path} cannot be read as a picture of masks")
    if numbers.ndim != 2 or numbers.dtype.kind != "u":
        form = f"{numbers.shape[2] if numbers.ndim == 3 else 1} channels of {numbers.dtype}"
        raise SourceError(
            f"{path} has {form}: expected one channel of object numbers, 8 or 16 bit, 0 where "
            "there is nothing; a palette or colours must be turned into numbers first"
        )
    found = np.unique(numbers)
    bits = numbers == found[found > 0][:, None, None]
    xyxy = np.zeros((len(bits), 4), np.float32)
    for row, one in enumerate(bits):
        y, x = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        # Pixel k covers k to k + 1.
        xyxy[row] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return Instances(xyxy, bits)


def read_pair(pair: Pair) -> tuple[NDArray[np.uint8], Instances]:
    """Return the picture, (h, w, 3) uint8 BGR, and its objects.

    Raises:
        SourceError: one of the files cannot be read, or they differ in size.
    """
    image = read_picture(pair.picture)
    if image is None:
        raise SourceError(f"{pair.picture} cannot be read as a picture")
    found = read_masks(pair.masks)
    if found.bits.shape[1:] != image.shape[:2]:
        (height, width), (mask_h, mask_w) = image.shape[:2], found.bits.shape[1:]
        raise SourceError(
            f"{pair.masks} is {mask_w}x{mask_h}, but {pair.picture} is {width}x{height}: a mask "
            "file is as large as its picture (as turned by EXIF, if it is)"
        )
    return image, found


class InstancesData:
    """The training pictures as samples. One thread.

    Args:
        pairs: what to read.
        preprocessing: the network's; pictures are fitted as the program fits them.
    """

    def __init__(self, pairs: Sequence[Pair], preprocessing: Preprocessing) -> None:
        self.pairs = tuple(pairs)
        self.preprocessing = preprocessing
        self._fitter = Fitter(preprocessing)

    def __len__(self) -> int:
        return len(self.pairs)

    def count_objects(self) -> int:
        """Read everything once, and return how many objects there are.

        Raises:
            SourceError: a file is broken; the text names it.
            UsageError: there is no object in any of them.
        """
        count = sum(len(read_pair(pair)[1]) for pair in self.pairs)
        if count == 0:
            raise UsageError(
                f"none of the {len(self)} mask files has an object, first {self.pairs[0].masks}"
            )
        return count

    def __getitem__(self, index: int) -> Sample:
        image, found = read_pair(self.pairs[index])
        tensor, letterbox = self._fitter.fit(image)
        place = plan((image.shape[1], image.shape[0]), self.preprocessing)
        (left, top), (inner_w, inner_h) = place.left_top, place.resized_wh
        masks = np.zeros((len(found), *tensor.shape[1:]), np.float32)
        for row, bits in enumerate(found.bits):
            # As the picture itself is scaled, so that both stay aligned.
            small = cv2.resize(
                bits.astype(np.float32), place.resized_wh, interpolation=cv2.INTER_LINEAR
            )
            masks[row, top : top + inner_h, left : left + inner_w] = small
        return Sample(
            tensor.astype(np.float32, copy=False), letterbox.to_model(found.xyxy), masks, letterbox
        )


def flipped(sample: Sample) -> Sample:
    """Return the sample mirrored left to right."""
    width = sample.tensor.shape[2]
    xyxy = sample.xyxy.copy()
    xyxy[:, [0, 2]] = width - sample.xyxy[:, [2, 0]]
    mirror = (..., slice(None, None, -1))
    return Sample(
        np.ascontiguousarray(sample.tensor[mirror]),
        xyxy,
        np.ascontiguousarray(sample.masks[mirror]),
        sample.letterbox,
    )
