"""How the overlay shows what is known over time: paths of tracks, counting lines and zones.

Functions on a `Canvas`, imported when the overlay opens. Lines and zones are white, which no class
is; a path has the colour of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Detections, Mask
from pipeline.tracks import LineCount, Point, Tracks
from stages.drawing import Canvas, Color, Edges, color_of

_WHITE: Final[Color] = (255, 255, 255)
_RIM: Final[Color] = (20, 20, 20)
_ZONE_OPACITY: Final = 0.15
_ARROW: Final = 0.04
"""Length of a line's arrow, as a share of the picture's shorter side."""


def draw_counts(canvas: Canvas, tracks: Tracks) -> None:
    """Draw the zones, tinted, and the lines, each with an arrow to where 'in' is."""
    for zone in tracks.zones:
        corners = _pixels(zone.polygon)
        x, y, width, height = cv2.boundingRect(corners)
        bits = np.zeros((height, width), np.uint8)
        cv2.fillPoly(bits, [corners - (x, y)], 1)
        canvas.mask(Mask(x, y, bits.astype(np.bool_)), _WHITE, _ZONE_OPACITY)
        _path(canvas, corners, _WHITE, closed=True)
    for line in tracks.lines:
        _path(canvas, _pixels((line.start, line.end)), _WHITE)
        _path(canvas, _pixels(_arrow(line, _ARROW * min(canvas.width, canvas.height))), _WHITE)


def label_counts(canvas: Canvas, tracks: Tracks) -> None:
    """Write the name and the counts at each zone and line."""
    for zone in tracks.zones:
        canvas.label(_top(canvas, zone.polygon), zone.name, _WHITE, f" {len(zone.dwell_s)}")
    for line in tracks.lines:
        counts = f" in {line.crossed_in} out {line.crossed_out}"
        canvas.label(_top(canvas, (line.start, line.end)), line.name, _WHITE, counts)


def draw_trails(canvas: Canvas, tracks: Tracks, found: Detections, trail_s: float) -> None:
    """Draw the last `trail_s` seconds of the path of each track, up to where it is now."""
    if found.track_id is None:
        return
    for row, track_id in enumerate(found.track_id.tolist()):
        trail = tracks.trails.get(track_id, ())
        points = [point.xy for point in trail if tracks.time_s - point.time_s <= trail_s]
        left, _, right, bottom = found.xyxy[row].tolist()
        points.append(((left + right) / 2, bottom))
        _path(canvas, _pixels(points), color_of(int(found.class_id[row])))


def _arrow(line: LineCount, length_px: float) -> tuple[Point, Point, Point]:
    """Return the head of an arrow from the line's middle to its right side."""
    along = np.subtract(line.end, line.start)
    along = along / (np.hypot(*along) or 1.0)
    right = np.array([-along[1], along[0]])
    middle = (np.asarray(line.start) + line.end) / 2
    corners = (middle - along * length_px, middle + right * length_px, middle + along * length_px)
    first, tip, last = ((float(x), float(y)) for x, y in corners)
    return first, tip, last


def _path(canvas: Canvas, points: NDArray[np.int32], color: Color, *, closed: bool = False) -> None:
    line_px = canvas.line_px_in((0, 0, canvas.width, canvas.height))
    rim_px = line_px + 2 * max(1, round(line_px / 3))
    cv2.polylines(canvas.image, [points], closed, _RIM, rim_px, cv2.LINE_AA)
    cv2.polylines(canvas.image, [points], closed, color, line_px, cv2.LINE_AA)


def _pixels(points: object) -> NDArray[np.int32]:
    """Return places between pixels as (n, 2) int32 pixels."""
    return np.floor(np.asarray(points, np.float64)).astype(np.int32)


def _top(canvas: Canvas, points: Sequence[Point]) -> Edges:
    """Return the pixel of the highest corner, inside the picture: where a label belongs."""
    x, y = min(_pixels(points).tolist(), key=lambda corner: (corner[1], corner[0]))
    x, y = min(x, canvas.width - 1), min(y, canvas.height - 1)
    return x, y, x + 1, y + 1
