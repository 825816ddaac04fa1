"""Results as JSON lines: one object a frame, every frame, in order.

The file is made at the first frame, so a start that fails leaves nothing behind; a run without
frames makes an empty one when it ends. The sink's thread runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SinkError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink
from stages.sinks import paths
from stages.sinks.record import record_line

FLUSH_NS: Final = 500_000_000
"""Lines reach the operating system at least this often while frames come: a kill loses little."""


class JsonlSinkConfig(Config):
    """Where the lines go."""

    path: str = Field(description="The file, *.jsonl; {stream} in it makes one file per stream.")
    overwrite: bool = Field(default=False, description="Replace the file if it exists.")


class _Lines:
    """One open file."""

    def __init__(self, path: str, sink: str) -> None:
        self.path = path
        self._sink = sink
        self.frames = 0
        self.bytes = 0
        self.flushed_ns: int | None = None
        try:
            # Unbuffered below our own list: after a failed write nothing is left to fail again in close.
            self._file: BinaryIO | None = Path(path).open("wb", buffering=0)
        except OSError as error:
            raise SinkError(f"{sink}: cannot create {path}: {error.strerror}") from error
        self._pending: list[bytes] = []

    def add(self, line: str, now_ns: int) -> None:
        self._pending.append(line.encode() + b"\n")
        self.frames += 1
        if self.flushed_ns is None or now_ns - self.flushed_ns >= FLUSH_NS:
            self.flushed_ns = now_ns
            self.write()

    def write(self) -> None:
        """Hand everything pending to the operating system."""
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        try:
            while data and self._file is not None:
                written = self._file.write(data)
                self.bytes += written
                data = data[written:]
        except OSError as error:
            whole = self.bytes
            raise SinkError(
                f"{self._sink}: writing {self.path} failed after {whole} bytes: {error.strerror}; "
                "the lines written so far are intact (the last one may be cut)"
            ) from error

    def close(self) -> None:
        """Write what is pending and close; idempotent."""
        if self._file is not None:
            try:
                self.write()
            finally:
                self._file.close()
                self._file = None


class JsonlSink(Sink):
    """Writes `record_line` of every frame.

    Raises:
        UsageError: (open) the folder is missing, or the file exists and is not to be replaced.
        SinkError: (process, flush) it cannot be written; the lines before are intact.
    """

    def __init__(self, config: JsonlSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._files: dict[str, _Lines] = {}
        self._context = RunContext()

    def open(self, context: RunContext) -> None:
        """Check the path; nothing is created yet."""
        self._context = context
        self._files = {}
        self._check(paths.for_stream(self.config.path, "stream"))

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Write a line for each frame."""
        for frame in items:
            path = paths.for_stream(self.config.path, frame.id.stream)
            lines = self._files.get(path) or self._create(path)
            lines.add(record_line(frame), self._context.clock.now_ns())
        return ()

    def flush(self) -> Sequence[Frame]:
        """Complete the files; a stream without frames gets an empty one."""
        names = list(self._context.streams) if paths.STREAM in self.config.path else ["stream"]
        for name in names:
            path = paths.for_stream(self.config.path, name)
            if path not in self._files:
                self._create(path)
        self.close()
        return ()

    def close(self) -> None:
        """Write what is pending and close the files."""
        first: SinkError | None = None
        for lines in self._files.values():
            try:
                lines.close()
            except SinkError as error:
                first = first or error
        if first is not None:
            raise first

    def outputs(self) -> Sequence[OutputInfo]:
        """Return one entry a file."""
        return [OutputInfo(f.path, f.frames, bytes=f.bytes) for f in self._files.values()]

    def _create(self, path: str) -> _Lines:
        self._check(path)
        lines = self._files[path] = _Lines(path, self.name)
        return lines

    def _check(self, path: str) -> None:
        paths.check_target(path, overwrite=self.config.overwrite, sink=self.name)
        paths.check_not_source(path, self._context.streams.values(), sink=self.name)
