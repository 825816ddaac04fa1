"""Results as JSON lines: one object a frame, every frame, in order.

The file is made at the first frame, so a start that fails leaves nothing behind; a run whose
source had no frames makes an empty one when it ends. The sink's thread runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SinkError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink
from stages.sinks import paths
from stages.sinks.record import record_line


class JsonlSinkConfig(Config):
    """Where the lines go."""

    path: str = Field(description="The file, *.jsonl; {stream} in it makes one file per stream.")
    overwrite: bool = Field(default=False, description="Replace the file if it exists.")


class _Lines:
    """One open file. Every line goes to the operating system at once (a few microseconds): a kill
    loses none, also where the next frame is long in coming."""

    def __init__(self, path: str, sink: str) -> None:
        self.path = path
        self._sink = sink
        self.frames = 0
        self.bytes = 0
        try:
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise SinkError(f"{sink}: cannot create {path}: {error.strerror}") from error

    def add(self, line: str) -> None:
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                written = self._file.write(data)
                self.bytes += written
                data = data[written:]
        except OSError as error:
            raise SinkError(
                f"{self._sink}: writing {self.path} failed after {self.frames} lines: "
                f"{error.strerror}; those lines are intact (a cut one may follow them)"
            ) from error
        self.frames += 1

    def close(self) -> None:
        self._file.close()


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
            lines.add(record_line(frame))
        return ()

    def flush(self) -> Sequence[Frame]:
        """Complete the files; a stream without frames gets an empty one."""
        # Without a stream no source was opened: a start that was stopped leaves nothing behind.
        for name in self._context.streams:
            path = paths.for_stream(self.config.path, name)
            if path not in self._files:
                self._create(path)
        self.close()
        return ()

    def close(self) -> None:
        """Close the files."""
        for lines in self._files.values():
            lines.close()

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
