"""What following objects over time adds to a frame: paths, crossings of lines, who is in a zone.

Ids themselves stand in `Detections.track_id`. These values travel in `Frame.tracks`, so that
whoever draws or writes a frame needs no memory of earlier ones. Immutable; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
"""x, y in pixels of the original picture."""
Direction = Literal["in", "out"]
"""in: from the left to the right of the line, seen from its start to its end; out: back."""


@dataclass(frozen=True, slots=True)
class TrailPoint:
    """Where the bottom centre of a track's box was."""

    time_s: float
    """On the tracker's own clock, which only grows; differences are what it is good for."""
    xy: Point


@dataclass(frozen=True, slots=True)
class Crossing:
    """A track crossed a line between the last frame and this one."""

    line: str
    direction: Direction
    track_id: int
    class_name: str


@dataclass(frozen=True, slots=True)
class LineCount:
    """A counting line and what has crossed it since the run began."""

    name: str
    start: Point
    end: Point
    crossed_in: int
    crossed_out: int


@dataclass(frozen=True, slots=True)
class ZoneState:
    """A zone and the tracks that are in it."""

    name: str
    polygon: tuple[Point, ...]
    dwell_s: Mapping[int, float]
    """Track id to the seconds it has spent in the zone, all its visits together."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """The tracker's results beyond ids."""

    time_s: float
    """The frame's own time on the clock of the trails."""
    trails: Mapping[int, tuple[TrailPoint, ...]]
    """Track id to its path, oldest point first, of the tracks in this frame."""
    crossings: tuple[Crossing, ...] = ()
    lines: tuple[LineCount, ...] = ()
    zones: tuple[ZoneState, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes, roughly: points are shared between the frames of a track, references are not."""
        return 8 * sum(len(trail) for trail in self.trails.values())
