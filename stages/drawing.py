"""How the overlay looks: pixels only. Boxes, labels, masks, legend and captions on a BGR picture.

Knows nothing of configuration or of frames; `stages.overlay` decides what is drawn. Imports cv2, so
it is imported when the overlay opens. A `Canvas` belongs to one thread; the functions are pure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detections import F32, Mask

U8 = NDArray[np.uint8]
Color = tuple[int, int, int]
"""BGR, 0..255."""
Edges = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom are outside."""

# Twenty colours chosen for distance in OKLab (lightness weighted 0.8): at least 0.21 between any
# two of the first 6, 0.13 of the first 10, 0.08 of all. None is dark or gray: a dark rim fits all.
_PALETTE_RGB: Final = (
    0xFF4B4B, 0x30E050, 0x2F86FF, 0xE14BFF, 0xFFC33C, 0x5AE8FF, 0x8C9B1E, 0xFFA5E6, 0x00A5B4,
    0xFF1E9B, 0x96A5FF, 0xC87D32, 0x78D28C, 0x8755FF, 0xFF9B82, 0xC8F03C, 0x0FAA32, 0xAF64A0,
    0xCD82FF, 0xFFEB78,
)  # fmt: skip
# Shade of the palette's second, third... turn: part of the way to white (positive) or black.
_TURNS: Final = (0.0, 0.45, -0.35)
_RIM: Final[Color] = (20, 20, 20)
_WHITE: Final[Color] = (255, 255, 255)
_BLACK: Final[Color] = (0, 0, 0)

# Text sizes are FontFace pixels: capitals are 0.8 of it high, accents reach 1.0, descenders 0.25
# (OpenCV 5.0's 'sans', measured). So this line height and baseline centre a line of capitals.
_LINE_HEIGHT: Final = 1.3
_BASELINE: Final = 1.02
_WEIGHT: Final = 500
# Nobody reads further, and measuring text takes time in proportion to its length.
_MAX_LABEL_CHARS: Final = 200
_MAX_CAPTION_CHARS: Final = 1000
_MAX_CAPTION_LINES: Final = 3
_PANEL_LIGHT: Final = 0.35
"""What the translucent panel behind header and captions leaves of the picture's light."""


def auto_line_px(size_wh: tuple[int, int]) -> int:
    """Return the line thickness that suits a picture: 2 px up to 720p, 3 at 1080p, 6 at 2160p."""
    # One pixel of colour between two of rim reads as black, so it is left to thumbnails.
    return max(2 if min(size_wh) >= 160 else 1, round(min(size_wh) / 360))


def auto_text_px(size_wh: tuple[int, int]) -> int:
    """Return the text size that suits a picture: 16 px at 720p, 48 at 2160p, never below 11."""
    return max(11, round(min(size_wh) / 45))


@lru_cache(maxsize=4096)
def color_of(class_id: int) -> Color:
    """Return the BGR colour of a class: the same in every run, far from those of its neighbours."""
    turn, index = divmod(class_id, len(_PALETTE_RGB))
    rgb = _PALETTE_RGB[index]
    shade = _TURNS[turn % len(_TURNS)]
    goal = 255 if shade > 0 else 0
    parts = [c + (goal - c) * abs(shade) for c in (rgb & 255, rgb >> 8 & 255, rgb >> 16)]
    return round(parts[0]), round(parts[1]), round(parts[2])


