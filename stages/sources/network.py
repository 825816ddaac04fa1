"""The network source: RTSP, RTMP, SRT, HTTP (progressive, MJPEG, HLS), through FFmpeg.

FFmpeg blocks for up to twice the deadline it is given, so a thread of the source's own
("rackfocus-network NAME") talks to the server and always drains it; `read` waits on a condition
that `interrupt` can end at once. A thread that is still inside a call when the source is closed
ends by itself at that deadline. One thread calls open, read and close; any may call interrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import End, Lost, ReadResult, RunContext, Source, StreamInfo, Timeout
from stages.endpoints import Address, connectable, explain
from stages.sources.connection import Connection
from stages.sources.liveclock import LiveClock
from stages.sources.reconnecting import ReconnectConfig

if TYPE_CHECKING:
    from stages.sources.color import Converter

_MAYBE_FINITE: Final = ("http", "https")
_CLOSE_S: Final = 0.5


class NetworkConfig(Config):
    """A stream from the network. Credentials stand in the address and are never shown."""

    url: Address = Field(description="rtsp://, rtmp://, srt://, http:// or https:// address")
    transport: Literal["tcp", "udp", "http"] = Field(
        "tcp", description="how RTSP carries its packets; udp loses some on a busy network"
    )
    latency: Literal["low", "balanced", "smooth"] = Field(
        "low",
        description="low: no jitter buffer; balanced: up to 0.2 s to put late packets in order; "
        "smooth: up to 1 s, and decoding on several cores, which costs two frames of delay",
    )
    live: bool | None = Field(
        None,
        description="whether the stream cannot wait; by default all but recordings over http: "
        "what has a length is read to its end without loss",
    )
    open_timeout_s: float = Field(10.0, gt=0, le=120, description="deadline for the first picture")
    read_timeout_s: float = Field(
        5.0, gt=0, le=120, description="the stream is lost after so long without a packet"
    )
    reconnect: ReconnectConfig = Field(
        ReconnectConfig(), description="what is done when the stream is lost"
    )


class NetworkSource(Source):
    """Delivers pictures as they arrive; live, those not read in time give way to newer ones.

    pts are the stream's own, made strictly increasing: one that is missing or goes back is placed
    by its time of arrival, a jump is a discontinuity. counters: "skipped" (pictures replaced before
    they were read; their seq is missing), "corrupt" (packets that gave no picture),
    "pts_repaired". `alter`, where set, changes packets before they are decoded (see
    `stages.sources.faults`).
    """

    def __init__(self, config: NetworkConfig, name: str) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._url = config.url
        self._live = config.live
        self._interrupted = threading.Event()
        self._connection: Connection | None = None
        self.alter: Callable[[Any], None] | None = None

    @property
    def live(self) -> bool:  # type: ignore[override] # known late
        """Whether waiting loses data. Over http, unless said, the first look at the stream tells.

        Raises:
            SourceError: it had to look, and could not.
        """
        if self._live is None:
            scheme = self._url.reveal().partition("://")[0].lower()
            self._live = scheme not in _MAYBE_FINITE or not self._has_length()
        return self._live

    def open(self, context: RunContext) -> StreamInfo:
        """Connect and wait for the first picture.

        Raises:
            SourceError: no connection, refused, no video, or no picture within the deadline. Where
                another try cannot help, a `RefusedError`.
        """
        from stages.sources.color import Converter, color_tags, quarter_turns

        self._leave()
        live = self.live
        self._context = context
        self._converter: Converter = Converter()
        self._seq = -1
        self.counters = {"skipped": 0, "corrupt": 0, "pts_repaired": 0}
        self._connection = connection = Connection(
            self._config, self.name, context, live=live, alter=self.alter
        )
        if self._interrupted.is_set():
            connection.stop()
        connection.start()
        # FFmpeg takes up to twice its deadline.
        first = connection.first(2 * self._config.open_timeout_s)
        if first is None:
            stopped, error = connection.stopped, connection.error
            self._leave()
            if stopped:
                raise SourceError(f"{self._url}: stopped while it was being opened")
            if error is not None:
                raise error
            raise SourceError(
                f"{self._url}: no picture within {self._config.open_timeout_s:g} s: "
                "is the camera sending, and is it reached by this transport?"
            )
        facts = connection.facts
        context.note(
            f"{self.name}: {facts['codec']} {first.width}x{first.height}, "
            f"{float(facts['rate_hz'] or 0):g} fps announced"
        )
        self._clock = LiveClock(facts["time_base"], live=live)
        turn = quarter_turns(first.rotation)
        size_wh = (first.height, first.width) if turn % 180 else (first.width, first.height)
        return StreamInfo(
            name=self.name,
            uri=self._url,
            live=live,
            size_wh=size_wh,
            time_base=facts["time_base"],
            rate_hz=facts["rate_hz"],
            duration_s=None if live else facts["duration_s"],
            color=color_tags(first),
            media=replace(facts["media"], rotation=turn),
        )

    def read(self, timeout_s: float) -> ReadResult:
        """Return the next picture; `Lost` when the server ended or the stream broke off.

        Raises:
            SourceError: the source is not open.
        """
        connection = self._connection
        if connection is None:
            raise SourceError(f"{self.name}: read() before open()")
        got = connection.take(timeout_s)
        self.counters["skipped"] = connection.skipped
        self.counters["corrupt"] = connection.corrupt
        if got is None:
            if connection.stopped or not connection.ended:
                return Timeout()
            if connection.error is not None:
                return Lost(str(connection.error))
            return Lost(f"{self._url}: the server ended the stream") if self.live else End()
        picture, seq, captured_ns = got
        pts, repaired, jumped = self._clock.place(picture.pts, captured_ns)
        self.counters["pts_repaired"] += repaired
        return Frame(
            FrameId(self.name, 0, seq),
            FrameTime(captured_ns, pts, self._clock.time_base, picture.duration or None),
            self._converter.bgr(picture),
            discontinuity=jumped,
        )

    def interrupt(self) -> None:
        """End a waiting `open` or `read` at once, and later ones until `close`. Any thread."""
        self._interrupted.set()
        connection = self._connection
        if connection is not None:
            connection.stop()

    def close(self) -> None:
        """Leave the stream. Idempotent."""
        self._leave()
        self._interrupted.clear()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop()
            connection.join(_CLOSE_S)

    def _has_length(self) -> bool:
        import av

        try:
            timeout = (self._config.open_timeout_s, self._config.read_timeout_s)
            with av.open(connectable(self._url), "r", timeout=timeout) as container:
                return bool(container.duration)
        except (av.error.FFmpegError, OSError) as error:
            # Not chained: the library's text and its traceback quote the address.
            raise explain(self._url, error) from None
