"""Audio and subtitles beside the video: copied as they are, or transcoded with a line saying so.

Imports av, so it is imported itself only when a video file is created. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, Final

import av
from av.bitstream import BitStreamFilterContext
from av.container import OutputContainer
from av.packet import Packet

from pipeline.errors import RackfocusError
from pipeline.stage import SidePacket, SideReader, SideTrack, StreamInfo
from stages.sinks.containers import Container
from stages.sinks.transcode import AudioTranscoder

_PEEK: Final = 512
"""Packets looked at to find where audio starts; files interleave far more tightly."""

_READ_ERRORS: Final = (av.FFmpegError, RackfocusError, OSError)


class _Copy:
    """One copied track.

    AAC of broadcasts and old AVI files has an ADTS header on each packet, which mp4 and Matroska
    keep once for the whole track: it is taken off, the coded audio stays as it is.
    """

    def __init__(self, container: OutputContainer, track: SideTrack, codec: str) -> None:
        template: Any = track.template
        # opaque: copied as it is; otherwise the decoder's name is looked up among encoders.
        self.stream = container.add_stream_from_template(template, opaque=True)
        if template.time_base is not None:
            self.stream.time_base = template.time_base

        self._template = template
        self._unwrap: BitStreamFilterContext | None = None
        self._undecided = codec == "aac" and not template.codec_context.extradata

    @property
    def unwrapped(self) -> bool:
        """Whether ADTS headers were taken off."""
        return self._unwrap is not None

    def packets(self, packet: Packet[Any]) -> list[Packet[Any]]:
        if self._undecided:
            self._undecided = False
            if len(packet_head := bytes(packet)[:2]) == 2 and _is_adts(packet_head):
                # Without the output stream: it would take over the source container's codec tag.
                self._unwrap = BitStreamFilterContext("aac_adtstoasc", self._template)
        made = [packet] if self._unwrap is None else self._unwrap.filter(packet)
        for each in made:
            each.stream = self.stream
        return made

    def drain(self) -> list[Packet[Any]]:
        return []


class SideTracks:
    """The audio and subtitle tracks of one output file, fed from the source's `SideReader`."""

    def __init__(self, reader: SideReader, name: str, note: Callable[[str], None]) -> None:
        self._reader = reader
        self._name = name
        self._note = note
        self._writers: dict[int, _Copy | AudioTranscoder] = {}
        self._shift_s = Fraction(0)
        self._source: Iterator[SidePacket] = iter(())
        self._next: SidePacket | None = None
        self.details: list[dict[str, object]] = []
        """One entry a track for the report: kind, codec, what was done, packets."""
        self._entries: dict[int, dict[str, object]] = {}
        self._counts: dict[int, int] = {}
        self._ended = False
        try:
            self._source = iter(reader.packets())
        except _READ_ERRORS as error:
            self._broke(error)

    def earliest_s(self, video_s: Fraction) -> Fraction:
        """Return when the first packet starts, source time, or `video_s` if none is before it."""
        seen: list[SidePacket] = []
        earliest = video_s
        for _ in range(_PEEK):
            packet = self._read()
            if packet is None:
                break
            seen.append(packet)
            earliest = min(earliest, packet.start_s)
            if packet.start_s >= video_s:
                break
        self._source = chain(seen, self._source)
        return earliest

    def add_to(self, output: OutputContainer, container: Container, shift_s: Fraction) -> None:
        """Make the output's tracks. `shift_s` is added to every packet's time."""
        self._shift_s = shift_s
        for index, track in enumerate(self._reader.tracks):
            codec = _canonical(track.codec)
            entry: dict[str, object] = {"kind": track.kind, "codec": codec}
            if track.language:
                entry["language"] = track.language
            self.details.append(entry)
            self._entries[index] = entry
            try:
                writer = self._writer(output, container, track, codec, entry)
            except (av.FFmpegError, ValueError, KeyError) as error:
                entry["handling"] = "left out"
                self._note(f"{self._name}: the {track.kind} track ({codec}) was left out: {error}")
                continue
            if writer is not None:
                self._writers[index] = writer
                self._counts[index] = 0
                if track.language:
                    writer.stream.metadata["language"] = track.language

    def _writer(
        self,
        output: OutputContainer,
        container: Container,
        track: SideTrack,
        codec: str,
        entry: dict[str, object],
    ) -> _Copy | AudioTranscoder | None:
        if track.kind == "audio" and codec in container.audio:
            entry["handling"] = "copied"
            return _Copy(output, track, codec)
        if track.kind == "audio":
            transcoder = AudioTranscoder(output, track.template, container.audio_encoder)
            entry["handling"] = f"transcoded to {transcoder.codec}"
            self._note(
                f"{self._name}: {codec} audio cannot be copied into {container.format}; "
                f"it is transcoded to {transcoder.codec}"
            )
            return transcoder
        if codec in container.subtitles:
            entry["handling"] = "copied"
            return _Copy(output, track, codec)
        entry["handling"] = "left out"
        remedy = "; .mkv can" if container.fragmented and codec != "mov_text" else ""
        self._note(
            f"{self._name}: {container.format} cannot hold the {codec} subtitles, "
            f"so they are left out{remedy}"
        )
        return None

    def until(self, end_s: Fraction | None) -> Iterator[Packet[Any]]:
        """Yield the packets that start before `end_s` (output time), or all that are left."""
        while True:
            packet = self._next or self._read()
            self._next = None
            if packet is None:
                return
            if end_s is not None and packet.start_s + self._shift_s >= end_s:
                self._next = packet
                return
            writer = self._writers.get(packet.stream)
            if writer is None:
                continue
            payload = packet.payload
            if not isinstance(payload, Packet):
                raise TypeError(f"side packets must be av.Packet, got {type(payload).__name__}")
            self._retime(payload, packet.start_s + self._shift_s)
            self._counts[packet.stream] += 1
            try:
                yield from writer.packets(payload)
            except av.FFmpegError as error:
                # Only a transcoder's own decoding: one bad packet is a gap, not the end.
                self._note(f"{self._name}: audio packets could not be decoded: {error.strerror}")

    def drain(self) -> Iterator[Packet[Any]]:
        """Yield what transcoders held back. After `until`, once."""
        for writer in self._writers.values():
            yield from writer.drain()

    def close(self) -> None:
        """Close the reader and complete `details`. Idempotent."""
        for index, count in self._counts.items():
            self._entries[index]["packets"] = count
            writer = self._writers[index]
            if isinstance(writer, _Copy) and writer.unwrapped:
                self._entries[index]["adts_headers"] = "removed"
        self._ended = True
        self._reader.close()

    def _read(self) -> SidePacket | None:
        if self._ended:
            return None
        try:
            return next(self._source, None)
        except _READ_ERRORS as error:
            self._broke(error)
            return None

    def _broke(self, error: BaseException) -> None:
        self._ended = True
        self._note(f"{self._name}: the source's audio and subtitles end early: {error}")

    @staticmethod
    def _retime(packet: Packet[Any], start_s: Fraction) -> None:
        """Move a packet to `start_s`, keeping the distance of its decode time."""
        base = packet.time_base
        pts = round(start_s / base)
        lag = packet.pts - packet.dts if packet.pts is not None and packet.dts is not None else 0
        packet.pts, packet.dts = pts, pts - lag


