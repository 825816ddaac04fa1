"""What masks and class maps are made from: prototypes, patches, whole planes; cut to pixels late.

Every source keeps the graph's own numbers and makes pixels of the original picture only when asked,
only inside each detection's own rectangle. A pixel is judged at its centre. Values of one thread;
cv2 is imported when the first mask is cut, since descriptions of decoders must stay cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.detections import Mask
from pipeline.errors import ModelError
from pipeline.geometry import F32, Letterbox
from stages.decoders.decoder import I64, U8, MapSource, MaskSource

_HALF = np.float32(0.5)


@dataclass(frozen=True, slots=True, eq=False)
class PrototypeMasks(MaskSource):
    """YOLACT's idea: each mask is a weighted sum of shared prototypes, cut off by its box.

    Belongs to the instance where sigmoid(coefficients @ prototypes) > 0.5, which is where the sum
    is positive. The sum is enlarged by bilinear interpolation before it is compared, so edges are
    smooth.
    """

    coefficients: F32
    """(n, m) float32."""
    prototypes: F32
    """(m, h, w) float32, spread over the model's input."""

    def take(self, rows: I64) -> PrototypeMasks:
        """Return the source of the chosen rows."""
        return PrototypeMasks(self.coefficients[rows], self.prototypes)

    def cut(self, letterbox: Letterbox, xyxy: F32) -> tuple[Mask, ...]:
        """Return one mask for each row, cut off at its box; see `MaskSource.cut`."""
        count, height, width = self.prototypes.shape
        masks = []
        for weights, (x1, y1, x2, y2) in zip(
            self.coefficients, _inside(xyxy, letterbox.source_wh), strict=True
        ):
            # Only the prototypes' cells under the box, and one more on each side to interpolate.
            left, right = _cells(x1, x2, letterbox, 0, width)
            top, bottom = _cells(y1, y2, letterbox, 1, height)
            part = self.prototypes[:, top:bottom, left:right]
            with np.errstate(invalid="ignore", over="ignore"):  # told below
                total = (weights @ part.reshape(count, -1)).reshape(part.shape[1:])
            _check_finite(total)
            values = _enlarge(
                total, letterbox, (x1, y1, x2, y2), cells_wh=(width, height), offset=(left, top)
            )
            masks.append(Mask(x1, y1, values > 0))
        return tuple(masks)


