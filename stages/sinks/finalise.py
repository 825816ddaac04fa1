"""Turns a fragmented mp4 into a plain one with its index in front, by copying packets.

The copy is made beside the file, compared with it packet by packet, and takes its place in one
step: at no moment is there no complete file. Needs room for a second copy. Imports av.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av

from pipeline.errors import SinkError


def index_in_front(
    path: Path, muxer: str, chapters: Sequence[dict[str, object]], last_s: Fraction
) -> None:
    """Rewrite `path` with the index in front.

    Args:
        path: A fragmented mp4 or mov, closed.
        muxer: FFmpeg's name of the format.
        chapters: PyAV chapters to add.
        last_s: How long the last video frame is shown, seconds.

    Raises:
        SinkError: the copy differs from the original, which is left as it was.
        OSError, av.FFmpegError: it cannot be read or written; the original is left as it was.
    """
    copy = path.with_name(f".{path.name}.finalising")
    try:
        _copy(path, copy, muxer, chapters, last_s)
        before, after = _timestamps(path), _timestamps(copy)
        if before != after:
            raise SinkError(f"the copy of {path} does not match it: {_difference(before, after)}")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.replace(path)
    finally:
        with contextlib.suppress(OSError):
            copy.unlink(missing_ok=True)


def _copy(
    path: Path, copy: Path, muxer: str, chapters: Sequence[dict[str, object]], last_s: Fraction
) -> None:
    with (
        av.open(str(path)) as source,
        av.open(str(copy), "w", format=muxer, options={"movflags": "+faststart"}) as target,
    ):
        streams: dict[int, Any] = {}
        for stream in source.streams:
            # opaque: copied as it is; otherwise the decoder's name is looked up among encoders.
            twin = target.add_stream_from_template(cast(Any, stream), opaque=True)
            if stream.time_base is not None:
                twin.time_base = stream.time_base
            if stream.language:
                twin.metadata["language"] = stream.language
            streams[stream.index] = twin
        if chapters:
            target.set_chapters(cast(Any, list(chapters)))
        for packet in source.demux():
            if packet.dts is not None:
                if not packet.duration and packet.stream.type == "video":
                    # Fragments of VP9 come back without; it matters for the last frame only, which
                    # players would hide. The others last until the next one.
                    packet.duration = round(last_s / packet.time_base)
                packet.stream = streams[packet.stream.index]
                target.mux_one(packet)


def _timestamps(path: Path) -> dict[int, list[tuple[int | None, int]]]:
    """Return pts and size of all packets by stream.

    Text is left out: the muxer fills the gaps between subtitles with empty ones of its own, and
    chapters are a text track too.
    """
    found: dict[int, list[tuple[int | None, int]]] = {}
    with av.open(str(path)) as container:
        kept = [s for s in container.streams if s.type in {"video", "audio"}]
        for packet in container.demux(kept):
            if packet.dts is not None:
                found.setdefault(packet.stream.index, []).append((packet.pts, packet.size))
    return found


def _difference(
    before: dict[int, list[tuple[int | None, int]]], after: dict[int, list[tuple[int | None, int]]]
) -> str:
    for index in sorted(before.keys() | after.keys()):
        one, other = before.get(index, []), after.get(index, [])
        if len(one) != len(other):
            return f"track {index} has {len(other)} packets instead of {len(one)}"
        for at, (was, now) in enumerate(zip(one, other, strict=True)):
            if was != now:
                return f"packet {at} of track {index} is {now} (pts, bytes) instead of {was}"
    return "no difference"
