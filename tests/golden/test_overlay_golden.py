"""The overlay against pictures that a person has looked at.

To change them: `pytest tests/golden --update-golden`, then look at every PNG that differs.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.detections import Detections, Mask
from pipeline.frame import Caption, Frame, FrameId, FrameTime, Segmentation
from pipeline.stage import RunContext
from pipeline.tracks import LineCount, Tracks, TrailPoint, ZoneState
from stages.overlay import OverlayConfig, OverlayStage

HERE = Path(__file__).parent
NAMES = ("person", "bicycle", "사람", "行人", "пешеход", "a name that is much too long to be shown")

# Lines and tints are exact integers; only glyphs may differ, where another build rasterises text
# with other SIMD code. Measured on these pictures: one edge of one box off by a pixel gives 31 dB
# or less, a missing box or label 25 or less; one other digit 42 to 51 (the texts have unit tests).
MIN_PSNR_DB = 40.0


class StillClock:
    def now_ns(self):
        return 42_000_000

    def sleep(self, seconds):
        pass


def picture(w, h):
    """Dark to light from left to right, with a checked lower half: each ground a box may meet."""
    image = np.repeat(np.linspace(0, 255, w).astype(np.uint8)[None, :, None], h, 0).repeat(3, 2)
    rows, columns = np.mgrid[h // 2 : h, :w]
    image[h // 2 :] = np.where((rows // 16 + columns // 16) % 2, 230, 30)[..., None]
    return image


def scene(w, h, *, masks=False, tracks=False, caption=""):
    boxes = np.array(
        [
            (0.05, 0.20, 0.30, 0.80),
            (0.25, 0.30, 0.55, 0.95),
            (0.62, 0.02, 0.80, 0.40),
            (0.70, 0.25, 1.10, 0.60),
            (0.60, 0.65, 0.72, 0.85),
            (0.85, 0.75, 0.97, 0.98),
        ],
        np.float32,
    ) * np.array([w, h, w, h], np.float32)
    crops = []
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        rows, columns = np.mgrid[-1 : 1 : (y2 - y1) * 1j, -1 : 1 : (x2 - x1) * 1j]
        crops.append(Mask(x1, y1, rows**2 + columns**2 < 0.8))
    found = Detections(
        xyxy=boxes,
        score=np.linspace(0.95, 0.3, 6).astype(np.float32),
        class_id=np.arange(6),
        class_names=NAMES,
        masks=tuple(crops) if masks else None,
        track_id=np.array([1, 2, -1, 40, 5, -1]) if tracks else None,
    )
    identity = FrameId("street", 0, 1234)
    captions = (Caption(caption, "test", identity),) if caption else ()
    time = FrameTime(0, 123_456, Fraction(1, 15360))
    return Frame(identity, time, picture(w, h), found, captions=captions)


def people(w, h):
    """Two poses, one with hidden points, and a face's five dots."""
    found = scene(w, h).detections[:2]
    pose = np.array([
        (50, 8), (55, 5), (45, 5), (60, 8), (40, 8), (68, 25), (32, 25), (80, 42), (20, 42),
        (85, 60), (10, 30), (60, 58), (40, 58), (62, 78), (38, 78), (64, 97), (36, 97),
    ], np.float32) / 100  # fmt: skip
    corner, side = found.xyxy[:, None, :2], (found.xyxy[:, 2:] - found.xyxy[:, :2])[:, None]
    score = np.ones((2, 17, 1), np.float32)
    score[1, [9, 13, 15]] = 0.2
    points = np.concatenate([corner + pose * side, score], axis=2)
    return replace(scene(w, h), detections=replace(found, keypoints=points))


def mapped(w, h):
    """A map of four classes over the picture: background, sky, road, and a person on it."""
    rows, columns = np.mgrid[:h, :w]
    class_id = np.zeros((h, w), np.uint8)
    class_id[rows > 0.7 * h + 0.1 * (columns - w / 2)] = 2
    class_id[rows < 0.25 * h] = 1
    class_id[((columns - 0.4 * w) / (0.1 * w)) ** 2 + ((rows - 0.6 * h) / (0.3 * h)) ** 2 < 1] = 3
    found = Segmentation(class_id, ("background", "sky", "road", "person"))
    return replace(scene(w, h), detections=None, segmentation=found)


