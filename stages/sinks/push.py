"""Pushes video to a server: RTSP, RTMP, or MPEG-TS over UDP, TCP or SRT.

The sink's thread runs it. A server that is away costs frames of this output, counted, and nobody
else's time: each call has a deadline, and tries to connect are spaced out.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import RefusedError, SinkError, SourceError, UsageError
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink, StreamEvent
from stages.endpoints import Address
from stages.sinks.timeline import Timeline

if TYPE_CHECKING:
    from stages.sinks.pushing import Push

FORMATS: Final = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "flv",
    "rtmps": "flv",
    "srt": "mpegts",
    "udp": "mpegts",
    "tcp": "mpegts",
}
"""FFmpeg's muxer for each scheme."""
CLOCK: Final = Fraction(1, 90_000)
"""Ticks of pushed streams, as RTP and MPEG-TS have them for video; seconds."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_PATIENCE_S: Final = 30.0
"""How long an offline run, which may lose nothing, tries to reach the server."""


class PushSinkConfig(Config):
    """Where the stream goes. Credentials stand in the address and are never shown."""

    url: Address = Field(
        description="rtsp://, rtmp://, srt://, udp:// or tcp:// address; one stream a server path"
    )
    transport: Literal["tcp", "udp"] = Field("tcp", description="how RTSP carries its packets")
    preset: str = Field("veryfast", description="x264's preset: speed against size")
    quality: int = Field(23, ge=0, le=51, description="constant quality (CRF), lower is better")
    keyframe_interval_s: float = Field(
        1.0, gt=0, le=60, description="seconds between key frames: a viewer waits for one"
    )
    timeout_s: float = Field(
        3.0, gt=0, le=60, description="an RTSP server that takes nothing for so long is lost"
    )


class PushSink(Sink):
    """Encodes without delay (x264, zerolatency) and pushes; connects again when the server is lost.

    Live, frames that come while the server is away are left out, counted as "unsent". Offline
    nothing may be left out: the run waits for the server, and fails after half a minute. Sound is
    not pushed. counters: "unsent", "reconnects".

    Raises:
        UsageError: (open, or the first frame) the address cannot be pushed to, or takes one stream
            and several came.
        SinkError: (process, flush) offline, the server cannot be reached; live, it never could.
    """

    def __init__(self, config: PushSinkConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}

    def open(self, context: RunContext) -> None:
        """Check address and encoder; the connection is made with the first frame."""
        from stages.sinks.encoding import check_encoder

        scheme = self.config.url.reveal().partition("://")[0].lower()
        if scheme not in FORMATS:
            raise UsageError(
                f"{self.name}: {self.config.url} cannot be pushed to; expected "
                f"{', '.join(f'{each}://' for each in FORMATS)}"
            )
        check_encoder("libx264", self.name)
        self._format = FORMATS[scheme]
        self._context = context
        self._clock = context.clock
        self._push: Push | None = None
        self._timeline = Timeline(CLOCK)
        self._stream: str | None = None
        self._sent = 0
        self._connections = 0
        self._pause_s = _FIRST_PAUSE_S
        self._due_ns = 0
        self._problem = ""
        self.counters = {"unsent": 0, "reconnects": 0}

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Push the frames."""
        for frame in items:
            if self._stream not in (None, frame.id.stream):
                raise UsageError(
                    f"{self.name}: {self.config.url} takes one stream, but '{frame.id.stream}' "
                    f"came beside '{self._stream}': give each source a sink and an address"
                )
            self._stream = frame.id.stream
            self._deliver(frame)
        return ()

    def flush(self) -> Sequence[Frame]:
        """Send what the encoder holds and say goodbye.

        Raises:
            SinkError: the server was never reached.
        """
        push, self._push = self._push, None
        if push is not None:
            try:
                push.finish()
            except SourceError as error:
                self._context.note(f"{self.name}: {error}")
        if not self._connections and self._stream is not None:
            raise SinkError(f"{self.name}: nothing was pushed: {self._problem}")
        return ()

    def close(self) -> None:
        """Hang up. Idempotent."""
        push, self._push = getattr(self, "_push", None), None
        if push is not None:
            push.hang_up()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return what was pushed."""
        return [OutputInfo(str(self.config.url), self._sent, details=dict(self.counters))]

    def _deliver(self, frame: Frame) -> None:
        patient_until_ns = self._clock.now_ns() + int(_PATIENCE_S * 1e9)
        while True:
            if self._push is not None or self._connect(frame):
                pts = self._timeline.place(frame)
                if self._send(frame, pts):
                    return
            if self._context.live:
                self.counters["unsent"] += 1
                return
            now = self._clock.now_ns()
            if now >= patient_until_ns:
                raise SinkError(f"{self.name}: {self._problem}; tried for {_PATIENCE_S:g} s")
            self._clock.sleep(max(0.0, (self._due_ns - now) / 1e9))

    def _connect(self, frame: Frame) -> bool:
        from stages.sinks.pushing import Push

        if self._clock.now_ns() < self._due_ns:
            return False
        info = self._context.streams.get(frame.id.stream)
        try:
            self._push = Push(
                self.config, self._format, frame, None if info is None else info.rate_hz
            )
        except RefusedError as error:
            # Nothing was sent yet and another try cannot help: better to hear it now.
            if not self._connections:
                raise SinkError(f"{self.name}: {error}") from None
            self._lost(str(error))
            return False
        except SourceError as error:
            self._lost(str(error))
            return False
        self._connections += 1
        if self._connections > 1 or self._problem:
            self.counters["reconnects"] += self._connections > 1
            self._tell("running", "connected")
        self._pause_s = _FIRST_PAUSE_S
        return True

    def _send(self, frame: Frame, pts: int) -> bool:
        if self._push is None:
            return False
        try:
            self._push.send(frame, pts, self._timeline.duration(frame))
        except SourceError as error:
            self._push.hang_up()
            self._push = None
            self._lost(str(error))
            return False
        self._sent += 1
        return True

    def _lost(self, problem: str) -> None:
        self._problem = problem
        self._due_ns = self._clock.now_ns() + int(self._pause_s * 1e9)
        self._tell("backing off", f"{problem}; next try in {self._pause_s:.1f} s")
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    def _tell(self, state: str, reason: str) -> None:
        self._context.event(StreamEvent(self._clock.now_ns(), self.name, state, reason))