def _is_adts(head: bytes) -> bool:
    # ISO/IEC 14496-3, 1.A.2.2: 12 bits of sync word, then layer 0.
    return head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _canonical(codec: str) -> str:
    """Return the codec's own name where a decoder's was given: mp3 for mp3float."""
    try:
        return av.Codec(codec, "r").canonical_name
    except ValueError:
        return codec


def video_goes_on(info: StreamInfo, seq: int, last_s: Fraction, step_s: Fraction) -> bool:
    """Return whether the source has frames after the last one written: the run was cut short.

    Args:
        info: The source. Counts and durations of containers are hints: any that says "reached the
            end" is believed, else the file itself is asked.
        seq: Sequence number of the last frame.
        last_s: When the last frame starts, source time.
        step_s: How long it is shown.
    """
    if info.frame_count and seq + 1 >= info.frame_count:
        return False
    if info.duration_s is not None and last_s + 2 * step_s >= info.duration_s:
        return False
    if info.path is None:
        return bool(info.frame_count or info.duration_s)
    try:
        with av.open(info.path) as container:
            stream = container.streams.best("video")
            if stream is None or stream.time_base is None:
                return False
            target = int(last_s / stream.time_base)
            container.seek(max(0, target), stream=stream)
            return any(
                packet.pts is not None and packet.pts * stream.time_base > last_s
                for packet in container.demux(stream)
            )
    except (av.FFmpegError, OSError):
        return False