@dataclass(frozen=True, slots=True, eq=False)
class PatchMasks(MaskSource):
    """Mask R-CNN's patches: one small square of probabilities for each box, stretched over it.

    Pasted as torchvision does it (`paste_masks_in_image`): a border of one empty cell is added, the
    box grows with it, is cut to whole pixels, and the patch is enlarged over it. So a mask may
    reach a pixel out of its box.
    """

    patches: F32
    """(n, h, w) float32 in 0..1."""
    xyxy: F32
    """(n, 4) float32, the boxes in model pixels, not clipped: a patch belongs to its whole box."""

    def take(self, rows: I64) -> PatchMasks:
        """Return the source of the chosen rows."""
        return PatchMasks(self.patches[rows], self.xyxy[rows])

    def cut(self, letterbox: Letterbox, xyxy: F32) -> tuple[Mask, ...]:  # noqa: ARG002 - one signature
        """Return one mask for each row, cut off at the picture; see `MaskSource.cut`."""
        import cv2

        _check_finite(self.patches)
        padded = np.pad(self.patches, ((0, 0), (1, 1), (1, 1)))
        corners = letterbox.points_to_source(self.xyxy.reshape(-1, 2, 2))
        centre, half = corners.mean(axis=1), (corners[:, 1] - corners[:, 0]) * _HALF
        cells = np.array(self.patches.shape[:0:-1], np.float32)
        half *= (cells + 2) / cells
        # Towards zero, as torch converts to whole numbers.
        whole = np.concatenate((centre - half, centre + half), axis=1).astype(np.int64)
        width, height = letterbox.source_wh
        masks = []
        for patch, (x1, y1, x2, y2) in zip(padded, whole.tolist(), strict=True):
            full_wh = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
            left, top = max(x1, 0), max(y1, 0)
            right, bottom = min(x2 + 1, width), min(y2 + 1, height)
            if left >= right or top >= bottom:
                masks.append(Mask(0, 0, np.zeros((0, 0), np.bool_)))
                continue
            # Only the part inside the picture: a box may reach far out of it.
            scale = np.array(patch.shape[::-1]) / full_wh
            shift = scale * (np.array([left - x1, top - y1]) + 0.5) - 0.5
            matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
            values = cv2.warpAffine(
                patch,
                matrix,
                (right - left, bottom - top),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            masks.append(Mask(left, top, values > _HALF))
        return tuple(masks)


@dataclass(frozen=True, slots=True, eq=False)
class PlaneMasks(MaskSource):
    """Masks that the graph has already pasted into planes as large as its input."""

    planes: F32
    """(n, h, w) float32 in 0..1, spread over the model's input."""

    def take(self, rows: I64) -> PlaneMasks:
        """Return the source of the chosen rows."""
        return PlaneMasks(self.planes[rows])

    def cut(self, letterbox: Letterbox, xyxy: F32) -> tuple[Mask, ...]:
        """Return one mask for each row, cut off at its box; see `MaskSource.cut`."""
        height, width = self.planes.shape[1:]
        masks = []
        for plane, box in zip(self.planes, _inside(xyxy, letterbox.source_wh), strict=True):
            values = _enlarge(plane, letterbox, box, cells_wh=(width, height))
            _check_finite(values)
            masks.append(Mask(box[0], box[1], values > _HALF))
        return tuple(masks)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMap(MapSource):
    """Semantic segmentation: a plane of scores for each class; the best class wins.

    The scores are enlarged by bilinear interpolation before they are compared, so borders are
    smooth. Only classes that win somewhere in the graph's own resolution take part: most of a
    data set's classes are not in a picture.
    """

    scores: F32
    """(c, h, w) float32, spread over the model's input; c at most 256."""

    def paint(self, letterbox: Letterbox) -> U8:
        """Return the class of each pixel of the original picture; see `MapSource.paint`."""
        import cv2

        height, width = self.scores.shape[1:]
        box = (0, 0, *letterbox.source_wh)
        winners = self.scores.argmax(axis=0)
        present = np.unique(_seen(winners, letterbox)).tolist()
        painted = np.full(letterbox.source_wh[::-1], present[0], np.uint8)
        if len(present) == 1:
            return painted
        best: F32 | None = None
        for class_id in present:
            values = _enlarge(self.scores[class_id], letterbox, box, cells_wh=(width, height))
            if best is None:
                best = values
                continue
            # Equal scores stay with the lower class id, as argmax has it.
            better = cv2.compare(values, best, cv2.CMP_GT)
            painted[better != 0] = class_id
            best = cv2.max(values, best, best)
        return painted

    def lead(self, letterbox: Letterbox, class_id: U8) -> F32:
        """Return each pixel's score minus that of the class given there; see `MapSource.lead`."""
        height, width = self.scores.shape[1:]
        box = (0, 0, *letterbox.source_wh)
        painted = self.paint(letterbox)
        ahead = np.zeros(painted.shape, np.float32)
        for one in np.union1d(painted, class_id).tolist():
            values = _enlarge(self.scores[one], letterbox, box, cells_wh=(width, height))
            np.add(ahead, values, out=ahead, where=painted == one)
            np.subtract(ahead, values, out=ahead, where=class_id == one)
        return ahead


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdMap(MapSource):
    """Segmentation into class 1 and the rest, by one plane: class 1 is above the threshold."""

    plane: F32
    """(h, w) float32, spread over the model's input."""
    threshold: float

    def paint(self, letterbox: Letterbox) -> U8:
        """Return 1 where the plane is above the threshold, else 0; see `MapSource.paint`."""
        height, width = self.plane.shape
        box = (0, 0, *letterbox.source_wh)
        values = _enlarge(self.plane, letterbox, box, cells_wh=(width, height))
        return (values > np.float32(self.threshold)).view(np.uint8)

    def lead(self, letterbox: Letterbox, class_id: U8) -> F32:
        """Return how far the plane is from the threshold where the other class is given, else 0."""
        height, width = self.plane.shape
        box = (0, 0, *letterbox.source_wh)
        values = _enlarge(self.plane, letterbox, box, cells_wh=(width, height))
        ahead: F32 = np.abs(values - np.float32(self.threshold))
        ahead[self.paint(letterbox) == class_id] = 0
        return ahead


def _check_finite(values: F32) -> None:
    """Refuse NaN, which is below every threshold and would make an empty mask."""
    if not np.isfinite(values).all():
        raise ModelError("masks are not finite: the graph went wrong on this picture")


def _inside(xyxy: F32, source_wh: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Return the pixels whose centres lie in each box, at least one, inside the picture."""
    width, height = source_wh
    whole = np.ceil(xyxy.astype(np.float64) - 0.5).astype(np.int64)
    rows = []
    for x1, y1, x2, y2 in whole.tolist():
        left, top = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
        rows.append((left, top, max(min(x2, width), left + 1), max(min(y2, height), top + 1)))
    return rows


def _axis(letterbox: Letterbox, axis: int, cells: int) -> tuple[float, float]:
    """Return scale and shift from pixel number to cell number along x (axis 0) or y (1)."""
    step = cells / letterbox.model_wh[axis]
    scale = letterbox.scale_xy[axis] * step
    # Centres: pixel k lies at k + 0.5, and so do cells.
    return scale, scale * 0.5 + letterbox.pad_xy[axis] * step - 0.5


def _cells(first: int, last: int, letterbox: Letterbox, axis: int, cells: int) -> tuple[int, int]:
    """Return the cells needed to interpolate pixels `first`..`last` - 1 along an axis."""
    scale, shift = _axis(letterbox, axis, cells)
    low = int(np.floor(first * scale + shift)) - 1
    high = int(np.floor((last - 1) * scale + shift)) + 3
    low = min(max(low, 0), cells - 1)
    return low, min(max(high, low + 1), cells)


def _enlarge(
    plane: F32,
    letterbox: Letterbox,
    box: tuple[int, int, int, int],
    *,
    cells_wh: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
) -> F32:
    """Return the plane's values at the pixels of `box`, interpolated between cell centres.

    Args:
        plane: (h, w) float32: the cells from `offset` on, out of `cells_wh` over the model's input.
        letterbox: How the picture was fitted into the model's input.
        box: Left, top, right, bottom in whole pixels of the original picture.
        cells_wh: How many cells the whole input has.
        offset: The column and row of the plane's first cell.
    """
    import cv2

    x1, y1, x2, y2 = box
    (ax, bx), (ay, by) = (_axis(letterbox, axis, cells_wh[axis]) for axis in (0, 1))
    matrix = np.array([[ax, 0, ax * x1 + bx - offset[0]], [0, ay, ay * y1 + by - offset[1]]])
    values: F32 = cv2.warpAffine(
        np.ascontiguousarray(plane, np.float32),
        matrix,
        (x2 - x1, y2 - y1),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return values


def _seen(winners: I64, letterbox: Letterbox) -> I64:
    """Return the cells that pixels of the picture are made of; the rest is padding."""
    height, width = winners.shape
    left, right = _cells(0, letterbox.source_wh[0], letterbox, 0, width)
    top, bottom = _cells(0, letterbox.source_wh[1], letterbox, 1, height)
    return winners[top:bottom, left:right]