def faces(w, h):
    """A detection with five points and no limbs, on a map: both kinds of result in one frame."""
    found = scene(w, h).detections[4:5]
    xy = np.array([(0.3, 0.4), (0.7, 0.38), (0.5, 0.6), (0.35, 0.8), (0.65, 0.78)], np.float32)
    points = found.xyxy[:, None, :2] + xy * (found.xyxy[:, 2:] - found.xyxy[:, :2])[:, None]
    points = np.concatenate([points, np.ones((1, 5, 1), np.float32)], axis=2)
    return replace(mapped(w, h), detections=replace(found, keypoints=points))


def tracked(w, h):
    """Paths of three tracks, one older than is drawn; two lines and a zone with a notch."""
    trails = {
        1: tuple(
            TrailPoint(k / 10, (0.325 * w - 0.005 * w * k, 0.98 * h - 0.006 * h * k))
            for k in range(31)
        ),
        2: tuple(TrailPoint(k / 10, (0.4 * w, 0.5 * h + 0.015 * h * k)) for k in range(25, 31)),
        40: (TrailPoint(3.0, (0.9 * w, 0.6 * h)),),
    }
    corners = ((0.5, 0.55), (0.98, 0.55), (0.98, 0.98), (0.74, 0.75), (0.5, 0.98))
    tracks = Tracks(
        time_s=3.0,
        trails=trails,
        lines=(
            LineCount("door", (0.45 * w, 0.95 * h), (0.45 * w, 0.1 * h), 12, 3),
            LineCount("выход", (0.6 * w, 0.45 * h), (0.95 * w, 0.3 * h), 0, 1),
        ),
        zones=(ZoneState("yard", tuple((x * w, y * h) for x, y in corners), {5: 1.0, 40: 2.0}),),
    )
    return replace(scene(w, h, tracks=True), tracks=tracks)


CASES = {
    "boxes_320x240": ((320, 240), {}, {}),
    "boxes_640x360": ((640, 360), {}, {}),
    "all_640x480": (
        (640, 480),
        {"show": ("stream", "frame", "time", "fps", "age")},
        {
            "masks": True,
            "tracks": True,
            "caption": "Two people cross a street while a cyclist waits; 한 남자가 길을 건넌다.",
        },
    ),
    "small_96x72": ((96, 72), {"thickness": 1}, {}),
    "poses_640x480": ((640, 480), {}, {"make": people}),
    "tracks_640x360": ((640, 360), {"trails": 2.0}, {"make": tracked}),
    "map_640x360": ((640, 360), {"show": ("stream", "frame")}, {"make": mapped}),
    "map_and_face_320x240": ((320, 240), {"opacity": 0.7}, {"make": faces}),
}


def psnr_db(a, b):
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("name", CASES)
def test_overlay_looks_as_reviewed(name, request, tmp_path):
    size_wh, config, contents = CASES[name]
    stage = OverlayStage(OverlayConfig(**config), "overlay")
    stage.open(RunContext(clock=StillClock()))
    contents = dict(contents)
    make = contents.pop("make", scene)
    (result,) = stage.process([make(*size_wh, **contents)])
    path = HERE / f"overlay_{name}.png"
    # The plugin that adds the option is read only when this folder is named on the command line.
    if request.config.getoption("--update-golden", default=False):
        cv2.imwrite(str(path), result.image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    reference = cv2.imread(str(path))
    assert reference is not None, f"{path} is missing: run with --update-golden and review it"
    assert reference.shape == result.image.shape
    psnr = psnr_db(reference, result.image)
    if psnr < MIN_PSNR_DB:
        cv2.imwrite(str(tmp_path / path.name), result.image)
    assert psnr >= MIN_PSNR_DB, f"{psnr:.1f} dB; see {tmp_path / path.name}"
