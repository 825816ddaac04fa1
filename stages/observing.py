"""What the times of a watched stream tell: its rate, whether it is even, whether its delay grows.

Two clocks are compared: when frames arrived here, and the times that they carry. Pure; any thread.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

# Ticks of a time base are coarse (a Matroska file counts milliseconds): one and a half of them, or
# a tenth of a frame, is no change of rate.
_EVEN_TICKS: Final = 1.5
_EVEN_SHARE: Final = 0.1
_VARIABLE_SHARE: Final = 0.05
"""Above this share of uneven steps the rate is variable; below, a frame is missing here and
there."""
_SETTLED: Final = 0.25
"""Share of a watch at its beginning in which servers empty their buffers, left out for the
delay."""
_ENOUGH_S: Final = 1.5
_ENOUGH_FRAMES: Final = 12
_POINTS: Final = 120
"""Frames that a slope is taken over at most: it compares every pair of them."""
_DRIFT: Final = 0.02
"""Seconds per second: clocks of cameras are 100 times better, and networks jitter less over
seconds."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One frame of the watch."""

    seq: int
    captured_s: float
    media_s: float | None
    discontinuity: bool = False


@dataclass(frozen=True, slots=True)
class Tempo:
    """The rates of a watched stream. None where there were too few frames to tell."""

    frames: int
    missing: int
    """Frames that were captured and not seen: their seq is left out."""
    arrival_hz: float | None
    """Frames captured per second of this machine's clock, those not seen included."""
    media_hz: float | None
    """The same by the times that the frames carry."""
    uneven: float | None
    """Share of the steps from frame to frame that differ from the median step."""
    step_range_s: tuple[float, float] | None
    """Shortest and longest step."""

    @property
    def variable(self) -> bool:
        """Whether the rate is variable, and not merely missing a frame now and then."""
        return self.uneven is not None and self.uneven > _VARIABLE_SHARE


@dataclass(frozen=True, slots=True)
class Delay:
    """How the delay of a live stream moves, in seconds per second."""

    slope: float

    @property
    def grows(self) -> bool:
        """Frames come slower than their own clock runs."""
        return self.slope > _DRIFT

    @property
    def shrinks(self) -> bool:
        """Frames come faster than their own clock runs: something that was stored is sent."""
        return self.slope < -_DRIFT


def tempo(seen: Sequence[Sighting], tick_s: float) -> Tempo:
    """Return the rates of a stream.

    Args:
        seen: frames in order, of one connection.
        tick_s: seconds per tick of the stream's time base.
    """
    if len(seen) < 2:
        return Tempo(len(seen), 0, None, None, None, None)
    first, last = seen[0], seen[-1]
    captured = last.seq - first.seq
    missing = captured + 1 - len(seen)
    span_s = last.captured_s - first.captured_s
    pairs = [
        (b.media_s - a.media_s, b.seq - a.seq)
        for a, b in itertools.pairwise(seen)
        if a.media_s is not None and b.media_s is not None and not b.discontinuity
    ]
    media_s = sum(step for step, _ in pairs)
    steps = [step for step, frames in pairs if frames == 1]
    uneven = None
    if steps:
        median = statistics.median(steps)
        slack = max(_EVEN_TICKS * tick_s, _EVEN_SHARE * median)
        uneven = sum(abs(step - median) > slack for step in steps) / len(steps)
    return Tempo(
        frames=len(seen),
        missing=missing,
        arrival_hz=captured / span_s if span_s > 0 else None,
        media_hz=sum(frames for _, frames in pairs) / media_s if media_s > 0 else None,
        uneven=uneven,
        step_range_s=(min(steps), max(steps)) if steps else None,
    )


def delay(seen: Sequence[Sighting]) -> Delay | None:
    """Return how the delay moves, or None where the watch was too short to tell.

    The lag of a frame is its arrival less its own time; the slope is the median over all pairs of
    frames (Theil 1950, Sen 1968), which a third of outliers does not move.
    """
    began = next((k for k in range(len(seen) - 1, 0, -1) if seen[k].discontinuity), 0)
    timed = [s for s in seen[began:] if s.media_s is not None]
    points = [(s.captured_s, s.captured_s - (s.media_s or 0.0)) for s in timed]
    if not points:
        return None
    settled_s = points[0][0] + _SETTLED * (points[-1][0] - points[0][0])
    points = [point for point in points if point[0] >= settled_s]
    if len(points) < _ENOUGH_FRAMES or points[-1][0] - points[0][0] < _ENOUGH_S:
        return None
    chosen = np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(int)
    at, lag = np.array(points)[chosen].T
    rows, columns = np.triu_indices(len(at), 1)
    apart = at[columns] - at[rows]
    far = apart > 0
    slopes = (lag[columns] - lag[rows])[far] / apart[far]
    return Delay(float(np.median(slopes)))
