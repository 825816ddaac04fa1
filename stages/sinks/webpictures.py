"""The newest picture of each stream, as JPEG, encoded when someone asks and once for all.

The sink's thread calls `show`; the server's thread calls the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2

from pipeline.frame import Frame


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded frame."""

    frame: Frame
    jpeg: bytes


class Pictures:
    """Keeps one frame and one JPEG a stream, no more.

    Args:
        quality: of the JPEG, 1..100.
        max_width: pixels; wider frames are scaled down. None for no limit.
    """

    def __init__(self, quality: int, max_width: int | None) -> None:
        self._quality = quality
        self._max_width = max_width
        self._newest: dict[str, Frame] = {}
        self._encoded: dict[str, Picture] = {}
        self.encoded = 0

    def show(self, frame: Frame) -> None:
        """Take the stream's newest frame; its array is shared and not written. Any thread."""
        self._newest[frame.id.stream] = frame

    def streams(self) -> list[str]:
        """Return the streams that have shown a frame."""
        return list(self._newest)

    def is_new(self, stream: str, seen: Picture | None) -> bool:
        """Return whether there is a frame that is not in `seen`."""
        frame = self._newest.get(stream)
        return frame is not None and (seen is None or frame is not seen.frame)

    def take(self, stream: str) -> Picture | None:
        """Return the newest picture; None before the stream's first frame."""
        frame = self._newest.get(stream)
        if frame is None:
            return None
        picture = self._encoded.get(stream)
        if picture is None or picture.frame is not frame:
            picture = self._encoded[stream] = Picture(frame, self._encode(frame))
            self.encoded += 1
        return picture

    def _encode(self, frame: Frame) -> bytes:
        image = frame.image
        width, height = frame.size_wh
        if self._max_width is not None and width > self._max_width:
            size_wh = self._max_width, max(1, round(height * self._max_width / width))
            image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not done:
            raise ValueError(f"OpenCV could not encode the {width}x{height} picture as JPEG")
        return bytes(data)
