"""Reads one video stream of a file, from its packets to pictures in order with sound timestamps.

`Decoding` opens a container, chooses the stream, decodes, survives damage, repairs time and says at
the end whether something is missing. It knows no `Frame` and no run. Imports PyAV: import it lazily.
One thread calls one instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import av.error
from av.stream import Disposition

from pipeline.errors import SourceError
from stages.sources.timeline import Stamped, Timeline

# A picture in one of these dispositions is a cover or a preview, not video.
_STILL: Final = Disposition.attached_pic | Disposition.timed_thumbnails
# FFmpeg "decodes" any text file as terminal art; nobody means that.
_NO_VIDEO: Final = frozenset({"tty", "bin", "xbin", "adf", "idf"})
# These store in their header how long the whole is, independent of what is in the file.
_ANNOUNCING: Final = frozenset({"matroska", "webm", "flv", "avi", "asf"})
# What the longest stream may fall short of the announced length without anything being missing:
# headers count in frames of the slowest stream and in whole seconds.
_SLACK_S: Final = Fraction(1)
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

    def __init__(self, path: Path, *, stream: int | None, threads: int) -> None:
        self._path = path
        self._threads = threads
        self.corrupt = self.concealed = self.repaired = 0
        self.missing = None
        self._failure: str | None = None
        self._packets = 0
        self._end_s: Fraction | None = None
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
        given = 0
        for packet in self._demuxed():
            try:
                frames = self._video.decode(packet)
            except av.error.FFmpegError as error:
                self._damage(error)
                continue
            given += len(frames)
            yield from frames
        clean, last = self._flushed()
        given += len(last)
        yield from last
        if not clean:
            yield from self._last_pictures(given)

    def _flushed(self) -> tuple[bool, list[av.VideoFrame]]:
        """Return whether the decoder ended without an error, and the pictures it held back."""
        try:
            return True, self._video.decode(None)
        except av.error.FFmpegError as error:
            self._damage(error)
            return False, []

    def _last_pictures(self, given: int) -> Iterator[av.VideoFrame]:
        """Yield the pictures behind an error in the flush, which PyAV leaves in the decoder.

        With frame threads the last packets are decoded in the flush; when one of them is damaged
        PyAV 18 stops collecting and the decoder cannot be asked again. A second pass with one
        thread, where errors come with their packet, finds those pictures: they follow the `given`
        ones that were delivered.
        """
        with open_media(self._path) as container:
            video = container.streams[self._index]
            if not isinstance(video, av.VideoStream):
                return
            video.thread_type = "NONE"
            seen = 0
            packets = container.demux(video)
            while True:
                try:
                    frames = video.decode(next(packets))
                except (StopIteration, EOFError):
                    return
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    seen += 1
                    if seen > given:
                        yield frame

    def _demuxed(self) -> Iterator[av.Packet]:
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
                        yield packet
            except av.error.FFmpegError as error:
                failures += 1
                self._failure = self._failure or str(error.strerror)
                if failures < _MAX_FAILURES and not isinstance(error, OSError):
                    continue
            if failures:
                self.missing = f"reading broke off: {self._failure}"
            return

    def _note_end(self, packet: av.Packet) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.time_base is None:
            return
        end_s = (stamp + (packet.duration or 0)) * packet.time_base
        if self._end_s is None or end_s > self._end_s:
            self._end_s = end_s

    def _damage(self, error: av.error.FFmpegError) -> None:
        if isinstance(error, av.error.MemoryError):
            raise error
        self.corrupt += 1

    def _what_is_missing(self) -> str | None:
        """Say what the container announced and did not have; None for a whole file."""
        name = self._container.format.name
        if "mp4" in name.split(","):
            # The index, after edit lists; MP4 and MOV only: others count differently or not.
            announced = len(self._video.index_entries)
            if self._packets < announced:
                return f"the file is cut off: {self._packets} of {announced} announced frames are in it"
        elif _ANNOUNCING & set(name.split(",")) and self._container.duration is not None:
            start = Fraction(self._container.start_time or 0, av.time_base)
            announced_s = start + Fraction(self._container.duration, av.time_base)
            if self._end_s is None or announced_s - self._end_s > _SLACK_S:
                return (
                    f"the file is cut off: it ends at {float(self._end_s or 0):.1f} s of "
                    f"{float(announced_s):.1f} s announced"
                )
        return self.missing


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
    if container.format.name in _NO_VIDEO:
        container.close()
        raise SourceError(f"{path} is a text file, not a video: give a video file")
    return container


def choose_stream(
    container: av.container.InputContainer, path: Path, wanted: int | None
) -> av.VideoStream:
    """Return the video stream asked for, or the best (FFmpeg's choice: default mark, size, frames).

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
    best = container.streams.best("video")
    video = best if best in videos and isinstance(best, av.VideoStream) else videos[0]
    video = video if wanted is None else videos[wanted]
    if video.codec_context is None:
        raise SourceError(f"{path}: no decoder for its video stream in this build of FFmpeg")
    return video


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
    import difflib

    try:
        names = [each.name for each in path.absolute().parent.iterdir()]
    except OSError:
        return f", the directory {path.absolute().parent} is not there either"
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"; in that directory there is {', '.join(near)}" if near else ""
