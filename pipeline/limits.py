"""When a run should stop by itself: after so many frames, or so much time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pipeline.frame import Frame


@dataclass(frozen=True, slots=True)
class Limits:
    """Per stream; None is no limit."""

    max_frames: int | None = None
    duration_s: float | None = None
    """Offline: of the media's own time. Live: since the first frame was captured."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.duration_s is not None and self.duration_s <= 0:
            raise ValueError(f"duration_s must be positive, got {self.duration_s}")


class StreamLimit:
    """Follows one stream's frames. One thread uses it."""

    def __init__(self, limits: Limits, *, live: bool) -> None:
        self._limits = limits
        self._live = live
        self._frames = 0
        self._first_ns: int | None = None
        self._first_media_s: Fraction | None = None

    def reached_before(self, frame: Frame) -> bool:
        """Return whether `frame` lies behind the limit: it and all later ones are not wanted."""
        duration_s = self._limits.duration_s
        if duration_s is None:
            return False
        media_s = None if self._live else frame.time.media_s
        if media_s is not None:
            # str: 0.4 as typed, not the binary number just above it, which would let one more
            # frame in.
            if self._first_media_s is None:
                self._first_media_s = media_s
            return media_s - self._first_media_s >= Fraction(str(duration_s))
        if self._first_ns is None:
            self._first_ns = frame.time.captured_ns
        return frame.time.captured_ns - self._first_ns >= duration_s * 1e9

    def expired(self, now_ns: int) -> bool:
        """Return whether a live stream's time is up: asked while no frame comes."""
        duration_s = self._limits.duration_s
        if duration_s is None or self._first_ns is None or not self._live:
            return False
        return now_ns - self._first_ns >= duration_s * 1e9

    def reached_after(self, frame: Frame) -> bool:  # noqa: ARG002 - the pair reads alike at the caller
        """Return whether `frame` was the last one wanted."""
        self._frames += 1
        return self._limits.max_frames is not None and self._frames >= self._limits.max_frames
