"""Agrees with a camera on size, rate and pixel format.

Over USB 2 raw pictures are slow (5-10 fps at 720p) where MJPG runs at 30, and drivers start with
raw. Works on anything that answers `set` and `get` as `cv2.VideoCapture` does. The thread that owns
the capture calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Protocol

from pipeline.frame import U8

# OpenCV's property numbers (videoio.hpp); written out so that cv2 need not be imported here.
WIDTH: Final = 3
HEIGHT: Final = 4
FPS: Final = 5
FOURCC: Final = 6
MJPG: Final = int.from_bytes(b"MJPG", "little")


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool:
        """Return whether the device is there."""
        ...

    def read(self) -> tuple[bool, U8 | None]:
        """Return the next picture, (h, w, 3) uint8 BGR."""
        ...

    def get(self, propId: int, /) -> float:
        """Return a property's value, 0 where unknown."""
        ...

    def set(self, propId: int, value: float, /) -> bool:
        """Ask for a property's value."""
        ...

    def release(self) -> None:
        """Close the device."""
        ...


@dataclass(frozen=True, slots=True)
class Mode:
    """What a camera says it will deliver."""

    size_wh: tuple[int, int]
    rate_hz: Fraction | None
    pixel_format: str
    """Its four-character code, e.g. "MJPG" or "YUYV"."""


def negotiate(
    capture: Capture,
    *,
    width: int | None,
    height: int | None,
    fps: float | None,
    pixel_format: str,
) -> Mode:
    """Ask for size and rate; for MJPG where that is faster or larger ("auto"), or always ("mjpg").

    Cameras choose the nearest mode they have; the result is what they then report.
    """

    def ask() -> Mode:
        for key, value in ((WIDTH, width), (HEIGHT, height), (FPS, fps)):
            if value is not None:
                capture.set(key, float(value))
        return current_mode(capture)

    first_format = int(capture.get(FOURCC))
    if pixel_format == "mjpg":
        capture.set(FOURCC, float(MJPG))
        return ask()
    mode = ask()
    if pixel_format == "raw" or first_format == MJPG:
        return mode
    # The format is set before the size: drivers give the sizes of the format in force.
    if not capture.set(FOURCC, float(MJPG)):
        return mode
    other = ask()
    if other.pixel_format == "MJPG" and _better(other, mode, fps):
        return other
    capture.set(FOURCC, float(first_format))
    return ask()


def current_mode(capture: Capture) -> Mode:
    """Return what the camera reports now."""
    rate = capture.get(FPS)
    code = int(capture.get(FOURCC)) & 0xFFFFFFFF
    letters = code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ")
    return Mode(
        (int(capture.get(WIDTH)), int(capture.get(HEIGHT))),
        # Drivers tell 29.97 as a float; 1001 finds the fraction behind it.
        Fraction(rate).limit_denominator(1001) if 0 < rate < 10_000 else None,
        letters if letters.isprintable() and letters else "unknown format",
    )


def _better(mjpg: Mode, raw: Mode, fps: float | None) -> bool:
    area = mjpg.size_wh[0] * mjpg.size_wh[1] - raw.size_wh[0] * raw.size_wh[1]
    if area:
        return area > 0
    raw_hz = raw.rate_hz or Fraction(0)
    if fps is not None and raw_hz >= Fraction(fps):
        return False  # raw is fast enough, and has no compression losses
    return (mjpg.rate_hz or Fraction(0)) > raw_hz
