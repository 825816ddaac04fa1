"""The track stage: the same thing has the same id in every frame, and lines and zones are counted.

One tracker a stream; it works with the frames' times, so a variable rate, dropped frames and frames
without inference (`infer.detect_every`) need nothing said. Linking is in `stages.association`,
imported at `open`, counting in `stages.counting`. One thread; results depend on nothing but the
frames of the stream and the settings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config import StageConfig
from pipeline.detections import Detections
from pipeline.errors import UsageError
from pipeline.frame import Frame, FrameTime
from pipeline.stage import RunContext, Stage
from pipeline.tracks import Crossing, Point, Tracks, TrailPoint
from stages.counting import Counts, LineConfig, ZoneConfig

if TYPE_CHECKING:
    from stages.association import Association

_INSTALL: Final = 'install it with pip install -e ".[track]", or take the stage track out'
_ASSUMED_HZ: Final = 30
"""Nominal rate of a stream that does not say its own."""
_TOO_OFTEN_LATE: Final = 3


class TrackConfig(StageConfig):
    """How detections become tracks, and what is counted."""

    method: Literal["ocsort", "bytetrack"] = Field(
        "ocsort",
        description="ocsort takes hidings, turns and stops better; bytetrack also continues tracks "
        "with unsure detections.",
    )
    score_threshold: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Detections at least this sure start and continue tracks; with bytetrack less "
        "sure ones, down to nms.score_threshold, continue them too.",
    )
    iou_threshold: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Least overlap of a detection with the place where its track is expected.",
    )
    buffer: float = Field(
        0.3,
        ge=0,
        le=2,
        description="Both boxes are enlarged by this share of their size on every side for that: "
        "things that are small, quick or were hidden are found again.",
    )
    confirm: int = Field(
        2, ge=2, le=100, description="Detections in a row after which a track gets its id."
    )
    lost_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="How long a track that is not seen is waited for, seconds, in steps of 1/30 s.",
    )
    trail_s: float = Field(
        3.0, ge=0, le=60, description="How much of each track's path goes with the frame, seconds."
    )
    lines: tuple[LineConfig, ...] = Field((), description="Lines: name, start, end.")
    zones: tuple[ZoneConfig, ...] = Field((), description="Zones: name, polygon.")
    band: float = Field(
        0.01,
        ge=0,
        le=0.5,
        description="How far behind a line or outside a zone a track counts as across, as a share "
        "of the picture's shorter side: boxes tremble.",
    )

    @field_validator("lines", "zones")
    @classmethod
    def _names_differ(
        cls, parts: tuple[LineConfig | ZoneConfig, ...]
    ) -> tuple[LineConfig | ZoneConfig, ...]:
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the name {twice!r} is given twice; choose another")
        return parts


class TrackStage(Stage[Frame, Frame]):
    """Sets `track_id` of the detections and `tracks` of the frame.

    A frame that was not inferred gets the boxes that its tracks are expected to have. One that was,
    but has no detections (another kind of model), passes unchanged. At a new epoch, a discontinuity
    or another size of picture the tracks begin anew; ids and counts go on.

    Counters: `tracks` that got an id; `predicted` boxes; `time_repaired`, frames whose time did not
    grow; and by `stream/line/in/class` (`out`) the crossings, by `stream/zone/entered/class` the
    visits and by `stream/zone/dwell_ms/class` the time of all visitors together.

    Raises:
        UsageError: (open) the package `trackers` is missing.
    """

    accepts = Frame
    produces = Frame

    def __init__(self, config: TrackConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._context: RunContext | None = None
        self._streams: dict[str, _Stream] = {}

    def open(self, context: RunContext) -> None:
        """Import the trackers; they are made when a stream's first frame comes."""
        try:
            import stages.association  # noqa: F401 - later imports are then quick
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{self.name}: the package {error.name!r} is missing; {_INSTALL}"
            ) from error
        self._context, self._streams = context, {}
        self.counters = {"tracks": 0, "predicted": 0, "time_repaired": 0}

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Return one frame for each, in order.

        Raises:
            RuntimeError: the stage is not open.
        """
        if self._context is None:
            raise RuntimeError(f"{self.name} is not open: call open() before process()")
        return [self._stream(frame, self._context).follow(frame) for frame in items]

    def close(self) -> None:
        """Forget all tracks."""
        self._context, self._streams = None, {}

    def _stream(self, frame: Frame, context: RunContext) -> _Stream:
        stream = frame.id.stream
        if stream not in self._streams:
            from stages.association import Association

            info = context.streams.get(stream)
            config = self.config
            association = Association(
                config.method,
                lost_s=config.lost_s,
                score_threshold=config.score_threshold,
                iou_threshold=config.iou_threshold,
                buffer=config.buffer,
                confirm=config.confirm,
                rate_hz=float(info.rate_hz if info and info.rate_hz else _ASSUMED_HZ),
            )
            self._streams[stream] = _Stream(
                stream, config, association, self.counters, context, self.name
            )
        return self._streams[stream]


class _Stream:
    """The memory of one stream."""

    def __init__(
        self,
        stream: str,
        config: TrackConfig,
        association: Association,
        counters: dict[str, int],
        context: RunContext,
        stage: str,
    ) -> None:
        self._config = config
        self._association = association
        self._counters = counters
        self._context = context
        self._stage = stage
        self._last: tuple[tuple[int, tuple[int, int]], FrameTime] | None = None
        """Of the frame before: epoch and size, and its time. Not the frame: it holds pixels."""
        self._clock_s = Fraction(0)
        """Exact, so that a day of small steps adds up to a day."""
        self._looked_s: float | None = None
        self._seldom = 0
        """Looks in a row that came too late for every track."""
        self._trails: dict[int, deque[TrailPoint]] = {}
        self._counts = Counts(stream, config.lines, config.zones, config.band, counters)

    def follow(self, frame: Frame) -> Frame:
        """Return the frame with ids, or with predicted boxes, and what there is to tell."""
        self._advance(frame)
        crossings: tuple[Crossing, ...] = ()
        found = frame.detections
        if found is not None:
            self._tell_if_too_seldom()
            before = self._association.alive
            found = replace(found, track_id=self._association.update(found, self._time_s))
            self._counters["tracks"] += len(self._association.alive - before)
            crossings = self._count(found)
        elif not frame.inferred:
            found = self._association.predict(self._time_s, frame.size_wh)
            self._counters["predicted"] += 0 if found is None else len(found)
        else:
            return frame
        return replace(frame, detections=found, tracks=self._tracks(found, crossings))

    def _advance(self, frame: Frame) -> None:
        """Move the clock on to a frame, and begin anew where nothing leads to it."""
        place = frame.id.epoch, frame.size_wh
        last, self._last = self._last, (place, frame.time)
        if last is None or frame.discontinuity or last[0] != place:
            self._looked_s = None
            self._begin(frame.size_wh)
            return
        now, then = frame.time.media_s, last[1].media_s
        if now is None or then is None:
            elapsed_s = Fraction(frame.time.captured_ns - last[1].captured_ns, 10**9)
        else:
            elapsed_s = now - then
        if elapsed_s <= 0:
            # Sources repair their times; whatever slips through must not stop the clock.
            self._counters["time_repaired"] += 1
            elapsed_s = Fraction(1, _ASSUMED_HZ)
        self._clock_s += elapsed_s
        if elapsed_s > self._config.lost_s:
            self._begin(frame.size_wh)

    @property
    def _time_s(self) -> float:
        return float(self._clock_s)

    def _begin(self, size_wh: tuple[int, int]) -> None:
        self._association.reset()
        self._counts.begin(size_wh)
        self._trails = {}

    def _tell_if_too_seldom(self) -> None:
        before, self._looked_s = self._looked_s, self._time_s
        late = before is not None and self._time_s - before > self._config.lost_s
        self._seldom = self._seldom + 1 if late else 0
        if self._seldom == _TOO_OFTEN_LATE:
            self._context.note(
                f"{self._stage}: detections come more than lost_s ({self._config.lost_s:g} s) "
                f"apart, so nothing can be followed; raise {self._stage}.lost_s or lower "
                "infer.detect_every"
            )

    def _count(self, found: Detections) -> tuple[Crossing, ...]:
        """Take the places of the tracks that were seen; return what they crossed."""
        crossings: list[Crossing] = []
        for track_id, class_name, xy in _seen(found):
            self._remember(track_id, xy)
            crossings += self._counts.update(track_id, class_name, xy, self._time_s)
        alive = self._association.alive
        self._trails = {i: trail for i, trail in self._trails.items() if i in alive}
        self._counts.keep(alive)
        return tuple(crossings)

    def _remember(self, track_id: int, xy: Point) -> None:
        trail = self._trails.setdefault(track_id, deque())
        trail.append(TrailPoint(self._time_s, xy))
        while self._time_s - trail[0].time_s > self._config.trail_s:
            trail.popleft()

    def _tracks(self, found: Detections | None, crossings: tuple[Crossing, ...]) -> Tracks:
        ids = [] if found is None else [track_id for track_id, _, _ in _seen(found)]
        return Tracks(
            time_s=self._time_s,
            trails={i: tuple(self._trails[i]) for i in ids},
            crossings=crossings,
            lines=self._counts.lines(),
            zones=self._counts.zones(ids),
        )


def _seen(found: Detections) -> list[tuple[int, str, Point]]:
    """Return id, class name and bottom centre of each detection with an id."""
    ids = np.full(len(found), -1) if found.track_id is None else found.track_id
    return [
        (int(ids[row]), found.name_of(row), ((float(box[0]) + float(box[2])) / 2, float(box[3])))
        for row, box in enumerate(found.xyxy)
        if ids[row] >= 0
    ]
