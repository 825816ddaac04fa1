"""The plate in the corner of synthetic frames: the frame number, for people and for programs.

Below the digits stand two rows of black and white cells: a white and a black reference, then 32
bits, most significant first: 24 of the number and 8 of a checksum. The cells are large enough to
survive video encoding; whoever compares boxes with frames reads them back with `read_frame_number`.
"""

from __future__ import annotations

import zlib
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

NUMBER_BITS: Final = 24
"""Numbers are drawn and read modulo 2 ** 24 (a week at 27 frames per second)."""
_COLUMNS, _ROWS = 17, 2
_MIN_CONTRAST: Final = 60
"""Gray levels between the two references; less means no plate, or one painted over."""


def _cell(size_wh: tuple[int, int]) -> int:
    """Side of a cell: 12 px at 720p, at least 4 px."""
    return max(4, min(size_wh[1] // 60, size_wh[0] // 30))


def _origin(size_wh: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the cells: bottom left, one cell from the edges."""
    cell = _cell(size_wh)
    return cell, size_wh[1] - cell * (_ROWS + 1)


def _bits(number: int) -> list[int]:
    number %= 1 << NUMBER_BITS
    word = number << 8 | zlib.crc32(number.to_bytes(3, "big")) & 0xFF
    return [word >> place & 1 for place in range(31, -1, -1)]


class Plate:
    """Draws the plate for one picture size."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self._cell = _cell(size_wh)
        self._left, self._top = _origin(size_wh)
        height, width = size_wh[1], size_wh[0]
        self._text_height = self._cell * 2
        top = max(0, self._top - self._text_height - self._cell)
        right = min(width, self._left + self._cell * (_COLUMNS + 1))
        self.area = slice(top, height), slice(0, right)
        """Rows and columns that the plate covers."""

    def draw(self, image: U8, number: int) -> None:
        """Paint the plate with `number` over the corner of `image` (h, w, 3), in place."""
        cell = self._cell
        rows, columns = self.area
        plate = image[rows, columns]
        plate[:] = 24
        cells = np.zeros((_ROWS, _COLUMNS), np.uint8)
        cells[0, 0] = 255
        cells[:, 1:] = np.array(_bits(number), np.uint8).reshape(_ROWS, 16) * 255
        grown = cells.repeat(cell, axis=0).repeat(cell, axis=1)
        top = self._top - rows.start
        plate[top : top + grown.shape[0], self._left : self._left + grown.shape[1]] = grown[
            ..., None
        ]
        text = f"frame {number:07d}"
        font = cv2.FONT_HERSHEY_SIMPLEX
        (wide, high), _ = cv2.getTextSize(text, font, 1.0, 1)
        room = cell * (_COLUMNS - 1)
        scale = min(self._text_height * 0.75 / high, room / wide)
        cv2.putText(
            plate,
            text,
            (self._left, top - cell // 2),
            font,
            scale,
            (235, 235, 235),
            max(1, round(cell / 7)),
            cv2.LINE_AA,
        )


def read_frame_number(image: U8) -> int | None:
    """Read the number back from a picture of the size it was drawn in.

    Args:
        image: (h, w, 3) or (h, w) uint8; may have been encoded and decoded.

    Returns:
        The number modulo 2 ** 24, or None where no plate is found or its checksum is wrong.
    """
    height, width = image.shape[:2]
    cell = _cell((width, height))
    left, top = _origin((width, height))
    if top < 0 or left + cell * _COLUMNS > width:
        return None
    gray = image if image.ndim == 2 else image.mean(axis=2)
    block = gray[top : top + cell * _ROWS, left : left + cell * _COLUMNS]
    block = block.reshape(_ROWS, cell, _COLUMNS, cell)
    # Without the cells' rims, where the codec mixes neighbours.
    rim = max(1, cell // 4)
    levels = block[:, rim : cell - rim, :, rim : cell - rim].mean(axis=(1, 3))
    white, black = float(levels[0, 0]), float(levels[1, 0])
    if white - black < _MIN_CONTRAST:
        return None
    bits = (levels[:, 1:] > (white + black) / 2).reshape(-1).tolist()
    number = int("".join("1" if bit else "0" for bit in bits[:NUMBER_BITS]), 2)
    return number if _bits(number) == [int(bit) for bit in bits] else None
