"""Puts timestamps into a strictly increasing order without changing those that are good.

Containers carry timestamps that are missing, repeated or go back; encoders, trackers and muxers
need them strictly increasing. Pure: knows items and integers, no codec. One thread calls one
instance.

The rule, in this order; good timestamps pass untouched:

1. `reorder` > 0 (AVI with B-frames, which stores no presentation times): the pictures keep the
   decoder's display order and take the stamps of a sliding window of `reorder` + 1 pictures in
   sorted order. That is exact as long as no picture is displaced by more than `reorder`.
2. Missing: one step after the frame before, or between its neighbours where that is too late.
3. Repeated or going back while the next one is good again: between its neighbours, at most a step;
   while the next one is not: an eighth of a step later, so that good ones to come are still ahead.
4. Going back for good (the next one continues from there: a splice, a clock that was reset): the
   rest is moved to continue one step after the last frame; its first frame is a discontinuity.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stamped(Generic[T]):
    """One item with its final place in time."""

    item: T
    pts: int
    """Ticks; greater than the pts of the item before."""
    duration: int | None
    """Ticks; None where unknown, and after a repair by rules 2 to 4."""
    repaired: bool
    """True where the pts is not the one the container gave."""
    discontinuity: bool = False
    """True at the first item after a splice."""


class Timeline(Generic[T]):
    """Takes items in display order, gives them back in that order with strictly increasing pts.

    Holds back one item, or `reorder` + 1 of them, to know what comes next; `flush` returns those.

    Args:
        step: ticks from frame to frame to assume until two good timestamps have shown it; >= 1.
        reorder: pictures by which stamps may be out of order; 0 for containers with real pts.
    """

    def __init__(self, *, step: int = 1, reorder: int = 0) -> None:
        if step < 1 or reorder < 0:
            raise ValueError(f"need step >= 1 and reorder >= 0, got {step=} {reorder=}")
        self._step = step
        self._reorder = reorder
        self._window: deque[tuple[T, int | None, int | None]] = deque()
        self._stamps: list[int] = []
        self._held: tuple[T, int | None, int | None, bool] | None = None
        self._last: int | None = None
        self._last_good = 0
        self._offset = 0

    def push(self, item: T, pts: int | None, duration: int | None = None) -> Iterator[Stamped[T]]:
        """Add the next item in display order; yield those whose time is now certain."""
        if not self._reorder:
            yield from self._advance(item, pts, duration, moved=False)
            return
        self._window.append((item, pts, duration))
        if pts is not None:
            heapq.heappush(self._stamps, pts)
        if len(self._window) > self._reorder:
            yield from self._sorted()

    def flush(self) -> Iterator[Stamped[T]]:
        """Yield what was held back; the timeline is empty afterwards and may go on."""
        while self._window:
            yield from self._sorted()
        if self._held is not None:
            yield self._settle(following=None)
            self._held = None

    def _sorted(self) -> Iterator[Stamped[T]]:
        item, pts, duration = self._window.popleft()
        # An item without a stamp put none in: it takes none out, and rule 2 finds its place.
        stamp = None if pts is None else heapq.heappop(self._stamps)
        yield from self._advance(item, stamp, duration, moved=stamp != pts)

    def _advance(
        self, item: T, pts: int | None, duration: int | None, *, moved: bool
    ) -> Iterator[Stamped[T]]:
        if self._held is not None:
            yield self._settle(following=pts)
        self._held = (item, pts, duration, moved)

    def _settle(self, following: int | None) -> Stamped[T]:
        """Fix the time of the held item, knowing the stamp of the next (None: unknown)."""
        if self._held is None:
            raise RuntimeError("nothing is held")
        item, raw, duration, moved = self._held
        pts = None if raw is None else raw + self._offset
        after = None if following is None else following + self._offset
        last = self._last
        if raw is not None and pts is not None and (last is None or pts > last):
            if last is not None and not moved:
                self._step = duration or pts - last
            self._last, self._last_good = pts, raw
            return Stamped(item, pts, duration, repaired=moved)
        if last is None:
            # Nothing before it, and no stamp of its own: one step before the next one, or zero.
            start = 0 if after is None else after - self._step
            self._last = self._last_good = start
            return Stamped(item, start, None, repaired=True)
        if raw is not None and following is not None and raw < following <= self._last_good:
            self._last, self._last_good = last + self._step, raw
            self._offset = self._last - raw
            return Stamped(item, self._last, duration, repaired=True, discontinuity=True)
        between = last + self._step
        if after is not None and after <= last and pts is not None:
            # One of several repeated ones: huddled, so that the next good one is still ahead.
            between = last + max(1, self._step // 8)
        elif after is not None and last < after <= between:
            between = max(last + 1, (last + after) // 2)
        self._last = between
        return Stamped(item, between, None, repaired=True)
