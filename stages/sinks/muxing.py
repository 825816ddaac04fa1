"""One video file being written: encoder, side tracks and muxer on one clock.

Imports av, so it is imported itself only when a file is created. The sink's thread calls it.

While it grows the file can be played: mp4 and mov are written in fragments of half a second,
Matroska is readable as it is. `finish` completes it, `close` leaves it as it stands.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
from av.container import OutputContainer
from av.packet import Packet

from pipeline.errors import RackfocusError, SinkError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, StreamInfo
from stages.sinks.chapters import shifted_chapters
from stages.sinks.containers import Container, container_for
from stages.sinks.encoding import VideoEncoder, output_colors
from stages.sinks.finalise import index_in_front
from stages.sinks.sidecopy import SideTracks, video_goes_on
from stages.sinks.timeline import Timeline
from stages.sinks.video import VideoSinkConfig

_FRAGMENT_US: Final = 500_000
"""Media time of a fragment or cluster; with the encoder's lookahead a kill loses about a second."""
_KEEP_START_S: Final = 1
"""A start up to this late is kept as it is; a later one (a cut-out of a broadcast) moves to zero,
because players show nothing until then."""
_ARRIVAL_BASE: Final = Fraction(1, 90_000)
"""Ticks of streams that carry no timestamps at all."""
_FALLBACK_STEP_S: Final = Fraction(1, 25)


