"""What drawing costs: CPU milliseconds a frame, beside plain OpenCV and supervision.

    python -m benchmarks.overlay [--size 1280x720] [--boxes 10]

Every contestant copies the picture and draws the same boxes with the same texts. Rounds are
interleaved, so that a busy machine disturbs all alike; the figure is the median round of process
CPU time. Ours also draws rims and looks for free places for the labels; the others do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np

from pipeline.detections import Detections, Mask
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import RunContext
from stages.drawing import color_of
from stages.overlay import OverlayConfig, OverlayStage

NAMES = ("person", "bicycle", "car", "traffic light", "dog")
ROUNDS = 15
Draw = Callable[[], object]


def make_frame(width: int, height: int, count: int) -> Frame:
    """Return a seeded noise picture with `count` detections, each with an elliptic mask."""
    rng = np.random.default_rng(0)
    centre = rng.uniform(0.15, 0.85, (count, 2))
    half = rng.uniform(0.03, 0.14, (count, 2))
    xyxy = np.concatenate([centre - half, centre + half], axis=1) * np.array([width, height] * 2)
    masks = []
    for x1, y1, x2, y2 in xyxy.astype(int).tolist():
        rows, columns = np.mgrid[-1 : 1 : (y2 - y1) * 1j, -1 : 1 : (x2 - x1) * 1j]
        masks.append(Mask(x1, y1, rows**2 + columns**2 < 1))
    found = Detections(
        xyxy=xyxy.astype(np.float32),
        score=rng.uniform(0.3, 1, count).astype(np.float32),
        class_id=np.arange(count) % len(NAMES),
        class_names=NAMES,
        masks=tuple(masks),
    )
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Frame(FrameId("bench", 0, 0), FrameTime(0, 0, Fraction(1)), image, found)


def overlay(frame: Frame, *, masks: bool) -> Draw:
    """Return our stage on `frame`."""
    stage = OverlayStage(OverlayConfig(masks=masks), "overlay")
    stage.open(RunContext())
    return lambda: stage.process([frame])


def plain_cv2(frame: Frame) -> Draw:
    """Return the tutorial way: rectangle, filled background, Hershey text."""
    found = frame.detections
    if found is None:
        raise ValueError("the frame has no detections")

    def draw() -> object:
        image = frame.image.copy()
        for row in range(len(found)):
            x1, y1, x2, y2 = (int(v) for v in found.xyxy[row])
            color = color_of(int(found.class_id[row]))
            text = f"{found.name_of(row)} {found.score[row]:.2f}"
            (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
            cv2.rectangle(image, (x1, y1), (x2, y2), color, 2)
            cv2.rectangle(image, (x1, y1 - h - base), (x1 + w, y1), color, cv2.FILLED)
            cv2.putText(
                image, text, (x1, y1 - base), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1,
                cv2.LINE_AA,
            )  # fmt: skip
        return image

    return draw


def supervision(frame: Frame, *, masks: bool) -> Draw | None:
    """Return supervision's annotators on `frame`, or None where it is not installed."""
    try:
        import supervision as sv
    except ImportError:
        return None
    found = frame.detections
    if found is None:
        raise ValueError("the frame has no detections")
    full = np.zeros((len(found), *frame.image.shape[:2]), bool)
    for row, mask in enumerate(found.masks or ()):
        h, w = mask.bits.shape
        full[row, mask.y : mask.y + h, mask.x : mask.x + w] = mask.bits
    theirs = sv.Detections(
        xyxy=found.xyxy,
        confidence=found.score,
        class_id=found.class_id.astype(int),
        mask=full if masks else None,
    )
    boxes, labels, tints = sv.BoxAnnotator(), sv.LabelAnnotator(), sv.MaskAnnotator()

    def draw() -> object:
        image = frame.image.copy()
        texts = [f"{found.name_of(row)} {found.score[row]:.2f}" for row in range(len(found))]
        if masks:
            tints.annotate(image, theirs)
        boxes.annotate(image, theirs)
        return labels.annotate(image, theirs, labels=texts)

    return draw


def measure(contestants: dict[str, Draw], repeats: int) -> dict[str, float]:
    """Return the median CPU milliseconds of one call, by name."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_index in range(ROUNDS + 1):
        for name, draw in contestants.items():
            start = time.process_time()
            for _ in range(repeats):
                draw()
            if round_index:  # the first round warms up
                times[name].append((time.process_time() - start) / repeats * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1280x720", help="picture, WIDTHxHEIGHT")
    parser.add_argument("--boxes", type=int, default=10, help="detections in the picture")
    options = parser.parse_args()
    width, height = (int(part) for part in options.size.split("x"))
    # One thread each: the pipeline's other stages need the cores, and CPU time is what they lose.
    cv2.setNumThreads(1)
    frame = make_frame(width, height, options.boxes)
    possible: dict[str, Draw | None] = {
        "copy of the picture": lambda: frame.image.copy(),
        "overlay": overlay(frame, masks=False),
        "plain cv2 (Hershey, ASCII)": plain_cv2(frame),
        "supervision": supervision(frame, masks=False),
        "overlay with masks": overlay(frame, masks=True),
        "supervision with masks": supervision(frame, masks=True),
    }
    result = measure(
        {name: draw for name, draw in possible.items() if draw},
        repeats=max(2, 200 // max(options.boxes, 1)),
    )
    copy_ms, ours = result.pop("copy of the picture"), result["overlay"]
    print(
        f"{options.boxes} boxes with labels at {width}x{height}, CPU ms a frame, {cv2.__version__=}"
    )
    print(f"copy of the picture, included below: {copy_ms:.3f}")
    for name, cpu_ms in result.items():
        print(f"{name:28} {cpu_ms:8.3f}   {cpu_ms / ours:5.2f} x overlay")
    if possible["supervision"] is None:
        print("supervision is not installed: left out (pip install supervision)")


if __name__ == "__main__":
    main()
