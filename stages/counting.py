"""Counting what crosses a line, and who is in a zone for how long.

A track is its box's bottom centre: where a thing stands on the ground. Both counters have a band in
which nothing is decided, so that a box that trembles on a line is not counted over and over. Plain
geometry on points; an instance belongs to one stream and one thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.tracks import Crossing, Direction, LineCount, Point, ZoneState

T = TypeVar("T")


Share = Annotated[float, Field(ge=0, le=1)]
"""A place in the picture: 0 is left or top, 1 right or bottom."""
Place = tuple[Share, Share]
Name = Annotated[str, Field(pattern=r"^[^/\x00-\x1f]{1,60}$")]


class LineConfig(Config):
    """A line that is counted at."""

    name: Name = Field(description="In JSON lines, report and overlay; without '/'.")
    start: Place = Field(description="[x, y], shares of the picture's width and height.")
    end: Place = Field(description="[x, y]. Seen from start to end, 'in' is from left to right.")

    @model_validator(mode="after")
    def _has_length(self) -> LineConfig:
        if self.start == self.end:
            raise ValueError("start and end are the same point; a line needs two")
        return self


class ZoneConfig(Config):
    """An area whose visitors are counted."""

    name: Name = Field(description="In JSON lines, report and overlay; without '/'.")
    polygon: tuple[Place, ...] = Field(
        min_length=3, description="Corners [[x, y], ...], shares of the picture's width and height."
    )


@dataclass(slots=True)
class _Side:
    """Where a track stands to a line."""

    xy: Point
    distance: float
    side: int = 0
    """-1 left, 1 right, as last seen outside the band; 0 not yet."""
    through: bool = False
    """The line was last passed between its ends, not around them."""


class LineCounter:
    """Tells when a track has crossed a line segment.

    A crossing counts once the track is farther than `band_px` on the other side, if it passed
    between the line's ends.

    Args:
        start, end: the line, pixels; apart.
        band_px: half the width of the band.
    """

    def __init__(self, start: Point, end: Point, band_px: float) -> None:
        self.start, self.end = start, end
        self._band_px = band_px
        self._length = math.dist(start, end)
        self._along = ((end[0] - start[0]) / self._length, (end[1] - start[1]) / self._length)
        self._sides: dict[int, _Side] = {}

    def update(self, track_id: int, xy: Point) -> Direction | None:
        """Take a track's new place; return in which direction it has crossed, if it has."""
        along, distance = self._place(xy)
        seen = self._sides.get(track_id)
        if seen is None:
            seen = self._sides[track_id] = _Side(xy, distance)
        elif (seen.distance >= 0) != (distance >= 0):
            before, _ = self._place(seen.xy)
            share = seen.distance / (seen.distance - distance)
            met = before + share * (along - before)
            seen.through = 0 <= met <= self._length
        seen.xy, seen.distance = xy, distance
        if abs(distance) < self._band_px:
            return None
        side = 1 if distance >= 0 else -1
        crossed = seen.side == -side and seen.through
        seen.side, seen.through = side, False
        return ("in" if side > 0 else "out") if crossed else None

    def keep(self, alive: Iterable[int]) -> None:
        """Forget the tracks that are not among these."""
        self._sides = _only(self._sides, alive)

    def _place(self, xy: Point) -> tuple[float, float]:
        """Return how far along the line a point is, and how far to its right (picture's y goes
        down), pixels."""
        x, y = xy[0] - self.start[0], xy[1] - self.start[1]
        dx, dy = self._along
        return x * dx + y * dy, dx * y - dy * x


@dataclass(slots=True)
class _Visit:
    """A track and a zone."""

    inside: bool = False
    dwell_s: float = 0.0
    seen_s: float = 0.0


@dataclass(slots=True)
class ZoneCounter:
    """Tells which tracks are in a polygon, and for how long.

    A track enters when it is inside, and leaves when it is farther than `band_px` outside. A track
    that is lost and comes back inside was inside in between.
    """

    polygon: Sequence[Point]
    """Pixels; at least three corners, the last one is joined to the first."""
    band_px: float
    _visits: dict[int, _Visit] = field(default_factory=dict)

    def update(self, track_id: int, xy: Point, time_s: float) -> tuple[bool, float]:
        """Take a track's place; return whether it has just entered, and the seconds added."""
        visit = self._visits.setdefault(track_id, _Visit())
        was_inside, added = visit.inside, 0.0
        visit.inside = contains(self.polygon, xy) or (
            was_inside and self._distance(xy) <= self.band_px
        )
        if was_inside and visit.inside:
            added = time_s - visit.seen_s
            visit.dwell_s += added
        visit.seen_s = time_s
        return visit.inside and not was_inside, added

    def dwell_s(self, present: Iterable[int]) -> Mapping[int, float]:
        """Return the seconds inside of those of these tracks that are inside, by id."""
        visits = ((i, self._visits.get(i)) for i in sorted(present))
        return {i: visit.dwell_s for i, visit in visits if visit is not None and visit.inside}

    def keep(self, alive: Iterable[int]) -> None:
        """Forget the tracks that are not among these."""
        self._visits = _only(self._visits, alive)

    def _distance(self, xy: Point) -> float:
        ends = zip(self.polygon, [*self.polygon[1:], self.polygon[0]], strict=True)
        return min(_to_segment(xy, start, end) for start, end in ends)


