"""Which class of a model is which class of labelled pictures: matched by name, never by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from exporters.accuracy.coco import Truth
from exporters.accuracy.labelled import Labelled
from pipeline.detections import I64, Detections
from pipeline.errors import UsageError

# Names of one class in VOC and in the lists that came with Darknet, as COCO writes them.
_ALIASES: Final = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "hairdryer": "hairdrier",
}


@dataclass(frozen=True, slots=True, eq=False)
class ClassMatch:
    """Which class of the data each class of a model is."""

    to_data: I64
    """(model classes,) index into the data's names; -1 where the data has no such class."""
    data_names: tuple[str, ...]
    renamed: dict[str, str]
    """Names of the model that are written otherwise in the data."""
    unknown: tuple[str, ...]
    """Classes with objects that the model does not know."""

    def foreign(self, model_names: Sequence[str]) -> list[str]:
        """Return the model's classes that the data does not have."""
        return [n for n, k in zip(model_names, self.to_data, strict=True) if k < 0]

    def translate(self, found: Detections) -> tuple[Detections, int]:
        """Return detections with the data's ids, and how many are left out: not its classes."""
        class_id = self.to_data[found.class_id]
        rows = np.flatnonzero(class_id >= 0)
        kept = replace(found[rows], class_id=class_id[rows], class_names=self.data_names)
        return kept, len(found) - len(rows)

    def known(self, truth: Truth) -> Truth:
        """Return the objects of classes that the model knows."""
        return truth.take(np.flatnonzero(np.isin(truth.class_id, self.to_data)))


def match_classes(
    model_names: Sequence[str], data: Labelled, *, common_only: bool = False
) -> ClassMatch:
    """Match classes by name: letter for letter, else without case, spaces and signs, or by alias.

    Args:
        model_names: by the model's class ids.
        data: the pictures; only classes with objects must be known to the model.
        common_only: accept that the model does not know all of them.

    Raises:
        UsageError: classes with objects are unknown to the model; the text lists them.
    """
    theirs = {name: k for k, name in enumerate(data.class_names)}
    to_data = np.array([theirs.get(name, -1) for name in model_names], np.int64)
    taken = set(to_data.tolist())
    renamed = {}
    for index in map(int, np.flatnonzero(to_data < 0)):
        plain = _plain(model_names[index])
        fits = [k for n, k in theirs.items() if k not in taken and plain and _plain(n) == plain]
        if len(fits) == 1:
            to_data[index] = fits[0]
            taken.add(fits[0])
            renamed[model_names[index]] = data.class_names[fits[0]]
    present = sorted(data.present())
    unknown = tuple(data.class_names[k] for k in present if k not in taken)
    if unknown and (not common_only or len(unknown) == len(present)):
        raise UsageError(
            f"{len(unknown)} of the {len(present)} classes with objects are unknown to the model: "
            f"{', '.join(unknown)}; it knows: {', '.join(model_names)}"
            + ("" if common_only else "; --common-classes measures only those that both have")
        )
    return ClassMatch(to_data, data.class_names, renamed, unknown)


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.casefold() if letter.isalnum())
    return _ALIASES.get(letters, letters)
