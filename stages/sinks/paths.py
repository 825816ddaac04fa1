"""Where outputs may be written: the checks that every file sink makes before it touches the disk.

Pure apart from looking at the file system; nothing is created, opened or removed here. Safe from
any thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pipeline.errors import SinkError, UsageError
from pipeline.stage import StreamInfo

STREAM: Final = "{stream}"
"""Stands for the stream's name in an output path."""

# Everything that a file system or a shell could take for more than a name.
_UNSAFE: Final = re.compile(r"[^\w.-]+")


def for_stream(pattern: str, stream: str) -> str:
    """Return the output path of one stream: `{stream}` replaced by a safe form of its name."""
    safe = _UNSAFE.sub("_", stream).strip("._") or "stream"
    return pattern.replace(STREAM, safe)


def check_target(path: str, *, overwrite: bool, sink: str) -> None:
    """Check that a file can be written at `path`.

    Raises:
        UsageError: the folder is missing, or the path is a folder, not writable, or an existing
            file that was not to be overwritten.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(
            f"{sink}: cannot write {path}: the folder {folder} does not exist; "
            f"create it (mkdir -p {folder}) or choose another path"
        )
    if target.is_dir():
        raise UsageError(f"{sink}: cannot write {path}: it is a folder; give the path of a file")
    if target.exists() and not overwrite:
        raise UsageError(
            f"{sink}: {path} exists already; choose another name or pass --overwrite to replace it"
        )
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise UsageError(f"{sink}: cannot write {path}: permission denied")


def check_not_source(path: str, streams: Iterable[StreamInfo], *, sink: str) -> None:
    """Check that `path` is no file that is being read, whatever it is called and linked as.

    Raises:
        UsageError: it is; writing would destroy the input, so `--overwrite` does not allow it.
    """
    for info in streams:
        if info.path is not None and _same_file(path, info.path):
            raise UsageError(
                f"{sink}: {path} is the input of stream '{info.name}'; writing would destroy it; "
                "choose another path for the output"
            )


def check_streams(pattern: str, streams: Iterable[str], *, sink: str) -> None:
    """Check that each stream gets a path of its own.

    Raises:
        SinkError: several streams and no `{stream}` in the path, or two names that make one path.
    """
    paths: dict[str, str] = {}
    for stream in streams:
        path = for_stream(pattern, stream)
        other = paths.setdefault(path, stream)
        if other != stream:
            remedy = (
                f"two of their names make the same path {path}; rename one of them"
                if STREAM in pattern
                else f"put {STREAM} into the path, e.g. {_with_placeholder(pattern)}"
            )
            raise SinkError(
                f"{sink}: streams '{other}' and '{stream}' cannot share {pattern}: {remedy}"
            )


def _with_placeholder(pattern: str) -> str:
    path = Path(pattern)
    return str(path.with_name(f"{path.stem}-{STREAM}{path.suffix}"))


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # one of them does not exist: compare where they would be
        return os.path.realpath(one) == os.path.realpath(other)
