"""Timestamps of live streams, made strictly increasing as they come. Pure; one thread at a time."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

# A timestamp that jumps by more than this is another clock's: no camera pauses that long unseen.
_JUMP_S: Final = 10


class LiveClock:
    """Strictly increasing timestamps in the stream's own ticks, without holding a frame back.

    A good pts passes untouched. One that is missing or does not advance is placed by arrival; when
    pts jump (back, or far ahead of the time that has passed) the clock is set anew at that frame.

    Args:
        time_base: seconds per tick.
    """

    def __init__(self, time_base: Fraction) -> None:
        self.time_base = time_base
        self._offset = 0
        self._last: int | None = None
        self._last_ns = 0

    def place(self, pts: int | None, captured_ns: int) -> tuple[int, bool, bool]:
        """Return (pts in ticks, whether it was changed, whether the stream's clock jumped)."""
        last = self._last
        jumped = False
        if last is None:
            placed = pts if pts is not None else 0
        else:
            waited = Fraction(captured_ns - self._last_ns, 1_000_000_000)
            arrival = last + max(1, round(waited / self.time_base))
            placed = arrival if pts is None else pts + self._offset
            ahead_s = (placed - arrival) * self.time_base
            if pts is not None and (placed <= last - self._ticks(1) or ahead_s > _JUMP_S):
                self._offset = arrival - pts
                placed, jumped = arrival, True
            elif placed <= last:
                placed = last + 1
        self._last, self._last_ns = placed, captured_ns
        return placed, pts is None or placed != pts, jumped

    def _ticks(self, seconds: int) -> int:
        return round(seconds / self.time_base)
