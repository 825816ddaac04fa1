"""Opens media files and chooses their video stream, with errors that say what was found.

Imports PyAV: import it lazily. Pure functions; safe from any thread.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

import av
import av.error
from av.stream import Disposition

from pipeline.errors import SourceError

# A picture in one of these dispositions is a cover or a preview, not video.
_STILL: Final = Disposition.attached_pic | Disposition.timed_thumbnails
# FFmpeg "decodes" any text file as terminal art; nobody means that.
NO_VIDEO: Final = frozenset({"tty", "bin", "xbin", "adf", "idf"})
"""Formats that FFmpeg sees in any text."""


def open_media(path: Path) -> av.container.InputContainer:
    """Open a media file for reading.

    Raises:
        SourceError: it is missing, a directory, empty, unreadable or no media file.
    """
    if path.is_dir():
        raise SourceError(
            f"{path} is a directory, not a video file: name a file in it, "
            "or use the images source for pictures"
        )
    if not path.exists():
        raise SourceError(f"{path} does not exist: check the path{_similar(path)}")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes): nothing was recorded or copied into it")
    try:
        # The absolute path: a relative "a:b.mp4" would be taken for an address.
        container = av.open(str(path.absolute()), "r")
    except av.error.PermissionError as error:
        raise SourceError(f"{path} cannot be read: permission denied") from error
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path} is not a video that can be read ({_reason(path, error)}): "
            "expected mp4, mov, mkv, webm, avi, flv, ts, gif or another format FFmpeg knows"
        ) from error
    if container.format.name in NO_VIDEO:
        container.close()
        raise SourceError(f"{path} is a text file, not a video: give a video file")
    return container


def choose_stream(
    container: av.container.InputContainer, path: Path, wanted: int | None
) -> av.VideoStream:
    """Return the video stream asked for, or the best: default-marked, then largest, then first.

    Raises:
        SourceError: there is none, or not this one; the text lists those that are there.
    """
    videos = [s for s in container.streams.video if not s.disposition & _STILL]
    if not videos:
        found = ", ".join(_describe(s) for s in container.streams) or "no streams"
        raise SourceError(f"{path} has no video stream (found: {found}): give a file with pictures")
    if wanted is not None and wanted >= len(videos):
        choices = ", ".join(f"{k}: {_describe(s)}" for k, s in enumerate(videos))
        raise SourceError(f"{path} has no video stream {wanted}; there are {choices}")
    # max keeps the first of equals.
    video = max(videos, key=_rank) if wanted is None else videos[wanted]
    if video.codec_context is None:
        raise SourceError(f"{path}: no decoder for its video stream in this build of FFmpeg")
    return video


def _rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
    context = stream.codec_context
    area = context.width * context.height if context is not None else 0
    return context is not None, bool(stream.disposition & Disposition.default), area


def _describe(stream: av.stream.Stream) -> str:
    if stream.type == "video" and isinstance(stream, av.VideoStream) and stream.codec_context:
        context = stream.codec_context
        cover = ", cover picture" if stream.disposition & _STILL else ""
        return f"video {context.name} {context.width}x{context.height}{cover}"
    return f"{stream.type} {stream.codec_context.name if stream.codec_context else '?'}"


def _reason(path: Path, error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        # By far the commonest damaged file: a recorder that was killed before it wrote the index.
        return f"{text}; it is an mp4 or mov without its index, as left by an interrupted recording"
    return str(text)


def _similar(path: Path) -> str:
    try:
        names = [each.name for each in path.absolute().parent.iterdir()]
    except OSError:
        return f", the directory {path.absolute().parent} is not there either"
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"; in that directory there is {', '.join(near)}" if near else ""
