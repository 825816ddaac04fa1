"""The two ends of a trial run: a sink that notes when frames came, and a source that gives them
again.

One thread calls one instance; what a `Recorder` has seen may be read when the run is over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import (
    End,
    OutputInfo,
    ReadResult,
    RunContext,
    Sink,
    Source,
    StreamInfo,
)
from pipeline.url import Url
from stages.observing import Sighting

_MOST_KEPT = 24
_MOST_BYTES = 256 * 1024 * 1024
_MOST_FRAMES = 300


class Recorder(Sink):
    """Notes when frames were captured and when they came; keeps the first few.

    Args:
        keep: frames that are kept, fewer where they are large.
    """

    on_full = "block"

    def __init__(self, keep: int = _MOST_KEPT) -> None:
        self.name = "recorder"
        self.counters = {}
        self.seen: list[Sighting] = []
        self.kept: list[Frame] = []
        self.sizes_wh: list[tuple[int, int]] = []
        """Different sizes, in the order they came."""
        self._keep = keep
        self._bytes = 0
        self._came_s: list[float] = []
        self._started_s = time.monotonic()

    def start(self) -> None:
        """Begin to wait for the first frame."""
        self._started_s = time.monotonic()

    @property
    def waited_s(self) -> float:
        """Seconds since the first frame, or since `start` while there is none. Any thread."""
        return time.monotonic() - (self._came_s[0] if self._came_s else self._started_s)

    @property
    def rate_hz(self) -> float | None:
        """Frames per second that came; None where there are too few to tell."""
        if len(self._came_s) < 2:
            return None
        return (len(self._came_s) - 1) / max(1e-9, self._came_s[-1] - self._came_s[0])

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Note the frames."""
        for frame in items:
            self._came_s.append(time.monotonic())
            media_s = frame.time.media_s
            self.seen.append(
                Sighting(
                    frame.id.seq,
                    frame.time.captured_ns / 1e9,
                    None if media_s is None else float(media_s),
                    frame.discontinuity,
                )
            )
            if frame.size_wh not in self.sizes_wh:
                self.sizes_wh.append(frame.size_wh)
            if len(self.kept) < self._keep and self._bytes + frame.nbytes <= _MOST_BYTES:
                self.kept.append(frame)
                self._bytes += frame.nbytes
        return ()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return nothing: nothing is written."""
        return ()


class Replay(Source):
    """Gives frames again and again, as fast as they are read, for some seconds.

    Args:
        name: of the stream.
        frames: at least one.
        seconds: the end, by the clock; or 300 frames.
    """

    live = False

    def __init__(self, name: str, frames: Sequence[Frame], seconds: float) -> None:
        self.name = name
        self.counters = {}
        self._frames = frames
        self._seconds = seconds

    def open(self, context: RunContext) -> StreamInfo:
        """Begin at the first frame."""
        self._clock = context.clock
        self._seq = 0
        self._began_ns = self._clock.now_ns()
        first = self._frames[0]
        return StreamInfo(
            name=self.name,
            uri=Url("replay"),
            live=self.live,
            size_wh=first.size_wh,
            time_base=first.time.time_base,
        )

    def read(self, timeout_s: float) -> ReadResult:  # noqa: ARG002 - it never waits
        """Return the next frame."""
        now_ns = self._clock.now_ns()
        if self._seq >= _MOST_FRAMES or now_ns - self._began_ns > self._seconds * 1e9:
            return End()
        frame, seq = self._frames[self._seq % len(self._frames)], self._seq
        self._seq += 1
        return replace(
            frame,
            id=FrameId(self.name, 0, seq),
            time=FrameTime(now_ns, seq, frame.time.time_base),
            discontinuity=False,
        )

    def close(self) -> None:
        """Nothing to release: the frames are whose they were."""
