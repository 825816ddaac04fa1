"""Which detection belongs to which track: the trackers of the package `trackers`, made fit for us.

What is added around them: one tracker per class, so that a track never changes class; ids that go
on counting; the detections' own order; and boxes predicted for moments nobody looked at. Knows
nothing of frames, lines or drawing. Imports `trackers` (1 to 2 s), so it is imported when the track
stage opens. One thread calls one instance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import supervision as sv
from trackers import BIoU, ByteTrackTracker, OCSORTTracker

from pipeline.detections import I64, Detections

Method = Literal["bytetrack", "ocsort"]

_BUFFER_HZ: Final = 30
"""The package counts its buffer of lost tracks in frames of 1/30 s, whatever the real rate."""


@dataclass(slots=True)
class _ClassTracker:
    """The package's tracker for one class of one stream."""

    tracker: Any
    ids: dict[int, int] = field(default_factory=dict)
    """The package's id to ours, of tracks that are alive."""
    runs: dict[int, int] = field(default_factory=dict)
    """The package's id to detections in a row, of tracks that wait for an id of ours."""


@dataclass(frozen=True, slots=True)
class _Last:
    """What the last look said about a track."""

    class_id: int
    score: float


class Association:
    """The tracks of one stream.

    Args:
        method: "bytetrack" or "ocsort".
        lost_s: how long a track that is not seen is kept, in steps of 1/30 s.
        score_threshold: detections at least this sure start tracks and are linked first.
        iou_threshold: least overlap of a detection with where its track is expected.
        buffer: boxes are enlarged by this share of their size on every side for that (buffered
            IoU, Yang et al. 2023, arXiv:2211.14317).
        confirm: detections in a row after which a track gets its id; at least 2.
        rate_hz: the stream's nominal rate: the step for which the filters' noise is tuned.
    """

    def __init__(
        self,
        method: Method,
        *,
        lost_s: float,
        score_threshold: float,
        iou_threshold: float,
        buffer: float,
        confirm: int,
        rate_hz: float,
    ) -> None:
        self._kind = ByteTrackTracker if method == "bytetrack" else OCSORTTracker
        self._rate_hz = rate_hz
        self._lost_s = lost_s
        self._options: dict[str, Any] = {
            "lost_track_buffer": max(1, round(lost_s * _BUFFER_HZ)),
            "frame_rate": rate_hz,
            "high_conf_det_threshold": score_threshold,
            "minimum_iou_threshold": iou_threshold,
            "iou": BIoU(buffer),
        }
        # Their ids come with the second detection, which ByteTrack counts as 2 and OC-SORT as 1.
        # More than that is counted here: OC-SORT would take ids away after every miss.
        if method == "bytetrack":
            self._options["track_activation_threshold"] = score_threshold
            self._options["minimum_consecutive_frames"] = 2
        else:
            self._options["minimum_consecutive_frames"] = 1
        self._confirm = confirm
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget every track; ids go on counting."""
        self._classes: dict[int, _ClassTracker] = {}
        self._last: dict[int, _Last] = {}
        self._class_names: tuple[str, ...] | None = None
        self._time_s = 0.0

    @property
    def alive(self) -> frozenset[int]:
        """Ids of the tracks that are seen or may come back."""
        return frozenset(i for each in self._classes.values() for i in each.ids.values())

    def update(self, found: Detections, time_s: float) -> I64:
        """Link what was found to the tracks.

        Args:
            found: one frame's detections. Not modified.
            time_s: the frame's time; greater than at every earlier call since `reset`.

        Returns:
            (n,) int64: the id of each detection, -1 where it has none (yet).
        """
        self._class_names, self._time_s = found.class_names, time_s
        track_id = np.full(len(found), -1, np.int64)
        present = set(found.class_id.tolist())
        # By number, so that ids do not depend on which class was seen first.
        for class_id in sorted(present | set(self._classes)):
            rows = np.flatnonzero(found.class_id == class_id)
            track_id[rows] = self._update_class(class_id, found.xyxy[rows], found.score[rows])
        self._last = {
            int(track_id[row]): _Last(int(found.class_id[row]), float(found.score[row]))
            for row in np.flatnonzero(track_id >= 0)
        }
        return track_id

    def predict(self, time_s: float, size_wh: tuple[int, int]) -> Detections | None:
        """Return where the tracks of the last look are expected at a later time.

        The tracks themselves are left as they are, so it does not matter how often this is asked.

        Args:
            time_s: not before the last update.
            size_wh: the picture; boxes are cut to it, and those outside left out.

        Returns:
            Boxes of the tracks that were matched at the last update, with the score and class they
            had there, best first; none once they count as lost. None where there was no update
            since `reset`.
        """
        if self._class_names is None:
            return None
        boxes: dict[int, Any] = {}
        passed_s = time_s - self._time_s
        for each in self._classes.values() if passed_s <= self._lost_s else ():
            for track in each.tracker.tracks:
                own = each.ids.get(track.tracker_id, -1)
                if own in self._last:
                    boxes[own] = _box_after(track, passed_s * self._rate_hz, self._rate_hz)
        ids = sorted(boxes, key=lambda own: (-self._last[own].score, own))
        limit = np.array([*size_wh, *size_wh], np.float64)
        xyxy = np.array([boxes[i] for i in ids], np.float64).reshape(-1, 4).clip(0, limit)
        # NaN compares as False and goes too.
        seen = (xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1])
        return Detections(
            xyxy=xyxy.astype(np.float32),
            score=np.array([self._last[i].score for i in ids], np.float32),
            class_id=np.array([self._last[i].class_id for i in ids], np.int64),
            class_names=self._class_names,
            track_id=np.array(ids, np.int64),
        )[seen]

    def _update_class(self, class_id: int, xyxy: Any, score: Any) -> I64:  # noqa: ANN401 - arrays
        each = self._classes.get(class_id)
        if each is None:
            each = self._classes[class_id] = _ClassTracker(self._kind(**self._options))
        # The package may change the order: the row travels along.
        rows = np.arange(len(xyxy))
        offered = sv.Detections(xyxy=xyxy, confidence=score, data={"row": rows})
        linked = each.tracker.update(offered, timestamp=self._time_s)
        result = np.full(len(xyxy), -1, np.int64)
        if len(linked):
            for row, theirs in zip(linked.data["row"], linked.tracker_id, strict=True):
                if theirs >= 0:
                    result[row] = self._own_id(each, int(theirs))
            seen = set(linked.tracker_id.tolist())
        else:
            seen = set()
        alive = {track.tracker_id for track in each.tracker.tracks}
        each.ids = {theirs: own for theirs, own in each.ids.items() if theirs in alive}
        each.runs = {i: n if i in seen else 0 for i, n in each.runs.items() if i in alive}
        if not each.tracker.tracks:
            del self._classes[class_id]
        return result

    def _own_id(self, each: _ClassTracker, theirs: int) -> int:
        if theirs in each.ids:
            return each.ids[theirs]
        each.runs[theirs] = each.runs.get(theirs, 1) + 1
        if each.runs[theirs] < self._confirm:
            return -1
        del each.runs[theirs]
        each.ids[theirs] = self._next_id
        self._next_id += 1
        return each.ids[theirs]


def _box_after(track: Any, step: float, rate_hz: float) -> Any:  # noqa: ANN401 - the package's own
    """Return a track's box `step` nominal frames after its last update, leaving it untouched."""
    estimator = track.state_estimator
    kept = estimator.get_state()
    estimator.predict(step, rate_hz)
    box = np.array(track.get_state_bbox(), np.float64)
    estimator.set_state(kept)
    return box
