"""The images source: pictures of a directory or pattern as the frames of one stream.

Never waits, so it is not live. One thread calls one instance.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.frame import U8, Frame, FrameId, FrameTime
from pipeline.stage import End, ReadResult, RunContext, Source, StreamInfo
from pipeline.url import Url

SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"}
)
"""What is taken from a directory; a pattern or a list takes what it names."""


class ImagesConfig(Config):
    """Pictures (PNG, JPEG, WebP, TIFF, BMP) as a video, in natural order: img2 before img10."""

    path: str | tuple[str, ...] = Field(
        description="a directory, a pattern such as 'shots/*.png', or a list of files, in order"
    )
    fps: str = Field("25", description="frames per second: 25, 12.5 or 30000/1001")

    @field_validator("fps", mode="before")
    @classmethod
    def _check_fps(cls, value: object) -> str:
        text = str(value)
        try:
            rate = Fraction(text)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{text!r} is no rate: expected 25, 12.5 or 30000/1001") from error
        if not 0 < rate <= 100_000:
            raise ValueError(f"the rate must be above 0 and at most 100000, got {text}")
        return text


class ImagesSource(Source):
    """Reads pictures one by one; frame k has pts k in a time base of one frame duration.

    A file that cannot be read as a picture is counted ("corrupt") and skipped; the others keep
    their places in time. Sizes may change from frame to frame. 16 bit is scaled to 8, transparency
    is dropped, gray becomes BGR, EXIF orientation is applied. `Frame.meta["path"]` is the file.
    """

    live = False

    def __init__(self, config: ImagesConfig, name: str) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._time_base = 1 / Fraction(config.fps)
        self._paths: list[Path] | None = None

    def open(self, context: RunContext) -> StreamInfo:
        """List the pictures and read the first that can be read.

        Raises:
            SourceError: nothing matches, or not one of the files is a picture.
        """
        self._context = context
        self.counters = {"corrupt": 0}
        paths = find_pictures(self._config.path)
        self._at = self._seq = 0
        self._paths = paths
        self._first = self._next_picture()
        if self._first is None:
            self._paths = None
            raise SourceError(
                f"{_shown(self._config.path)}: not one of its {len(paths)} files can be read as a "
                f"picture (first: {paths[0]})"
            )
        _, _, image = self._first
        count = len(paths)
        return StreamInfo(
            name=self.name,
            uri=Url(_shown(self._config.path)),
            live=False,
            size_wh=(image.shape[1], image.shape[0]),
            time_base=self._time_base,
            rate_hz=1 / self._time_base,
            frame_count=count,
            duration_s=count * self._time_base,
            path=str(paths[0].absolute()) if count == 1 else None,
        )

    def read(self, timeout_s: float) -> ReadResult:  # noqa: ARG002 - files never wait
        """Return the next picture, or `End`.

        Raises:
            SourceError: the source is not open.
        """
        if self._paths is None:
            raise SourceError(f"{self.name}: read() before open()")
        found, self._first = self._first or self._next_picture(), None
        if found is None:
            return End()
        place, path, image = found
        time = FrameTime(self._context.clock.now_ns(), place, self._time_base, 1)
        identity = FrameId(self.name, 0, self._seq)
        self._seq += 1
        return Frame(identity, time, image, meta=MappingProxyType({"path": str(path)}))

    def close(self) -> None:
        """Forget the list. Idempotent."""
        self._paths = None
        self._first = None

    def _next_picture(self) -> tuple[int, Path, U8] | None:
        while self._paths is not None and self._at < len(self._paths):
            place = self._at
            path = self._paths[place]
            self._at += 1
            image = read_picture(path)
            if image is not None:
                return place, path, image
            self.counters["corrupt"] += 1
            self._context.note(f"{self.name}: {path} cannot be read as a picture, skipped")
        return None


def natural_key(path: str | Path) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key by which numbers in names count as numbers; case is ignored at first.

    Equal for names that differ only in case or leading zeros: sort by (key, name) to be certain.
    """
    parts = re.split(r"([0-9]+)", str(path).casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def find_pictures(path: str | Sequence[str]) -> list[Path]:
    """Return the files of a directory, pattern or list; the first two in natural order.

    Raises:
        SourceError: nothing is there; the text says what was looked for.
    """
    if not isinstance(path, str):
        missing = [each for each in path if not Path(each).expanduser().is_file()]
        if missing or not path:
            raise SourceError(
                f"{len(missing)} of {len(path)} listed pictures are not there"
                + (f": {', '.join(missing[:3])}" if missing else "; list at least one")
            )
        return [Path(each).expanduser() for each in path]
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [f for f in place.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()]
        looked_for = f"files ending in {', '.join(sorted(SUFFIXES))}"
    else:
        matches = glob.glob(str(place), recursive=True)  # noqa: PTH207 - takes absolute patterns
        found = [f for f in map(Path, matches) if f.is_file()]
        looked_for = "files that match it (in quotes, so that the shell leaves it alone)"
    if not found:
        raise SourceError(f"{path}: no pictures there; looked for {looked_for}")
    return sorted(found, key=lambda f: (natural_key(f), str(f)))


def read_picture(path: Path) -> U8 | None:
    """Return (h, w, 3) uint8 BGR, C-contiguous, or None where the file is no readable picture."""
    import cv2
    import numpy as np

    try:
        data = np.fromfile(path, np.uint8)
        # From memory: imread cannot open non-ASCII paths everywhere, and prints when it fails.
        image = None if data.size == 0 else cv2.imdecode(data, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if image is None else np.ascontiguousarray(image, dtype=np.uint8)


def _shown(path: str | Sequence[str]) -> str:
    return path if isinstance(path, str) else f"{path[0]} and {len(path) - 1} more"