@lru_cache(maxsize=4096)
def ink_on(color: Color) -> Color:
    """Return black or white, whichever contrasts more with `color` (WCAG 2 relative luminance)."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in color]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # (L + 0.05) / 0.05 = 1.05 / (L + 0.05) at L = 0.179: there both contrasts are equal.
    return _BLACK if luminance > 0.179 else _WHITE


def printable(text: str) -> str:
    """Return `text` on one line, without what cannot be drawn.

    An unpaired surrogate crashes the process in cv2.putText and a NUL ends the text there (OpenCV
    5.0.0); control and joining characters would show as question marks.
    """
    if text.isascii() and text.isprintable():
        return text
    # Composed form: the font has no separate jamo or accents to put together.
    text = unicodedata.normalize("NFC", text)
    text = " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in text if c.isprintable())


def pixel_edges(xyxy: F32, size_wh: tuple[int, int]) -> list[Edges | None]:
    """Return each box clipped to the picture in whole pixels, at least one wide and high.

    Args:
        xyxy: (n, 4) float32, finite, pixels of the picture; may reach out of it.
        size_wh: The picture.

    Returns:
        n entries; None for a box without area inside the picture.
    """
    limit = np.array([*size_wh, *size_wh], np.float32)
    clipped = np.clip(xyxy, 0, limit)
    seen = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    whole = np.floor(clipped + 0.5).astype(np.int64)
    np.minimum(whole[:, :2], limit[:2].astype(np.int64) - 1, out=whole[:, :2])
    np.maximum(whole[:, 2:], whole[:, :2] + 1, out=whole[:, 2:])
    return [
        (row[0], row[1], row[2], row[3]) if inside else None
        for row, inside in zip(whole.tolist(), seen.tolist(), strict=True)
    ]


class Canvas:
    """One picture being drawn on: remembers where text stands, so that labels keep off each other.

    Draw in this order: masks, boxes, then `legend`, then `panel` for header and captions, then
    labels.
    """

    def __init__(self, image: U8, font: cv2.FontFace, *, line_px: int, text_px: int) -> None:
        self.image = image
        """(h, w, 3) uint8 BGR, C-contiguous; written in place."""
        self.height, self.width = image.shape[:2]
        self._font = font
        self._line_px = line_px
        self._rim_px = max(1, round(line_px / 3))
        self._text_px = text_px
        self._label_height = round(text_px * _LINE_HEIGHT) + 2 * self._rim_px
        self.has_room = self.height >= 2 * self._label_height and self.width >= 4 * text_px
        """False for a picture too small for text of this size: labels and panels draw nothing."""
        # Taken ground in cells of a quarter of the text's height: testing a place costs the same
        # for 10 labels and for 1000.
        self._cell = max(2, text_px // 4)
        self._taken = np.zeros(
            (self.height // self._cell + 1, self.width // self._cell + 1), np.uint8
        )

    def mask(self, mask: Mask, color: Color, opacity: float) -> None:
        """Tint the pixels of one instance, whatever of it lies inside the picture."""
        height, width = mask.bits.shape
        x1, y1 = max(mask.x, 0), max(mask.y, 0)
        x2, y2 = min(mask.x + width, self.width), min(mask.y + height, self.height)
        if x1 >= x2 or y1 >= y2:
            return
        bits = mask.bits[y1 - mask.y : y2 - mask.y, x1 - mask.x : x2 - mask.x]
        region = self.image[y1:y2, x1:x2]
        # One table look-up blends all three channels in one pass over the instance's own rectangle.
        tinted = cv2.LUT(region, _tint(color, opacity))
        cv2.copyTo(tinted, np.ascontiguousarray(bits).view(np.uint8), region)

    def box(self, edges: Edges, color: Color) -> None:
        """Draw a frame centred on `edges`, with a dark rim on both sides, inside the picture."""
        left, top, right, bottom = edges
        line = self.line_px_in(edges)
        rim = min(self._rim_px, line)
        outside = line // 2
        left, top = max(left - outside, 0), max(top - outside, 0)
        right, bottom = min(right + outside, self.width), min(bottom + outside, self.height)
        # Rings of one pixel from the outside in: exact edges, sharp corners, and half the time of
        # filled bars or of thick lines, which cv2 draws as polygons with round ends.
        for inset in range(-rim, line + rim):
            ring = color if 0 <= inset < line else _RIM
            start, end = (left + inset, top + inset), (right - 1 - inset, bottom - 1 - inset)
            if end[0] >= start[0] and end[1] >= start[1]:
                cv2.rectangle(self.image, start, end, ring, 1)

    def line_px_in(self, edges: Edges) -> int:
        """Return the line thickness for a box: a thick line would fill a small object."""
        left, top, right, bottom = edges
        return min(self._line_px, max(1, min(right - left, bottom - top) // 8))

    def legend(self, entries: Sequence[tuple[str, Color]]) -> None:
        """Write names with squares of their colours on a darkened panel at the top right.

        What does not fit the picture's height is summed up in a last line, `+ 3 more`.
        """
        if not self.has_room or not entries:
            return
        size = self._text_px
        pad, step = max(3, size // 2), round(size * _LINE_HEIGHT)
        most = max((self.height - pad) // step, 1)
        rows = [(printable(name[:_MAX_LABEL_CHARS]), color) for name, color in entries[:most]]
        if len(entries) > most:
            rows[-1] = (f"+ {len(entries) - most + 1} more", _RIM)
        inset = 2 * pad + size
        room = self.width // 2 - inset
        texts = [self.fit(text, room) for text, _ in rows]
        width = min(max(self._measure(text, size) for text in texts) + inset, self.width)
        height = min(step * len(rows) + pad, self.height)
        x = self.width - width
        region = self.image[:height, x:]
        region[...] = cv2.convertScaleAbs(region, alpha=_PANEL_LIGHT)
        self._take(x, 0, width, height)
        side = round(size * 0.8)
        for row, (text, (_, color)) in enumerate(zip(texts, rows, strict=True)):
            top = pad // 2 + row * step
            inside = top + (step - side) // 2
            self._fill(x + pad // 2, inside, x + pad // 2 + side, inside + side, color)
            self._text(text, x + pad + size, top, size, _WHITE)

    def label(self, edges: Edges, text: str, color: Color, tail: str = "") -> bool:
        """Write `text` and `tail` at a box, where they cover no other text if there is a place.

        A long text is shortened to half the picture's width; the tail (a score) always stays.

        Returns:
            False when the picture is too small for text.
        """
        if not self.has_room:
            return False
        rim, pad, size = self._rim_px, max(2, self._text_px // 4), self._text_px
        text = printable(text[:_MAX_LABEL_CHARS])
        room = min(max(self.width // 2, 12 * size), self.width) - 2 * (rim + pad)
        whole = (text + tail).strip()
        inked = self._measure(whole, size)
        if inked > room:
            whole = self.fit(text, room - self._measure(tail, size)) + tail
            inked = min(self._measure(whole, size), self.width - 2 * (rim + pad))
        if not whole:
            return True
        width, height = inked + 2 * (rim + pad), self._label_height
        x, y = self._place(edges, width, height)
        self._fill(x, y, x + width, y + height, _RIM)
        self._fill(x + rim, y + rim, x + width - rim, y + height - rim, color)
        self._text(whole, x + rim + pad, y + rim, size, ink_on(color))
        return True

    def panel(self, lines: Sequence[str], at: Literal["top", "bottom"]) -> None:
        """Write white lines on a darkened panel, at the top left or centred at the bottom."""
        if not self.has_room or not lines:
            return
        size = self._text_px
        pad = max(3, size // 2)
        step = round(size * _LINE_HEIGHT)
        widths = [self._measure(line, size) for line in lines]
        width = min(max(widths) + 2 * pad, self.width)
        height = min(step * len(lines) + pad, self.height)
        x = 0 if at == "top" else (self.width - width) // 2
        y = 0 if at == "top" else max(self.height - height - pad, 0)
        region = self.image[y : y + height, x : x + width]
        region[...] = cv2.convertScaleAbs(region, alpha=_PANEL_LIGHT)
        self._take(x, y, width, height)
        for row, line in enumerate(lines):
            inset = pad if at == "top" else (width - widths[row]) // 2
            self._text(line, x + inset, y + pad // 2 + row * step, size, _WHITE)

    def pack(self, parts: Sequence[str]) -> list[str]:
        """Return the header's parts side by side, on as many lines as the width asks for."""
        room = self.width - 2 * max(3, self._text_px // 2)
        lines: list[str] = []
        for part in parts:
            part = self.fit(printable(part[:_MAX_LABEL_CHARS]), room)
            joined = f"{lines[-1]}   {part}" if lines else part
            if lines and self._measure(joined, self._text_px) <= room:
                lines[-1] = joined
            else:
                lines.append(part)
        return lines

    def wrap(self, text: str) -> list[str]:
        """Return a caption broken into at most three lines of 90 % of the width.

        Lines break between words; words wider than a line (and scripts without spaces) break
        anywhere. What does not fit ends in an ellipsis.
        """
        room = round(self.width * 0.9)
        rest = printable(text[:_MAX_CAPTION_CHARS]).strip()
        lines: list[str] = []
        while rest and len(lines) < _MAX_CAPTION_LINES - 1:
            count = self._longest(rest, room)
            if count < len(rest):
                space = rest.rfind(" ", 0, count + 1)
                count = space if space > 0 else count
            lines.append(rest[:count].rstrip())
            rest = rest[count:].lstrip()
        return [*lines, self.fit(rest, room)] if rest else lines

    def fit(self, text: str, room: int) -> str:
        """Return `text`, or as much of its beginning as fits `room` pixels with an ellipsis."""
        if self._measure(text, self._text_px) <= room:
            return text
        ellipsis = "…"
        count = self._longest(text, room - self._measure(ellipsis, self._text_px))
        return text[:count].rstrip() + ellipsis

    def _longest(self, text: str, room: int) -> int:
        """Return how many characters of `text` fit `room` pixels; at least one."""
        low, high = 1, max(len(text), 1)
        while low < high:
            middle = (low + high + 1) // 2
            if self._measure(text[:middle], self._text_px) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def _place(self, edges: Edges, width: int, height: int) -> tuple[int, int]:
        """Choose a free place for a label of this size, mark it taken, and return its top left."""
        left, top, right, bottom = edges
        outside = self._line_px // 2
        # The frame itself stays inside the picture, so its label joins it there.
        left, top = max(left - outside, 0), max(top - outside, 0)
        right, bottom = right + outside, bottom + outside
        most_x, most_y = self.width - width, self.height - height
        # Above first: it hides nothing of the object. Inside before below, where it is better tied
        # to its own box in a crowd.
        places = (
            (left, top - height),
            (right - width, top - height),
            (left, top),
            (left, bottom),
            (left, bottom - height),
            (right - width, top),
        )
        best, least = (min(max(left, 0), most_x), min(max(top, 0), most_y)), self._taken.size + 1
        for x, y in places:
            if y < 0 or y > most_y:
                continue
            x = min(max(x, 0), most_x)
            covered = self._covered(x, y, width, height)
            if covered < least:
                best, least = (x, y), covered
            if covered == 0:
                break
        self._take(*best, width, height)
        return best

    def _cells(self, x: int, y: int, width: int, height: int) -> U8:
        c = self._cell
        return self._taken[y // c : -(-(y + height) // c), x // c : -(-(x + width) // c)]

    def _covered(self, x: int, y: int, width: int, height: int) -> int:
        return int(np.count_nonzero(self._cells(x, y, width, height)))

    def _take(self, x: int, y: int, width: int, height: int) -> None:
        self._cells(x, y, width, height)[...] = 1

    def _fill(self, left: int, top: int, right: int, bottom: int, color: Color) -> None:
        cv2.rectangle(self.image, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)

    def _measure(self, text: str, size: int) -> int:
        rectangle = cv2.getTextSize((0, 0), text, (0, 0), self._font, size, _WEIGHT)
        return int(rectangle[2])

    def _text(self, text: str, x: int, top: int, size: int, color: Color) -> None:
        origin = (x, top + round(size * _BASELINE))
        cv2.putText(self.image, text, origin, color, self._font, size, _WEIGHT)


def font() -> cv2.FontFace:
    """Return the font built into OpenCV 5.

    It has Latin, Greek, Cyrillic, Korean, Chinese and Japanese; what it lacks is drawn as `?`.
    """
    return cv2.FontFace("sans")


@lru_cache(maxsize=256)
def _tint(color: Color, opacity: float) -> U8:
    """Return the (1, 256, 3) table that maps a channel's value to its blend with `color`."""
    values = np.arange(256, dtype=np.float32)[None, :, None]
    goal = np.array(color, np.float32)[None, None, :]
    return np.rint(values * (1 - opacity) + goal * opacity).astype(np.uint8)
