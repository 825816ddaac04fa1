"""Reads what a file has beside its pictures: audio, subtitles and chapters, as packets.

Each reader opens the file once more, so several sinks read at their own pace. Imports PyAV: import
it lazily. One thread calls one reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error

from pipeline.stage import SidePacket, SideTrack
from stages.sources.media import open_media


class FileSideReader:
    """A `pipeline.stage.SideReader` over a file. Packets keep the container's clock: the video's.

    Raises:
        SourceError: the file cannot be opened (any more).
    """

    def __init__(self, path: Path) -> None:
        self._container: av.container.InputContainer | None = open_media(path)
        self._streams = _side_streams(self._container)
        self._tracks = tuple(_track(stream) for stream in self._streams)
        self._chapters = tuple(dict(chapter) for chapter in self._container.chapters())
        for stream in self._container.streams:
            if stream not in self._streams:
                stream.discard = av.stream.Discard.all

    @property
    def tracks(self) -> Sequence[SideTrack]:
        """The audio and subtitle streams, in the file's order."""
        return self._tracks

    @property
    def chapters(self) -> Sequence[Mapping[str, object]]:
        """Chapters as PyAV gives them: id, start, end, time_base, metadata."""
        return self._chapters

    def packets(self) -> Iterator[SidePacket]:
        """Yield the packets in the order of the file; ends where the file does, or breaks off.

        Every packet is yielded unchanged, also those that an edit list hides (an AAC encoder's
        priming), so that copies are bit-identical.
        """
        if self._container is None or not self._streams:
            return
        place = {stream.index: k for k, stream in enumerate(self._streams)}
        ends = dict.fromkeys(place, Fraction(0))
        try:
            for packet in self._container.demux(self._streams):
                if packet.size == 0 and packet.dts is None and packet.pts is None:
                    continue  # PyAV's mark for the end of each stream
                stamp = packet.pts if packet.pts is not None else packet.dts
                base = packet.time_base
                # No stamp at all (some AVI): right behind the packet before.
                start = ends[packet.stream_index] if stamp is None else stamp * base
                ends[packet.stream_index] = start + (packet.duration or 0) * base
                yield SidePacket(place[packet.stream_index], start, packet)
        except av.error.FFmpegError:
            # A damaged or cut-off file: the source reads the same bytes and reports it.
            return

    def close(self) -> None:
        """Release the file; idempotent."""
        if self._container is not None:
            self._container.close()
            self._container = None
            # Their streams are FFmpeg's memory, which is gone now.
            self._streams, self._tracks = [], ()


def has_side(container: av.container.InputContainer) -> bool:
    """Return whether there is anything for a `FileSideReader` to read."""
    return bool(_side_streams(container) or container.chapters())


def _side_streams(container: av.container.InputContainer) -> list[av.stream.Stream]:
    return [s for s in container.streams if s.type in ("audio", "subtitle")]


def _track(stream: av.stream.Stream) -> SideTrack:
    context = stream.codec_context
    # The codec's name ("mp3"), not that of the decoder that was picked for it ("mp3float").
    codec = context.codec.canonical_name if context is not None else "unknown"
    language = stream.metadata.get("language")
    return SideTrack(stream.type, codec, language, stream)
