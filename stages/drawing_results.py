"""How results other than boxes look: keypoints with skeletons, and maps of classes.

Pixels only, on a BGR picture that is written in place. Imports cv2, so it is imported when the
overlay opens. Pure functions; safe from any thread on pictures of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np

from pipeline.frame import Segmentation
from pipeline.geometry import F32
from stages.drawing import U8, Color, color_of

_RIM: Final[Color] = (20, 20, 20)
_WHITE: Final[Color] = (255, 255, 255)

# COCO's person, pairs of keypoint numbers: nose, eyes, ears, shoulders, elbows, wrists, hips,
# knees, ankles, left before right.
COCO_LIMBS: Final = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
_COCO_POINTS: Final = 17
# Sixteenths of a pixel: a skeleton that follows a walker must not jump from pixel to pixel.
_SHIFT: Final = 4
# Far beyond any picture, and far below where cv2's fixed point overflows.
_FAR_PX: Final = 100_000.0


def draw_keypoints(image: U8, points: F32, color: Color, *, line_px: int, threshold: float) -> None:
    """Draw one detection's keypoints as white dots with a rim, and limbs where there are 17.

    Args:
        image: (h, w, 3) uint8 BGR, C-contiguous; written in place.
        points: (k, 3) float32: x, y in pixels of the picture, score; may lie outside.
        color: Of the limbs.
        line_px: Thickness of the limbs; dots are a little thicker.
        threshold: Points with a lower score, and limbs from or to them, are left out.
    """
    shown = (points[:, 2] >= threshold).tolist()
    # Pixel k covers k to k + 1; cv2 has the centre of pixel k at k.
    near = np.clip(points[:, :2] - np.float32(0.5), -_FAR_PX, _FAR_PX)
    at = [tuple(xy) for xy in np.rint(near * 2**_SHIFT).astype(np.int64).tolist()]
    limbs = COCO_LIMBS if len(points) == _COCO_POINTS else ()
    seen = [(at[a], at[b]) for a, b in limbs if shown[a] and shown[b]]
    # All rims before all colours, so that no limb's rim cuts through another limb.
    for one, other in seen:
        cv2.line(image, one, other, _RIM, line_px + 2, cv2.LINE_AA, _SHIFT)
    for one, other in seen:
        cv2.line(image, one, other, color, line_px, cv2.LINE_AA, _SHIFT)
    radius = round((line_px * 0.75 + 1.5) * 2**_SHIFT)
    for xy, visible in zip(at, shown, strict=True):
        if visible:
            cv2.circle(image, xy, radius + (1 << _SHIFT), _RIM, cv2.FILLED, cv2.LINE_AA, _SHIFT)
            cv2.circle(image, xy, radius, _WHITE, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def tint_map(image: U8, found: Segmentation, opacity: float) -> None:
    """Tint each pixel in the colour of its class; the background, if there is one, stays.

    Args:
        image: (h, w, 3) uint8 BGR of the map's size, C-contiguous; written in place.
        found: What to show.
        opacity: 0 to 1.
    """
    colors = cv2.applyColorMap(np.ascontiguousarray(found.class_id), _palette())
    tinted = cv2.addWeighted(image, 1 - opacity, colors, opacity, 0)
    if found.has_background:
        cv2.copyTo(tinted, found.class_id, image)
    else:
        image[...] = tinted


@cache
def _palette() -> U8:
    """Return the colour of each class id, (256, 1, 3) uint8."""
    return np.array([color_of(i) for i in range(256)], np.uint8).reshape(256, 1, 3)


def legend_of(found: Segmentation) -> list[tuple[str, Color]]:
    """Return name and colour of each class in the picture but the background, largest first."""
    shares = found.shares()
    if found.has_background:
        shares.pop(0, None)
    order = sorted(shares, key=lambda class_id: (-shares[class_id], class_id))
    return [(found.class_names[class_id], color_of(class_id)) for class_id in order]
