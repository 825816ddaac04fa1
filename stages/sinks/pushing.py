"""One connection of the push sink: FFmpeg's muxer and an encoder that holds nothing back.

Imports av and cv2, so it is imported itself only when the first frame is pushed. One thread.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import av.error

from pipeline.errors import SourceError
from pipeline.frame import Frame
from pipeline.stage import ColorTags
from stages.endpoints import connectable, explain
from stages.sinks.encoding import VideoEncoder, output_colors
from stages.sinks.push import CLOCK

if TYPE_CHECKING:
    from stages.sinks.push import PushSinkConfig


class Push:
    """A connection that is made, and the encoder of its video track.

    Args:
        config: address and encoder settings.
        format_: FFmpeg's muxer.
        first: fixes the picture's size.
        rate_hz: what the source announces.

    Raises:
        SourceError: the server cannot be reached, or refuses.
    """

    def __init__(
        self, config: PushSinkConfig, format_: str, first: Frame, rate_hz: Fraction | None
    ) -> None:
        self._url = config.url
        options = {}
        if format_ == "rtsp":
            timeout_us = str(int(config.timeout_s * 1e6))
            options = {"rtsp_transport": config.transport, "timeout": timeout_us}
        elif format_ == "flv":
            options = {"flvflags": "no_duration_filesize"}
        try:
            self._container = av.open(
                connectable(self._url),
                "w",
                format=format_,
                options=options,
                timeout=config.timeout_s,
            )
            self._encoder = VideoEncoder(
                self._container,
                "h264",
                size_wh=first.size_wh,
                time_base=CLOCK,
                rate_hz=rate_hz,
                colors=output_colors(ColorTags(), first.size_wh),
                preset=config.preset,
                quality=config.quality,
                keyframe_interval_s=config.keyframe_interval_s,
                threads=1,
                low_delay=True,
            )
            # The header is what connects: without this the first frame would.
            self._container.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # Not chained: the library's text and its traceback quote the address.
            raise explain(self._url, error) from None

    def send(self, frame: Frame, pts: int, duration: int) -> None:
        """Encode and send one frame.

        Args:
            frame: of any size; fitted into that of the first.
            pts: ticks of 1/90000 s, larger than the one before.
            duration: ticks.

        Raises:
            SourceError: the server is lost.
        """
        try:
            for packet in self._encoder.encode(frame.image, pts, duration):
                self._container.mux_one(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise explain(self._url, error) from None

    def finish(self) -> None:
        """Send what is held back and the goodbye.

        Raises:
            SourceError: the server was lost.
        """
        try:
            for packet in self._encoder.drain():
                self._container.mux_one(packet)
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise explain(self._url, error) from None

    def hang_up(self) -> None:
        """Leave without ceremony; what the server thinks of it does not matter."""
        with contextlib.suppress(av.error.FFmpegError, OSError, SourceError):
            self._container.close()