class VideoFile:
    """The output of one stream.

    Args:
        first: The first frame, which fixes size and start; pass it to `write` as well.
        note: Takes lines for the user: what could not be kept as it was.

    Raises:
        SinkError: the file cannot be created or written.
    """

    def __init__(
        self,
        path: str,
        config: VideoSinkConfig,
        info: StreamInfo,
        first: Frame,
        name: str,
        note: Callable[[str], None],
    ) -> None:
        self._path = path
        self._config = config
        self._source = info
        self._name = name
        self._note = note
        self._spec: Container = container_for(path, config.codec, name)
        self._output: OutputContainer | None = None
        self._side: SideTracks | None = None
        self._held: dict[int, Packet[Any]] = {}
        self._chapters: list[Mapping[str, object]] = []
        self._details: dict[str, object] = {}
        self._frames = 0
        self._first_pts = 0
        self._last: tuple[Frame, int, int] | None = None
        self._failed = False
        self._done = False
        self._told_size = False
        untimed = first.time.pts is None
        base = _ARRIVAL_BASE if untimed else first.time.time_base
        try:
            self._side = self._open_side()
            shift_s = self._shift_s(first)
            self._timeline = Timeline(base, shift_s)
            self._output = self._create()
            self._encoder = self._add_video(self._output, first, base)
            if self._side is not None:
                self._side.add_to(self._output, self._spec, shift_s)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise self._failure(error) from error
        self._describe(shift_s)

    def write(self, frame: Frame) -> None:
        """Encode a frame and mux what is ready, with the audio up to there.

        Raises:
            SinkError: writing failed; nothing more can be written.
        """
        if self._failed or self._done:
            raise SinkError(f"{self._name}: {self._path} was closed after an earlier failure")
        pts = self._timeline.place(frame)
        duration = self._timeline.duration(frame, self._nominal_s())
        if not self._frames:
            self._first_pts = pts
        try:
            self._mux_video(self._encoder.encode(frame.image, pts, duration))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error
        if self._encoder.resized and not self._told_size:
            self._told_size = True
            (width, height), (wide, high) = frame.size_wh, self._encoder.size_wh
            self._note(
                f"{self._name}: a video has one size: from frame {frame.id} on, others "
                f"({width}x{height}) are scaled to the first one's, {wide}x{high}"
            )
        self._frames += 1
        self._last = (frame, pts, duration)

    def finish(self) -> None:
        """Write what is left, close the file and put an mp4's index in front.

        Raises:
            SinkError: writing failed; what was written until then is playable.
        """
        if self._failed or self._done:
            return
        try:
            self._mux_video(self._encoder.drain())
            if self._side is not None and self._last is not None:
                self._put_all(self._side.until(self._audio_end_s()))
                self._put_all(self._side.drain())
            self._release()
            self._close_output()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error
        finally:
            self._close_side()
        self._done = True
        if self._spec.fragmented:
            self._finalise()

    def close(self) -> None:
        """Close an unfinished file, playable as it is. Idempotent; raises nothing."""
        if self._done:
            return
        self._done = True
        try:
            if self._output is not None and self._frames and not self._failed:
                self._mux_video(self._encoder.drain())
                self._release()
        except (av.FFmpegError, OSError, ValueError) as error:
            self._note(f"{self._name}: {self._path} ends early: {error}")
        try:
            self._close_output()
        except (av.FFmpegError, OSError, ValueError) as error:
            # The fragments and clusters before are whole; only the closing index is missing.
            if not self._failed:
                self._note(f"{self._name}: {self._path} was left without its index: {error}")
        self._close_side()

    def counters(self) -> dict[str, int]:
        """Return what was repaired, by name."""
        return {
            "pts_nudged": self._timeline.nudged,
            "pts_by_arrival": self._timeline.arrival_timed,
            "resized": self._encoder.resized,
        }

    def info(self) -> OutputInfo:
        """Return what was written so far; final after `finish` or `close`."""
        duration_s = None
        if self._last is not None:
            _, pts, duration = self._last
            duration_s = float((pts + duration - self._first_pts) * self._timeline.time_base)
        try:
            size = Path(self._path).stat().st_size
        except OSError:
            size = None
        return OutputInfo(self._path, self._frames, duration_s, size, dict(self._details))

    # -- making the file ---------------------------------------------------------------------

    def _open_side(self) -> SideTracks | None:
        if self._source.side is None or not self._config.audio:
            return None
        try:
            reader = self._source.side()
        except (RackfocusError, av.FFmpegError, OSError) as error:
            self._note(f"{self._name}: audio and subtitles cannot be read: {error}")
            return None
        self._chapters = list(reader.chapters)
        return SideTracks(reader, self._name, self._note)

    def _shift_s(self, first: Frame) -> Fraction:
        """Return what is added to every time of every track: mostly 0, see `_KEEP_START_S`."""
        start = first.time.media_s
        if start is None:
            return Fraction(0)
        if self._source.live or self._side is None:
            return Fraction(0) if not self._source.live and 0 <= start <= _KEEP_START_S else -start
        earliest = self._side.earliest_s(start)
        # Audio may start a little before zero: encoders prime with a packet that is not played.
        return Fraction(0) if 0 <= start <= _KEEP_START_S and earliest > -1 else -earliest

    def _create(self) -> OutputContainer:
        options = {
            # Packets are put in order here; the muxer must not wait for tracks that have ended.
            "max_interleave_delta": "1",
            "flush_packets": "1",
        }
        if self._spec.fragmented:
            # delay_moov: the header waits for the first packets, so that it can say where each
            # track starts (priming, late starts); without it such tracks would all move to zero.
            options["movflags"] = "delay_moov+default_base_moof"
            options["frag_duration"] = str(_FRAGMENT_US)
        else:
            options["cluster_time_limit"] = str(_FRAGMENT_US // 1000)
            # Priming keeps its small negative time, instead of moving all tracks by it.
            options["avoid_negative_ts"] = "disabled"
        return av.open(self._path, "w", format=self._spec.format, options=options)

    def _add_video(self, output: OutputContainer, first: Frame, base: Fraction) -> VideoEncoder:
        config = self._config
        encoder = VideoEncoder(
            output,
            config.codec,
            size_wh=first.size_wh,
            time_base=base,
            rate_hz=self._source.rate_hz,
            colors=output_colors(self._source.color, first.size_wh),
            preset=config.preset,
            quality=config.quality,
            keyframe_interval_s=config.keyframe_interval_s,
            threads=config.threads,
        )
        if not self._spec.fragmented:
            self._set_chapters(output)
        return encoder

    def _set_chapters(self, output: OutputContainer) -> None:
        chapters = shifted_chapters(self._chapters, self._timeline.shift_s, None)
        if chapters:
            output.set_chapters(cast(Any, chapters))
            self._details["chapters"] = len(chapters)

    def _describe(self, shift_s: Fraction) -> None:
        encoder = self._encoder
        self._details |= {
            "container": self._spec.format,
            "codec": self._config.codec,
            "encoder": encoder.encoder,
            "pix_fmt": "yuv420p",
            "size_wh": list(encoder.size_wh),
            "start_shift_s": float(shift_s),
        }
        if self._side is not None:
            self._details["tracks"] = self._side.details
        if encoder.size_wh != encoder.source_wh:
            width, height = encoder.source_wh
            padded = f"{encoder.size_wh[0]}x{encoder.size_wh[1]}"
            self._details["padded_from_wh"] = [width, height]
            self._note(
                f"{self._name}: {self._config.codec} needs even sizes: {width}x{height} is written "
                f"as {padded}, the last row or column doubled"
            )

    # -- writing -----------------------------------------------------------------------------

    def _mux_video(self, packets: Iterable[Packet[Any]]) -> None:
        for packet in packets:
            if self._side is not None and packet.pts is not None:
                self._put_all(self._side.until(packet.pts * packet.time_base))
            self._put(packet)

    def _put_all(self, packets: Iterable[Packet[Any]]) -> None:
        for packet in packets:
            self._put(packet)

    def _put(self, packet: Packet[Any]) -> None:
        """Mux a packet. In fragments, hold one a track until the next tells its true duration.

        The muxer starts a fragment where the one before ended by its packets' durations; one that
        says 33 ms where 34 passed moves the next frame by 1 ms (seen with FFmpeg 8.1).
        """
        if self._output is None:
            return
        if not self._spec.fragmented or packet.stream.type == "subtitle":
            self._output.mux_one(packet)
            return
        held = self._held.get(packet.stream.index)
        self._held[packet.stream.index] = packet
        if held is not None:
            if held.dts is not None and packet.dts is not None and packet.dts > held.dts:
                held.duration = packet.dts - held.dts
            self._output.mux_one(held)

    def _release(self) -> None:
        held, self._held = self._held, {}
        if self._output is not None:
            for packet in sorted(held.values(), key=lambda p: (p.dts or 0) * p.time_base):
                self._output.mux_one(packet)

    def _audio_end_s(self) -> Fraction | None:
        """Return where audio ends, output time: with the video where the run was cut short."""
        if self._last is None:
            return None
        frame, pts, duration = self._last
        media_s, base = frame.time.media_s, self._timeline.time_base
        if media_s is None or not video_goes_on(
            self._source, frame.id.seq, media_s, duration * base
        ):
            return None
        self._details["audio_ends_with_video"] = True
        return (pts + duration) * base

    def _nominal_s(self) -> Fraction:
        rate = self._source.rate_hz
        return 1 / rate if rate else _FALLBACK_STEP_S

    # -- ending ------------------------------------------------------------------------------

    def _finalise(self) -> None:
        if self._last is None:
            return
        _, pts, duration = self._last
        base = self._timeline.time_base
        chapters = shifted_chapters(self._chapters, self._timeline.shift_s, (pts + duration) * base)
        try:
            index_in_front(Path(self._path), self._spec.format, chapters, duration * base)
        except (av.FFmpegError, OSError, ValueError, SinkError) as error:
            self._details["index"] = "fragments"
            self._note(
                f"{self._name}: {self._path} is complete and playable, but stays in fragments: "
                f"its index could not be put in front ({error})"
            )
            return
        self._details["index"] = "front"
        if chapters:
            self._details["chapters"] = len(chapters)

    def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.close()

    def _close_side(self) -> None:
        if self._side is not None:
            self._side.close()

    def _failure(self, error: BaseException) -> SinkError:
        self._failed = True
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or str(error)
        if number == errno.ENOSPC:
            reason = "the disk is full; free some space or write elsewhere"
        return SinkError(
            f"{self._name}: writing {self._path} failed after {self._frames} frames: {reason}; "
            "what was written before can be played"
        )
