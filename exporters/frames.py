"""Pictures to compare an exported model with its network on.

From a clip, a folder of pictures or the synthetic scene; and always some that have gone wrong for
others: nothing to see but noise, objects cut by an edge, a second picture size. One thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.errors import UsageError
from pipeline.frame import U8

SYNTHETIC: Final = "synthetic:shapes"
_COUNT: Final = 4
"""Pictures taken as they are."""
_APART: Final = 15
"""Frames of a clip between two that are taken: neighbours hardly differ."""
_SEED: Final = 910_000
"""First scene seed; training draws from 1 000 000, its evaluation below 500."""
_SIZE_WH: Final = (1280, 720)
_SECONDS_APART: Final = 7.3
_NOISE: Final = 4.0
"""Standard deviation, of 255."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture and what to call it in a table."""

    name: str
    image: U8
    """(h, w, 3) uint8 BGR."""


def pictures(where: str | None) -> tuple[Picture, ...]:
    """Return the pictures to compare on, those from `where` first.

    Args:
        where: a video file or a folder of pictures; the synthetic scene where it is None.

    Raises:
        UsageError: nothing there can be read as pictures.
        SourceError: the clip cannot be opened.
    """
    chosen = _synthetic() if where is None else _given(where)
    return (*chosen, *_hard_cases(chosen[0]))


def _synthetic() -> tuple[Picture, ...]:
    from stages.sources.scenes import ShapesScene

    drawn = []
    for k in range(_COUNT):
        scene = ShapesScene(_SEED + k, _SIZE_WH, 10)
        drawn.append(Picture(f"scene {_SEED + k}", scene.draw(k, k * _SECONDS_APART)[0]))
    return tuple(drawn)


def _given(where: str) -> tuple[Picture, ...]:
    path = Path(where).expanduser()
    if not path.exists():
        raise UsageError(f"--frames: there is no {where}; give a video or a folder of pictures")
    found = tuple(_from_folder(path) if path.is_dir() else _from_clip(path))
    if not found:
        raise UsageError(f"--frames: no picture could be read from {where}")
    return found


def _from_folder(path: Path) -> Iterator[Picture]:
    from stages.sources.images import find_pictures, read_picture

    files = find_pictures(str(path))
    step = max(1, len(files) // _COUNT)
    for file in files[::step][:_COUNT]:
        image = read_picture(file)
        if image is not None:
            yield Picture(file.name, image)


def _from_clip(path: Path) -> Iterator[Picture]:
    from pipeline.frame import Frame
    from pipeline.stage import RunContext
    from stages.sources.file import FileConfig, FileSource

    source = FileSource(FileConfig(path=str(path)), path.stem)
    source.open(RunContext())
    try:
        for number in range(_COUNT * _APART):
            got = source.read(1.0)
            if not isinstance(got, Frame):
                break
            if number % _APART == 0:
                yield Picture(f"{path.name} frame {number}", got.image)
    finally:
        source.close()


def _hard_cases(first: Picture) -> Iterator[Picture]:
    height, width = first.image.shape[:2]
    # Cut through the middle, objects of the picture's centre lie on the new edges.
    halves = {"left": first.image[:, : -(-width // 2)], "bottom": first.image[height // 2 :]}
    for side, image in halves.items():
        yield Picture(f"{first.name}, {side} half", np.ascontiguousarray(image))
    # As a camera sees them: with noise. In a picture of one value every place scores the same, and
    # which of a thousand equal boxes a detector keeps says nothing about it.
    random = np.random.default_rng(_SEED)
    for name, value in (("gray", 114), ("black", 0)):
        noise = random.normal(value, _NOISE, (480, 640, 3))
        yield Picture(name, noise.round().clip(0, 255).astype(np.uint8))
