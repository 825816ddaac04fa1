"""Every error that a user may meet, and the exit code each one ends in.

    RackfocusError            1
    ├── UsageError            2   a flag, a path or a pair of them that cannot work
    │   └── ConfigError       2   the same in a YAML file: carries `file:line`
    ├── ModelError            2   a model file that cannot be read, recognised or trusted
    │   └── DeviceError       2   the device or runtime that was asked for is not there
    ├── ParityError           1   an exported file does not answer like its network
    ├── SourceError           1   a source failed or lost data
    │   └── RefusedError      1   ... and another try will not mend it
    ├── SinkError             1   an output could not be written
    ├── StageError            1   what the runner raises: names stage, operation, stream, frame
    └── StuckError            1   a stage did not return within its deadline

Messages say what was wrong, where, what was expected and what to do. They must be free of
credentials: print URLs through `pipeline.url.Url`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.frame import FrameId


class RackfocusError(Exception):
    """Base of all errors whose text is meant for the user."""

    exit_code: int = 1


class UsageError(RackfocusError):
    """A flag, a path or a combination of them that cannot work; found before anything ran."""

    exit_code: int = 2


class ConfigError(UsageError):
    """A YAML file, `--set` or stage order that cannot work; the text starts with `file:line`."""


class ModelError(RackfocusError):
    """A model file that cannot be read or recognised, or does not fit what was asked."""

    exit_code: int = 2


class DeviceError(ModelError):
    """The device or runtime that was asked for is not there; never replaced quietly."""


class ParityError(RackfocusError):
    """An exported file does not answer like the network it came from; says where they differ."""


class SourceError(RackfocusError):
    """A source could not be opened, or lost data while it ran."""


class RefusedError(SourceError):
    """A source that another try will not open: wrong password, no such path, no video in it."""


class SinkError(RackfocusError):
    """An output could not be written."""


class StageError(RackfocusError):
    """A stage failed while running: says which, doing what, on which frame. Cause is chained."""

    def __init__(
        self, stage: str, operation: str, cause: BaseException, frame_id: FrameId | None = None
    ) -> None:
        where = f" at frame {frame_id}" if frame_id is not None else ""
        if isinstance(cause, ImportError) and "shared object file" in str(cause):
            # The usual case: OpenCV's wheel on a minimal Linux.
            where += " (a system library is missing: on Debian or Ubuntu apt-get install libgl1"
            where += " libglib2.0-0 brings what OpenCV needs)"
        what = (
            str(cause) if isinstance(cause, RackfocusError) else f"{type(cause).__name__}: {cause}"
        )
        super().__init__(f"{stage}.{operation} failed{where}: {what}")
        self.stage = stage
        self.operation = operation
        self.frame_id = frame_id
        self.__cause__ = cause
        if operation == "open" and isinstance(cause, RackfocusError):
            # Nothing has run yet: a wrong path or device is the user's to mend, not a failed run.
            self.exit_code = cause.exit_code


class StuckError(RackfocusError):
    """A thread did not stop within its deadline; `stack` is where it was."""

    def __init__(self, segment: str, operation: str, waited_s: float, stack: str) -> None:
        super().__init__(
            f"{segment} is stuck in {operation}: it did not return within {waited_s:g} s\n{stack}"
        )
        self.segment = segment
        self.operation = operation
        self.stack = stack
