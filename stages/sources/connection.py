"""One connection of the network source: the thread inside FFmpeg, and what FFmpeg is told.

FFmpeg blocks for up to twice the deadline it is given; nobody waits for it: whoever reads waits on
a condition. Imports PyAV inside its functions.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import RefusedError, SourceError
from pipeline.stage import RunContext
from stages.endpoints import connectable, explain

if TYPE_CHECKING:
    import av

    from stages.sources.network import NetworkConfig

# Pictures between the two threads. Live, the oldest gives way: one to be taken while one arrives.
_LIVE_SLOTS: Final = 2
_FINITE_SLOTS: Final = 8


class Connection:
    """One connection: the thread that reads it, and the pictures it has for the source.

    Its attributes may be read by any thread; they are whole where `first` or `take` has returned.

    Args:
        config: address, transport, deadlines.
        name: of the stream, for the thread's name.
        context: for the clock.
        live: the oldest picture gives way where nobody takes them in time; else the server waits.
    """

    def __init__(
        self, config: NetworkConfig, name: str, context: RunContext, *, live: bool
    ) -> None:
        self._config = config
        self._url = config.url
        self._live = live
        self._now_ns = context.clock.now_ns
        self._changed = threading.Condition()
        self._pictures: deque[tuple[av.VideoFrame, int, int]] = deque()
        self._thread = threading.Thread(
            target=self._run, name=f"rackfocus-network {name}", daemon=True
        )
        self.stopped = False
        self.ended = False
        self.error: SourceError | None = None
        self.skipped = self.corrupt = 0
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """Connect, in a thread."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread, which may still be inside FFmpeg, but not for longer."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Wake whoever waits, and let the thread end as soon as FFmpeg returns. Any thread."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def first(self, timeout_s: float) -> av.VideoFrame | None:
        """Wait for the first picture and leave it where it is."""
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            return self._pictures[0][0] if self._pictures and not self.stopped else None

    def take(self, timeout_s: float) -> tuple[av.VideoFrame, int, int] | None:
        """Return (picture, seq, captured_ns), or None after a while, a stop or the end."""
        with self._changed:
            self._changed.wait_for(self._ready, max(0.0, timeout_s))
            if self.stopped or not self._pictures:
                return None
            got = self._pictures.popleft()
            self._changed.notify_all()
            return got

    def _ready(self) -> bool:
        return bool(self._pictures) or self.stopped or self.ended

    def _run(self) -> None:
        import av

        from stages.sources.media import NO_VIDEO

        began_ns = self._now_ns()
        try:
            self._read(av, NO_VIDEO)
        except SourceError as error:
            self._end(error)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            waited_s = (self._now_ns() - began_ns) / 1e9
            late = not self.facts and waited_s >= self._config.open_timeout_s
            # What FFmpeg says of a deadline in the middle of a greeting is misleading.
            self._end(explain(self._url, TimeoutError() if late else error))
        except BaseException as error:  # noqa: BLE001 - a waiting reader must hear of it
            self._end(SourceError(self._url.clean(f"{self._url}: {type(error).__name__}: {error}")))
        else:
            self._end(None)

    def _read(self, av: Any, no_video: Container[str]) -> None:  # noqa: ANN401 - the module
        timeout = (self._config.open_timeout_s, self._config.read_timeout_s)
        options = ffmpeg_options(self._config, live=self._live)
        with av.open(connectable(self._url), "r", options=options, timeout=timeout) as container:
            videos = container.streams.video
            if container.format.name in no_video:
                raise RefusedError(f"{self._url}: what comes is text, no video")
            if not videos or videos[0].codec_context is None:
                raise RefusedError(f"{self._url}: there is no video in this stream")
            video = videos[0]
            video.thread_type = (
                "SLICE" if self._live and self._config.latency != "smooth" else "AUTO"
            )
            base = video.time_base or Fraction(1, 1_000_000)
            self.facts = {
                "codec": video.codec_context.name,
                "time_base": base,
                "rate_hz": video.average_rate or video.guessed_rate or None,
                "duration_s": Fraction(container.duration, 1_000_000)
                if container.duration
                else None,
            }
            self._drain(av, container, video)

    def _drain(self, av: Any, container: Any, video: Any) -> None:  # noqa: ANN401 - PyAV, late
        seq = 0
        for packet in container.demux(video):
            if self.stopped:
                return
            try:
                pictures = video.decode(packet)
            except av.error.InvalidDataError:
                # Also what comes between joining a stream and its next key frame.
                self.corrupt += 1
                continue
            for picture in pictures:
                self._give(picture, seq)
                seq += 1

    def _give(self, picture: av.VideoFrame, seq: int) -> None:
        with self._changed:
            if self._live:
                if len(self._pictures) >= _LIVE_SLOTS:
                    self._pictures.popleft()
                    self.skipped += 1
            else:
                self._changed.wait_for(lambda: self.stopped or len(self._pictures) < _FINITE_SLOTS)
            self._pictures.append((picture, seq, self._now_ns()))
            self._changed.notify_all()

    def _end(self, error: SourceError | None) -> None:
        with self._changed:
            self.error = error
            self.ended = True
            self._changed.notify_all()


def ffmpeg_options(config: NetworkConfig, *, live: bool) -> dict[str, str]:
    """Return what FFmpeg is told for the address: transport, jitter buffer, probing."""
    scheme = config.url.reveal().partition("://")[0].lower()
    options: dict[str, str] = {}
    if scheme in ("rtsp", "rtsps"):
        options["rtsp_transport"] = config.transport
    if not live:
        return options
    # FFmpeg looks for up to five seconds for sound that was announced and does not come.
    options["analyzeduration"] = "1000000"
    if config.latency == "low":
        options |= {"fflags": "nobuffer", "max_delay": "0"}
    elif config.latency == "balanced":
        options |= {"fflags": "nobuffer", "max_delay": "200000"}
    else:
        options["max_delay"] = "1000000"
    return options
