"""Output timestamps: the source's own wherever it has them, strictly increasing always.

Pure integer arithmetic, no media library. One instance belongs to one output track and is called
from its sink's thread.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from pipeline.frame import Frame

_NS: Final = 1_000_000_000


class Timeline:
    """Gives every frame its timestamp in the output's ticks.

    A frame with a pts keeps it, plus one `shift` for the whole track. A frame without one is placed
    by when it was captured. After a discontinuity (a reconnect, a splice) the media's own clock has
    started anew: the output goes on from where it was, by the capture clock.
    """

    def __init__(self, time_base: Fraction, shift_s: Fraction = Fraction(0)) -> None:
        self.time_base = time_base
        """Seconds per output tick."""
        self.nudged = 0
        """Frames whose pts was not after the frame before, moved to one tick after it."""
        self.arrival_timed = 0
        """Frames without a pts, placed by their time of capture."""
        self.shift_s = shift_s
        """Added to every media time of the first epoch, seconds."""
        self._offset_s = shift_s
        self._epoch: int | None = None
        self._last: int | None = None
        self._last_captured_ns = 0
        self._last_step = 0

    def place(self, frame: Frame) -> int:
        """Return the frame's timestamp, ticks of `time_base`; larger than the one before."""
        time = frame.time
        media_s = time.media_s
        last = self._last
        anew = last is not None and (frame.discontinuity or frame.id.epoch != self._epoch)
        if last is not None and (anew or media_s is None):
            waited = Fraction(max(time.captured_ns - self._last_captured_ns, 0), _NS)
            by_arrival = last * self.time_base + waited
            if media_s is not None:
                # At least one frame's time: frames that were buffered arrive together.
                step = max(waited, self._last_step * self.time_base, self.time_base)
                self._offset_s = last * self.time_base + step - media_s
            ticks = self._ticks(by_arrival if media_s is None else media_s + self._offset_s)
        else:
            ticks = self._ticks(Fraction(0) if media_s is None else media_s + self._offset_s)
        if media_s is None:
            self.arrival_timed += 1
        if last is not None:
            if ticks <= last:
                ticks = last + 1
                self.nudged += 1
            else:
                self._last_step = ticks - last
        self._last = ticks
        self._last_captured_ns = time.captured_ns
        self._epoch = frame.id.epoch
        return ticks

    def duration(self, frame: Frame, fallback: Fraction | None = None) -> int:
        """Return how long the frame just placed is shown, ticks, at least 1.

        Its own duration where known, else the step before it, else `fallback` seconds.
        """
        if frame.time.duration:
            return max(1, self._ticks(frame.time.duration * frame.time.time_base))
        if self._last_step:
            return self._last_step
        return max(1, self._ticks(fallback)) if fallback else 1

    def _ticks(self, seconds: Fraction) -> int:
        return round(seconds / self.time_base)
