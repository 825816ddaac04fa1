"""A video file with the source's own timestamps and sound, readable while it is being written.

This module holds the options and the sink; the work is in `muxing`, imported when the sink opens.
The sink's thread runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SinkError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink
from stages.sinks import paths
from stages.sinks.containers import ENCODERS, check_size, container_for

if TYPE_CHECKING:
    from stages.sinks.muxing import VideoFile


class VideoSinkConfig(Config):
    """Where the video goes, and how it is encoded."""

    path: str = Field(
        description="The file: .mp4, .mov or .mkv; {stream} in it makes one file per stream."
    )
    overwrite: bool = Field(default=False, description="Replace the file if it exists.")
    codec: Literal["h264", "hevc", "vp9", "av1", "h264_nvenc"] = Field(
        default="h264", description="Video codec; pixels are 4:2:0, 8 bit."
    )
    preset: str | None = Field(
        default=None,
        description="Speed against size, in the encoder's words. Default: veryfast (h264, hevc), "
        "p4 (h264_nvenc), 7 (vp9), 10 (av1).",
    )
    quality: int | None = Field(
        default=None,
        ge=0,
        le=63,
        description="Constant quality (CRF or CQ), lower is better. Default: 23 (h264), 26 (hevc), "
        "33 (vp9), 35 (av1).",
    )
    keyframe_interval_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds of media between key frames, at most."
    )
    threads: int = Field(
        default=1,
        ge=0,
        le=64,
        description="Encoder threads, 0 for its own choice. With a model running beside it, one "
        "costs least.",
    )
    audio: bool = Field(default=True, description="Keep audio, subtitles and chapters.")
    on_full: Literal["block", "drop_oldest"] | None = Field(
        default=None,
        description="What to do with frames that come faster than they are encoded. Default: block "
        "for files, drop_oldest live.",
    )


class VideoSink(Sink):
    """Encodes frames and muxes them with the source's audio, subtitles and chapters.

    A stream's file is created at its first frame. It can be played while it grows and after a kill
    (up to about a second before); `flush` puts the index of an mp4 in front.

    Raises:
        UsageError: (open, or the first frame) the path cannot be written, is the input, or does not
            fit the codec.
        DeviceError: (open) h264_nvenc without an NVIDIA GPU.
        SinkError: (process, flush) writing failed; what was written until then is playable.
    """

    def __init__(self, config: VideoSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self.on_full = config.on_full
        self._context = RunContext()
        self._files: dict[str, VideoFile] = {}

    def open(self, context: RunContext) -> None:
        """Check path, codec and encoder; nothing is created yet."""
        from stages.sinks.encoding import check_encoder

        self._context = context
        self._files = {}
        self.counters = {}
        container_for(self.config.path, self.config.codec, self.name)
        paths.check_streams(self.config.path, context.streams, sink=self.name)
        for stream in context.streams or ["stream"]:
            self._check(paths.for_stream(self.config.path, stream))
        check_encoder(ENCODERS[self.config.codec].name, self.name)

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Encode the frames, each into its stream's file."""
        for frame in items:
            file = self._files.get(frame.id.stream) or self._create(frame)
            file.write(frame)
        return ()

    def flush(self) -> Sequence[Frame]:
        """Complete all files: the encoder's last frames, the rest of the audio, the index."""
        first: SinkError | None = None
        for file in self._files.values():
            try:
                file.finish()
            except SinkError as error:
                first = first or error
        self._count()
        if first is not None:
            raise first
        return ()

    def close(self) -> None:
        """Close files that were not finished, readable as they are. Idempotent."""
        for file in self._files.values():
            file.close()
        self._count()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return one entry a file."""
        return [file.info() for file in self._files.values()]

    def _create(self, frame: Frame) -> VideoFile:
        from stages.sinks.muxing import VideoFile

        stream = frame.id.stream
        paths.check_streams(self.config.path, [*self._files, stream], sink=self.name)
        path = paths.for_stream(self.config.path, stream)
        self._check(path)
        info = self._context.streams.get(stream)
        if info is None:
            raise SinkError(
                f"{self.name}: a frame came of stream '{stream}', which no source announced"
            )
        check_size(self.config.codec, frame.size_wh, self.name)
        file = VideoFile(path, self.config, info, frame, self.name, self._context.note)
        self._files[stream] = file
        return file

    def _check(self, path: str) -> None:
        paths.check_target(path, overwrite=self.config.overwrite, sink=self.name)
        paths.check_not_source(path, self._context.streams.values(), sink=self.name)

    def _count(self) -> None:
        """Sum the files' counters; zeros are left out."""
        total: dict[str, int] = {}
        for file in self._files.values():
            for key, value in file.counters().items():
                if value:
                    total[key] = total.get(key, 0) + value
        self.counters = total
