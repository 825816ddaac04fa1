"""Labelled pictures: where each lies, what it shows, and a hash over all of them.

Holds labels only; pictures are read by whoever measures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporters.accuracy.coco import F64, Truth
from pipeline.detections import I64, Bits
from pipeline.errors import SourceError


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPicture:
    """One picture and its n labelled objects."""

    path: Path
    name: str
    """Relative to the folder."""
    label_file: Path | None
    """Its own; None where it has none."""
    xyxy: F64
    """(n, 4) in pixels, or in shares of the picture where `size_wh` is None."""
    class_id: I64
    area: F64 | None
    """(n,) pixels of the outlines; None where only boxes are known."""
    crowd: Bits
    size_wh: tuple[int, int] | None
    """What the labels say that the picture measures, pixels."""
    read_masks: Callable[[], Bits] | None = None
    """Returns the masks, (n, h, w); None where there are none. They are not kept: a folder of them
    is larger than its pictures."""

    def truth(self, image_wh: tuple[int, int]) -> Truth:
        """Return the objects in pixels of the picture as it was decoded.

        Raises:
            SourceError: the labels are for another size.
        """
        if self.size_wh is None:
            return Truth.of_boxes(self.xyxy * [*image_wh, *image_wh], self.class_id)
        if self.size_wh != image_wh:
            raise SourceError(
                f"{self.path} is {image_wh[0]}x{image_wh[1]}, but its labels are for "
                f"{self.size_wh[0]}x{self.size_wh[1]}: this is another picture, or one that EXIF "
                "turns; store it as its labels mean it"
            )
        boxes = Truth.of_boxes(self.xyxy, self.class_id)
        area = boxes.area if self.area is None else self.area
        masks = None if self.read_masks is None else self.read_masks()
        return Truth(self.xyxy, self.class_id, area, self.crowd, masks)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A folder of labelled pictures."""

    layout: str
    """yolo, coco or masks."""
    folder: Path
    class_names: tuple[str, ...]
    names_from: str
    """Where the class names come from."""
    pictures: tuple[LabelledPicture, ...]
    label_file: Path | None
    """The one for all pictures; None where each has its own."""
    notes: tuple[str, ...] = ()
    """What is odd about the folder, but no error."""

    def sha256(self) -> str:
        """Return a hash of class names, and of name, bytes and labels of each picture."""
        total = hashlib.sha256("\n".join(self.class_names).encode())
        for picture in self.pictures:
            total.update(f"\0{picture.name}\0".encode())
            total.update(_digest(picture.path))
            total.update(_digest(picture.label_file) if picture.label_file else b"\0")
        if self.label_file is not None:
            total.update(_digest(self.label_file))
        return total.hexdigest()

    def present(self) -> frozenset[int]:
        """Return the ids of the classes that have objects."""
        return frozenset(int(k) for p in self.pictures for k in p.class_id[~p.crowd])


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
