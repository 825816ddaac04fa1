"""Reads one video stream of a file, from its packets to pictures in order with sound timestamps.

`Decoding` chooses the stream, decodes, survives damage, repairs time and says at the end whether
something is missing. It knows no `Frame` and no run. Imports PyAV: import it lazily. One thread
calls one instance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
import av.error

from stages.sources.media import choose_stream, open_media
from stages.sources.timeline import Stamped, Timeline

# These store in their header how long the whole is, independent of what is in the file.
_ANNOUNCING: Final = frozenset({"matroska", "webm", "flv", "asf"})
# What the longest stream may fall short of the announced length without anything being missing:
# headers count in frames of the slowest stream and in whole seconds.
_SLACK_S: Final = Fraction(1)
# Matroska's statistics name the end of each stream exactly, but for the last frame's duration.
_TAG: Final = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_TAG_SLACK_S: Final = Fraction(1, 10)
# H.264 and HEVC keep at most 16 pictures for reordering.
_MAX_REORDER: Final = 16
# Containers go on behind a damaged place; one that fails this often in a row is at its end.
_MAX_FAILURES: Final = 16


class Decoding:
    """An open video stream of a file.

    Args:
        path: an existing file.
        stream: which video stream, counted from 0 without cover pictures; None for the best.
        threads: decoding threads; 0 lets FFmpeg choose.
        alter: changes each video packet in place before it is decoded; for faults made on purpose.

    Raises:
        SourceError: the file cannot be read as video, or has no such stream.
    """

    corrupt: int
    """Packets that could not be decoded or demuxed."""
    concealed: int
    """Pictures delivered although parts of them were damaged and painted over by the decoder."""
    repaired: int
    """Timestamps that are not the container's, see `Timeline`."""
    missing: str | None
    """After the last picture: what is missing at the end, or None."""

    def __init__(
        self,
        path: Path,
        *,
        stream: int | None,
        threads: int,
        alter: Callable[[av.Packet[Any]], None] | None = None,
    ) -> None:
        self._path = path
        self._alter = alter
        self._threads = threads
        self.corrupt = self.concealed = self.repaired = 0
        self.missing = None
        self._failure: str | None = None
        self._packets = 0
        self._ends_s: dict[int, Fraction] = {}
        self._container = open_media(path)
        try:
            self._video = choose_stream(self._container, path, stream)
            self._index = self._video.index
            self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def container(self) -> av.container.InputContainer:
        """The open container; for its facts, not for reading."""
        return self._container

    @property
    def video(self) -> av.VideoStream:
        """The stream that is read."""
        return self._video

    def close(self) -> None:
        """Release the file. The properties are invalid afterwards (they are FFmpeg's memory)."""
        self._container.close()

    def pictures(self) -> Iterator[Stamped[av.VideoFrame]]:
        """Yield all pictures in display order, strictly increasing in pts. Once per instance."""
        rate = self._video.average_rate or self._video.base_rate
        base = self._video.time_base or Fraction(1)
        step = max(1, round(1 / rate / base)) if rate else 1
        timeline = Timeline[av.VideoFrame](step=step, reorder=self._reorder_depth())
        for frame in self._decoded():
            self.concealed += frame.is_corrupt
            yield from self._counted(timeline.push(frame, frame.pts, frame.duration or None))
        yield from self._counted(timeline.flush())
        self.missing = self._what_is_missing()

    def _counted(
        self, stamped: Iterator[Stamped[av.VideoFrame]]
    ) -> Iterator[Stamped[av.VideoFrame]]:
        for each in stamped:
            self.repaired += each.repaired
            yield each

    def _prepare(self) -> None:
        for other in self._container.streams:
            # Sound and text are read past (their ends tell whether the file is whole); other
            # pictures and data would only cost time.
            if other.type not in ("audio", "subtitle") and other.index != self._index:
                other.discard = av.stream.Discard.all
        self._video.thread_type = "AUTO"
        self._video.codec_context.thread_count = self._threads

    def _reorder_depth(self) -> int:
        # AVI stores decoding order only: FFmpeg's guess of presentation times is out of order as
        # soon as there are B-frames.
        b_frames = self._video.codec_context.has_b_frames
        return _MAX_REORDER if self._container.format.name == "avi" and b_frames else 0

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield what the decoder gives out, in its order, up to and including its last picture."""
        expected = given = failed = 0
        last_pts: int | None = None
        for packet in self._demuxed():
            expected += not packet.is_discard
            try:
                frames = self._video.decode(packet)
            except av.error.FFmpegError as error:
                self._damage(error)
                failed += 1
                continue
            for frame in frames:
                given += 1
                last_pts = frame.pts
                yield frame
        try:
            held_back = self._video.decode(None)
        except av.error.FFmpegError as error:
            self._damage(error)
            held_back = []
        for frame in held_back:
            given += 1
            last_pts = frame.pts
            yield frame
        if given < expected - failed and last_pts is not None:
            for frame in self._behind(last_pts):
                given += 1
                yield frame
        if "mp4" in self._container.format.name.split(","):
            # One packet is one picture here: PyAV passes over an error that came with pictures.
            self.corrupt = max(self.corrupt, expected - given)

    def _behind(self, last_pts: int) -> Iterator[av.VideoFrame]:
        """Yield the pictures after the one of `last_pts` that an error in the flush held back.

        With frame threads the last packets are decoded in the flush. When one of them is damaged
        PyAV 18 stops collecting, without a word if it has some already, and the decoder cannot be
        asked again. A second look at the end with one thread, where errors come with their packet,
        finds those pictures; it costs one group of pictures and finds nothing in a sound file.
        """
        with open_media(self._path) as container:
            video = container.streams[self._index]
            if not isinstance(video, av.VideoStream):
                return
            video.thread_type = "NONE"
            found = False
            try:
                container.seek(last_pts, stream=video)
            except av.error.FFmpegError:
                return
            packets = container.demux(video)
            while True:
                try:
                    packet = next(packets)
                    if self._alter is not None and packet.size:
                        self._alter(packet)
                    frames = video.decode(packet)
                except (StopIteration, EOFError):
                    return
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    if found:
                        yield frame
                    found = found or frame.pts == last_pts

    def _demuxed(self) -> Iterator[av.Packet[av.VideoStream]]:
        """Yield the video's packets; goes on behind damaged places of the container."""
        failures = 0
        while True:
            try:
                for packet in self._container.demux():
                    if packet.size == 0 and packet.dts is None:
                        continue  # PyAV's mark for "flush the decoder": that is done at the end
                    if failures:
                        self.corrupt += 1
                        failures = 0
                    self._note_end(packet)
                    if packet.stream_index == self._index:
                        self._packets += 1
                        if self._alter is not None:
                            self._alter(packet)
                        yield cast("av.Packet[av.VideoStream]", packet)
            except av.error.FFmpegError as error:
                failures += 1
                self._failure = self._failure or str(error.strerror)
                if failures < _MAX_FAILURES and not isinstance(error, OSError):
                    continue
            if failures:
                self.missing = f"reading broke off: {self._failure}"
            return

    def _note_end(self, packet: av.Packet[Any]) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.time_base is None:
            return
        end_s = (stamp + (packet.duration or 0)) * packet.time_base
        index = packet.stream_index
        self._ends_s[index] = max(end_s, self._ends_s.get(index, end_s))

    def _damage(self, error: av.error.FFmpegError) -> None:
        if isinstance(error, av.error.MemoryError):
            raise error
        self.corrupt += 1

    def _what_is_missing(self) -> str | None:
        """Say what the container announced and did not have; None for a whole file."""
        names = set(self._container.format.name.split(","))
        if "mp4" in names:
            # The index, after edit lists; MP4 and MOV only: others count differently or not.
            announced = len(self._video.index_entries)
            if self._packets < announced:
                return (
                    f"the file is cut off: it has {self._packets} of {announced} frames announced"
                )
            return self.missing
        announced_s, end_s, slack_s = self._announced_end(names)
        if announced_s is None or end_s >= announced_s - slack_s:
            return self.missing
        return (
            f"the file is cut off: it ends at {float(end_s):.1f} s of "
            f"{float(announced_s):.1f} s announced"
        )

    def _announced_end(self, names: set[str]) -> tuple[Fraction | None, Fraction, Fraction]:
        """Return the end by the header, the end that was found, and the slack between, seconds."""
        base = self._video.time_base or Fraction(1)
        video_end_s = self._ends_s.get(self._index, Fraction(0))
        last_end_s = max(self._ends_s.values(), default=Fraction(0))
        if "avi" in names:
            # FFmpeg's duration is guessed from the file's size where the index is lost.
            return self._video.frames * base or None, video_end_s, _SLACK_S
        tag = _TAG.fullmatch(self._video.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, seconds = tag.groups()
            rate = self._video.average_rate
            end_s = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
            return end_s, video_end_s, max(_TAG_SLACK_S, 3 / rate if rate else Fraction(0))
        if names & _ANNOUNCING and self._container.duration is not None:
            start = self._container.start_time or 0
            announced_s = Fraction(start + self._container.duration, av.time_base)
            return announced_s, last_end_s, _SLACK_S
        return None, last_end_s, _SLACK_S
