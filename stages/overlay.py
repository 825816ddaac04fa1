"""Draws what is known about a frame into a copy of its picture: boxes, masks, keypoints, maps.

One thread runs it. The drawing itself is in `stages.drawing` and `stages.drawing_results`, which
are imported at `open`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.clock import Clock, MonotonicClock
from pipeline.config import StageConfig
from pipeline.detections import Detections
from pipeline.frame import Frame
from pipeline.stage import RunContext, Stage

if TYPE_CHECKING:
    import cv2

    from stages.drawing import Canvas, Edges

Figure = Literal["stream", "frame", "time", "fps", "age"]


class OverlayConfig(StageConfig):
    """What is drawn, and how large."""

    boxes: bool = Field(default=True, description="Draw a frame around each detection.")
    labels: bool = Field(default=True, description="Write the class name at each detection.")
    scores: bool = Field(default=True, description="Write the score behind the name; needs labels.")
    track_ids: bool = Field(
        default=True,
        description="Write '#id' before the name where a tracker gave one; needs labels.",
    )
    trails: float = Field(
        0.0,
        ge=0,
        le=60,
        description="Seconds of each track's path to draw behind it; needs the stage track.",
    )
    counts: bool = Field(
        default=True,
        description="Draw the lines and zones of the stage track, with their counts.",
    )
    masks: bool = Field(
        default=True, description="Tint the pixels of each detection that has a mask."
    )
    segmentation: bool = Field(
        default=True,
        description="Tint each pixel in the colour of its class, but for the background, where a "
        "model maps the whole picture.",
    )
    opacity: float = Field(
        0.45, ge=0, le=1, description="Strength of the tint of masks and maps, 0 to 1."
    )
    legend: bool = Field(
        default=True,
        description="Name the classes of such a map that are in the picture, at the top right.",
    )
    keypoints: bool = Field(
        default=True,
        description="Draw the keypoints of each detection that has them; with COCO's 17 keypoints "
        "of people the skeleton too.",
    )
    keypoint_threshold: float = Field(
        0.5, ge=0, le=1, description="Lowest score of a keypoint that is drawn."
    )
    captions: bool = Field(
        default=True, description="Write captions, if any, at the bottom of the picture."
    )
    show: tuple[Figure, ...] = Field(
        (),
        description=(
            "Figures at the top left, in this order: 'stream' (its name), 'frame' (number at"
            " capture; 'epoch:number' after a reconnect), 'time' (on the media's timeline),"
            " 'fps' (frames drawn per second over the last 2 s), 'age' (time since capture)."
        ),
    )
    thickness: Literal["auto"] | Annotated[int, Field(ge=1, le=100)] = Field(
        "auto", description="Line thickness in pixels; 'auto' follows the picture's size."
    )
    text_px: Literal["auto"] | Annotated[int, Field(ge=6, le=400)] = Field(
        "auto", description="Text size in pixels; 'auto' follows the picture's size, 11 at least."
    )


class Rate:
    """Frames per second over a sliding window: frames counted over time passed."""

    WINDOW_NS = 2_000_000_000
    # Above 256 frames in 2 s the window is shorter, which is exact enough at such rates.
    _MAX_TICKS = 256

    def __init__(self) -> None:
        self._ticks: deque[int] = deque(maxlen=self._MAX_TICKS)

    def tick(self, now_ns: int) -> float | None:
        """Count a frame at `now_ns`; return frames per second, None before the second frame."""
        ticks = self._ticks
        ticks.append(now_ns)
        # Two ticks always stay, so that a slower stream than the window still has a rate.
        while len(ticks) > 2 and now_ns - ticks[0] > self.WINDOW_NS:
            ticks.popleft()
        passed_ns = now_ns - ticks[0]
        return (len(ticks) - 1) * 1e9 / passed_ns if passed_ns > 0 else None


class OverlayStage(Stage[Frame, Frame]):
    """Draws on a copy of the frame's picture; the incoming array is not touched.

    A frame on which there is nothing to draw passes unchanged. Counters: `labels_left_out` (picture
    too small for text), `boxes_outside` (no area inside the picture).
    """

    accepts = Frame
    produces = Frame

    def __init__(self, config: OverlayConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.counters = {}
        self._clock: Clock = MonotonicClock()
        self._rates: dict[str, Rate] = {}
        self._font: cv2.FontFace | None = None

    def open(self, context: RunContext) -> None:
        """Load the font."""
        from stages import drawing

        self._clock = context.clock
        self._rates = {}
        self._font = drawing.font()

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Return the frames with their overlays drawn."""
        return [self._draw(frame) for frame in items]

    def close(self) -> None:
        """Release the font."""
        self._font = None

    def _draw(self, frame: Frame) -> Frame:
        # Imported by `open`; at module level it would load cv2 for `check` and `list` too.
        from stages import drawing
        from stages.drawing_results import legend_of, tint_map
        from stages.drawing_tracks import draw_counts, draw_trails, label_counts

        if self._font is None:
            raise RuntimeError(f"{self.name}: process was called before open")
        config, found = self.config, frame.detections
        figures = self._figures(frame) if config.show else []
        captions = frame.captions if config.captions else ()
        wanted = found is not None and (
            config.boxes
            or config.labels
            or (config.masks and found.masks is not None)
            or (config.keypoints and found.keypoints is not None)
        )
        mapped = frame.segmentation if config.segmentation or config.legend else None
        tracks = frame.tracks
        counts = tracks if tracks and config.counts and (tracks.lines or tracks.zones) else None
        trails = config.trails > 0 and bool(tracks and tracks.trails)
        anything = figures or captions or mapped or counts or trails or (found and wanted)
        if not anything or 0 in frame.size_wh:
            return frame
        size_wh = frame.size_wh
        line, text = config.thickness, config.text_px
        canvas = drawing.Canvas(
            frame.image.copy(order="C"),
            self._font,
            line_px=drawing.auto_line_px(size_wh) if line == "auto" else line,
            text_px=drawing.auto_text_px(size_wh) if text == "auto" else text,
        )
        if mapped is not None and config.segmentation:
            tint_map(canvas.image, mapped, config.opacity)
        if counts is not None:
            draw_counts(canvas, counts)
        if tracks is not None and found is not None and trails:
            draw_trails(canvas, tracks, found, config.trails)
        drawn = self._draw_shapes(canvas, found) if found else []
        if mapped is not None and config.legend:
            canvas.legend(legend_of(mapped))
        if figures:
            canvas.panel(canvas.pack(figures), "top")
        if captions:
            canvas.panel([line for c in captions for line in canvas.wrap(c.text)][-6:], "bottom")
        if counts is not None:
            label_counts(canvas, counts)
        if found and config.labels:
            self._draw_labels(canvas, found, drawn)
        return replace(frame, image=canvas.image)

    def _draw_shapes(self, canvas: Canvas, found: Detections) -> list[tuple[int, Edges]]:
        """Draw masks, boxes, keypoints, large ones first; return the rows seen, in that order."""
        from stages.drawing import color_of, pixel_edges
        from stages.drawing_results import draw_keypoints

        edges = pixel_edges(found.xyxy, (canvas.width, canvas.height))
        sizes = found.xyxy.astype(np.float64)
        area = (sizes[:, 2] - sizes[:, 0]) * (sizes[:, 3] - sizes[:, 1])
        classes = found.class_id.tolist()
        # Stable, so that equal boxes are drawn in the order given: the same picture in every run.
        rows: list[int] = np.argsort(-area, kind="stable").tolist()
        seen = [(row, box) for row in rows if (box := edges[row]) is not None]
        if len(seen) < len(rows):
            self._count("boxes_outside", len(rows) - len(seen))
        if self.config.masks and found.masks is not None:
            for row, _ in seen:
                canvas.mask(found.masks[row], color_of(classes[row]), self.config.opacity)
        if self.config.boxes:
            for row, box in seen:
                canvas.box(box, color_of(classes[row]))
        if self.config.keypoints and found.keypoints is not None:
            for row, box in seen:
                draw_keypoints(
                    canvas.image,
                    found.keypoints[row],
                    color_of(classes[row]),
                    line_px=canvas.line_px_in(box),
                    threshold=self.config.keypoint_threshold,
                )
        return seen

    def _draw_labels(
        self, canvas: Canvas, found: Detections, seen: list[tuple[int, Edges]]
    ) -> None:
        from stages.drawing import color_of

        classes, scores = found.class_id.tolist(), found.score.tolist()
        tracks = None if found.track_id is None else found.track_id.tolist()
        # Small boxes choose first: a large one has more room around it.
        for row, box in reversed(seen):
            parts = [found.class_names[classes[row]]]
            if self.config.track_ids and tracks is not None and tracks[row] >= 0:
                parts.insert(0, f"#{tracks[row]}")
            score = f" {scores[row]:.2f}" if self.config.scores else ""
            if not canvas.label(box, " ".join(parts), color_of(classes[row]), score):
                self._count("labels_left_out", len(seen))
                return

    def _figures(self, frame: Frame) -> list[str]:
        """Return the header's parts. Called once a frame: it also counts for the rate."""
        now_ns = self._clock.now_ns()
        rate = self._rates.setdefault(frame.id.stream, Rate()).tick(now_ns)
        age_ns = now_ns - frame.time.captured_ns
        epoch = f"{frame.id.epoch}:" if frame.id.epoch else ""
        media_s = frame.time.media_s
        texts: dict[Figure, str] = {
            "stream": frame.id.stream,
            "frame": f"frame {epoch}{frame.id.seq}",
            "time": "time --" if media_s is None else clock_text(round(media_s * 1000)),
            "fps": "-- fps" if rate is None else f"{rate:.1f} fps",
            "age": f"age {age_ns / 1e9:.1f} s" if age_ns >= 10**10 else f"age {age_ns // 10**6} ms",
        }
        return [texts[name] for name in self.config.show]

    def _count(self, what: str, more: int) -> None:
        self.counters[what] = self.counters.get(what, 0) + more


def clock_text(time_ms: int) -> str:
    """Return milliseconds as `h:mm:ss.mmm`, with a sign when negative."""
    minutes, ms = divmod(abs(time_ms), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{'-' if time_ms < 0 else ''}{hours}:{minutes:02}:{ms // 1000:02}.{ms % 1000:03}"