def contains(polygon: Sequence[Point], xy: Point) -> bool:
    """Return whether a point lies in a polygon, by the even-odd rule."""
    x, y = xy
    inside = False
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def _to_segment(xy: Point, start: Point, end: Point) -> float:
    dx, dy = end[0] - start[0], end[1] - start[1]
    square = dx * dx + dy * dy
    share = 0.0
    if square:
        share = ((xy[0] - start[0]) * dx + (xy[1] - start[1]) * dy) / square
        share = min(max(share, 0.0), 1.0)
    return math.dist(xy, (start[0] + share * dx, start[1] + share * dy))


def _only(states: dict[int, T], alive: Iterable[int]) -> dict[int, T]:
    stay = set(alive)
    return {track_id: state for track_id, state in states.items() if track_id in stay}


class Counts:
    """All lines and zones of one stream, with their totals.

    Args:
        stream: its name.
        lines, zones: what to count; places are shares of the picture.
        band: see `TrackConfig.band`.
        counters: receives the totals, by `stream/line/in/class`, `stream/zone/entered/class` and
            `stream/zone/dwell_ms/class`.
    """

    def __init__(
        self,
        stream: str,
        lines: Sequence[LineConfig],
        zones: Sequence[ZoneConfig],
        band: float,
        counters: dict[str, int],
    ) -> None:
        self._stream = stream
        self._line_configs, self._zone_configs = lines, zones
        self._band = band
        self._counters = counters
        self._lines: list[LineCounter] = []
        self._zones: list[ZoneCounter] = []
        self._crossed: list[dict[Direction, int]] = [{"in": 0, "out": 0} for _ in lines]
        self._dwell_s: dict[str, float] = {}

    def begin(self, size_wh: tuple[int, int]) -> None:
        """Forget who was where, for pictures of this size; totals stay."""
        width, height = size_wh
        band_px = self._band * min(size_wh)

        def pixels(place: Place) -> Point:
            return place[0] * width, place[1] * height

        self._lines = [
            LineCounter(pixels(line.start), pixels(line.end), band_px)
            for line in self._line_configs
        ]
        self._zones = [
            ZoneCounter([pixels(place) for place in zone.polygon], band_px)
            for zone in self._zone_configs
        ]

    def update(self, track_id: int, class_name: str, xy: Point, time_s: float) -> list[Crossing]:
        """Take a track's place, pixels, at a time; return what it has crossed."""
        crossings = []
        for index, line in enumerate(self._lines):
            direction = line.update(track_id, xy)
            if direction is not None:
                name = self._line_configs[index].name
                self._crossed[index][direction] += 1
                self._add(f"{name}/{direction}/{class_name}", 1)
                crossings.append(Crossing(name, direction, track_id, class_name))
        for config, zone in zip(self._zone_configs, self._zones, strict=True):
            entered, added_s = zone.update(track_id, xy, time_s)
            if entered:
                self._add(f"{config.name}/entered/{class_name}", 1)
            if added_s:
                key = f"{config.name}/dwell_ms/{class_name}"
                before_s = self._dwell_s.get(key, 0.0)
                self._dwell_s[key] = before_s + added_s
                # Whole milliseconds of the sum, so that roundings do not add up.
                self._add(key, round(self._dwell_s[key] * 1000) - round(before_s * 1000))
        return crossings

    def keep(self, alive: Iterable[int]) -> None:
        """Forget the tracks that are not among these."""
        for line in self._lines:
            line.keep(alive)
        for zone in self._zones:
            zone.keep(alive)

    def lines(self) -> tuple[LineCount, ...]:
        """Return the lines with their totals."""
        return tuple(
            LineCount(config.name, line.start, line.end, crossed["in"], crossed["out"])
            for config, line, crossed in zip(
                self._line_configs, self._lines, self._crossed, strict=True
            )
        )

    def zones(self, present: Sequence[int]) -> tuple[ZoneState, ...]:
        """Return the zones with those of these tracks that are inside."""
        return tuple(
            ZoneState(config.name, tuple(zone.polygon), zone.dwell_s(present))
            for config, zone in zip(self._zone_configs, self._zones, strict=True)
        )

    def _add(self, key: str, more: int) -> None:
        key = f"{self._stream}/{key}"
        self._counters[key] = self._counters.get(key, 0) + more
