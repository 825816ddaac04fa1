"""One picture file a frame: `frames/%06d.jpg`, numbered by the frame's own sequence number.

The sink's thread runs it. cv2 is imported when it opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.errors import SinkError, UsageError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink
from stages.sinks import paths

FORMATS: Final = (".jpg", ".jpeg", ".png", ".webp")


class ImagesSinkConfig(Config):
    """Where the pictures go, and how well they are kept."""

    path: str = Field(
        description="Pattern with one number, e.g. frames/%06d.jpg (.jpg, .png, .webp); {stream} "
        "makes it one series per stream."
    )
    overwrite: bool = Field(default=False, description="Replace pictures that exist.")
    quality: int = Field(default=95, ge=1, le=100, description="Of JPEG and WebP, 1 to 100.")

    @field_validator("path")
    @classmethod
    def _has_a_number(cls, path: str) -> str:
        try:
            numbered = path % 0 != path % 1
        except (TypeError, ValueError):
            numbered = False
        if not numbered:
            raise ValueError(
                f"'{path}' must hold one place for the frame number, such as %06d: frames/%06d.jpg"
            )
        if Path(path).suffix.lower() not in FORMATS:
            raise ValueError(f"'{path}' must end in one of {', '.join(FORMATS)}")
        return path


class ImagesSink(Sink):
    """Writes each frame's picture.

    After a reconnect numbers start anew; pictures of later epochs get `-e1`, `-e2` ... before the
    ending, so that nothing written in this run is replaced.

    Raises:
        UsageError: (open) the folder is missing, or the first picture exists already.
        SinkError: (process) a picture exists already or cannot be written.
    """

    def __init__(self, config: ImagesSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._cv2: Any = None
        self._context = RunContext()
        self._written: dict[str, list[int]] = {}

    def open(self, context: RunContext) -> None:
        """Check the folder and that the series does not start on existing files."""
        import cv2

        self._cv2 = cv2
        self._context = context
        self._written = {}
        paths.check_streams(self.config.path, context.streams, sink=self.name)
        for stream in context.streams or ["stream"]:
            first = paths.for_stream(self.config.path, stream) % 0
            paths.check_target(first, overwrite=self.config.overwrite, sink=self.name)

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Write a picture for each frame."""
        for frame in items:
            stream = frame.id.stream
            if stream not in self._written:
                paths.check_streams(self.config.path, [*self._written, stream], sink=self.name)
                self._written[stream] = [0, 0]
            path = Path(paths.for_stream(self.config.path, stream) % frame.id.seq)
            if frame.id.epoch:
                path = path.with_name(f"{path.stem}-e{frame.id.epoch}{path.suffix}")
            size = self._write(path, frame)
            count = self._written[stream]
            count[0] += 1
            count[1] += size
        return ()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return one entry a stream."""
        return [
            OutputInfo(paths.for_stream(self.config.path, stream), frames, bytes=size)
            for stream, (frames, size) in self._written.items()
        ]

    def _write(self, path: Path, frame: Frame) -> int:
        # To memory first: cv2.imwrite says only True or False, not what went wrong.
        kind = path.suffix.lower()
        options = {
            ".png": [],
            ".webp": [self._cv2.IMWRITE_WEBP_QUALITY, self.config.quality],
        }.get(kind, [self._cv2.IMWRITE_JPEG_QUALITY, self.config.quality])
        try:
            done, data = self._cv2.imencode(kind, frame.image, options)
        except self._cv2.error as error:
            raise SinkError(f"{self.name}: cannot encode {path} as {kind}: {error}") from error
        if not done:
            raise SinkError(
                f"{self.name}: cannot encode {path}: {kind} cannot hold a picture of "
                f"{frame.size_wh[0]}x{frame.size_wh[1]}"
            )
        try:
            paths.check_not_source(str(path), self._context.streams.values(), sink=self.name)
            # "x" fails on an existing file without a moment in between.
            with path.open("wb" if self.config.overwrite else "xb") as file:
                file.write(data)
        except UsageError as error:
            raise SinkError(str(error)) from error
        except FileExistsError as error:
            raise SinkError(
                f"{self.name}: {path} exists already; choose another folder or pass --overwrite"
            ) from error
        except OSError as error:
            raise SinkError(f"{self.name}: writing {path} failed: {error.strerror}") from error
        return len(data)
