"""One frame's results as one line of JSON, and the hash over all of them.

The format is the product's (docs: JSONL): every key in a fixed order, keys that do not apply left
out, coordinates rounded to 0.01 px and scores to 0.0001, so that equal results are equal bytes. No
file path and no wall time enters a line. Pure; safe from any thread, except that one
`DetectionsHash` belongs to one thread.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.detections import Detections, Mask
from pipeline.frame import Frame, Segmentation

PIXEL_DIGITS: Final = 2
SCORE_DIGITS: Final = 4
SHARE_DIGITS: Final = 4

# 5 bits a character; 64-bit numbers need at most 13 of them.
_MAX_CHARACTERS: Final = 13


def frame_record(frame: Frame) -> dict[str, object]:
    """Return the JSON object of one frame."""
    time = frame.time
    record: dict[str, object] = {
        "stream": frame.id.stream,
        "epoch": frame.id.epoch,
        "seq": frame.id.seq,
    }
    if time.pts is not None:
        record["pts"] = time.pts
        record["time_base"] = f"{time.time_base.numerator}/{time.time_base.denominator}"
        record["time_s"] = float(time.pts * time.time_base)
    if frame.detections is not None:
        record["detections"] = _detection_records(frame.detections, frame.size_wh)
    if frame.segmentation is not None:
        record["segmentation"] = _shares(frame.segmentation)
    if events := frame.meta.get("events"):
        record["events"] = events
    if frame.captions:
        record["captions"] = [caption.text for caption in frame.captions]
    return record


def record_line(frame: Frame) -> str:
    """Return `frame_record` as one line of JSON, without the line break."""
    return json.dumps(frame_record(frame), ensure_ascii=False, separators=(", ", ": "))


class DetectionsHash:
    """sha256 over the JSONL lines (UTF-8, each with its line break), in the order of adding.

    With several streams, whose frames interleave differently in every run: over one line
    `NAME HASH` a stream, by name, each HASH over that stream's lines alone.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib._Hash] = {}
        self.frames = 0
        """Lines added so far."""

    def add(self, frame: Frame) -> None:
        """Append the frame's line."""
        stream = frame.id.stream
        if stream not in self._hashes:
            self._hashes[stream] = hashlib.sha256()
        self._hashes[stream].update(record_line(frame).encode() + b"\n")
        self.frames += 1

    def hexdigest(self) -> str:
        """Return the hash of all lines so far; of one stream, `sha256sum` of the JSONL file."""
        if len(self._hashes) == 1:
            return next(iter(self._hashes.values())).hexdigest()
        lines = [f"{name} {self._hashes[name].hexdigest()}\n" for name in sorted(self._hashes)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _detection_records(detections: Detections, size_wh: tuple[int, int]) -> list[dict[str, object]]:
    # + 0.0 turns -0.0 into 0.0: equal numbers must be equal bytes.
    boxes = (np.round(detections.xyxy.astype(np.float64), PIXEL_DIGITS) + 0.0).tolist()
    scores = (np.round(detections.score.astype(np.float64), SCORE_DIGITS) + 0.0).tolist()
    classes = detections.class_id.tolist()
    tracks = None if detections.track_id is None else detections.track_id.tolist()
    records: list[dict[str, object]] = []
    for row, (box, score, class_id) in enumerate(zip(boxes, scores, classes, strict=True)):
        record: dict[str, object] = {
            "xyxy": box,
            "score": score,
            "class_id": class_id,
            "class_name": detections.class_names[class_id],
        }
        if tracks is not None and tracks[row] >= 0:
            record["track_id"] = tracks[row]
        if detections.keypoints is not None:
            points = detections.keypoints[row].astype(np.float64)
            xy = np.round(points[:, :2], PIXEL_DIGITS) + 0.0
            visible = np.round(points[:, 2:], SCORE_DIGITS) + 0.0
            record["keypoints"] = np.concatenate([xy, visible], axis=1).tolist()
        if detections.masks is not None:
            width, height = size_wh
            counts = rle_string(rle_counts(detections.masks[row], size_wh))
            record["mask"] = {"size": [height, width], "counts": counts}
        records.append(record)
    return records


def _shares(found: Segmentation) -> dict[str, float]:
    """Return the share of the picture's pixels by class name, of classes that are present."""
    shares: dict[str, float] = {}
    for class_id, share in found.shares().items():
        name = found.class_names[class_id]
        shares[name] = shares.get(name, 0.0) + share
    return {name: round(share, SHARE_DIGITS) for name, share in shares.items()}


def rle_counts(mask: Mask, size_wh: tuple[int, int]) -> NDArray[np.int64]:
    """Return COCO's run lengths of a mask in its full picture, without making that picture.

    Args:
        mask: Parts of it outside the picture are cut off.
        size_wh: The picture, pixels.

    Returns:
        (k,) int64: lengths of alternating runs of zeros and ones, zeros first (0 where the first
        pixel is set), columns top to bottom and left to right; they sum to width * height.
    """
    width, height = size_wh
    left, top = max(0, -mask.x), max(0, -mask.y)
    right, bottom = max(left, width - mask.x), max(top, height - mask.y)
    bits = mask.bits[top:bottom, left:right]
    # One row per picture column, a zero at both ends: each run has a start and an end.
    columns = np.zeros((bits.shape[1], bits.shape[0] + 2), np.int8)
    columns[:, 1:-1] = bits.T
    steps = np.diff(columns, axis=1)
    base_x, base_y = mask.x + left, mask.y + top
    column, row = np.nonzero(steps == 1)
    starts = (column + base_x) * height + row + base_y
    column, row = np.nonzero(steps == -1)
    ends = (column + base_x) * height + row + base_y
    # A run that reaches the bottom goes on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    if len(starts):
        starts = starts[np.concatenate([[True], apart])]
        ends = ends[np.concatenate([apart, [True]])]
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = 0, width * height
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    # No empty run of zeros at the end.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def rle_string(counts: NDArray[np.int64]) -> str:
    """Return run lengths as COCO's compressed string (as pycocotools' `rleToString` writes it)."""
    # From the fourth on, the difference to the run of the same colour before it.
    values = counts.astype(np.int64).copy()
    values[3:] -= counts[1:-2]
    digits = np.zeros((len(values), _MAX_CHARACTERS), np.uint8)
    used = np.zeros((len(values), _MAX_CHARACTERS), np.bool_)
    alive = np.ones(len(values), np.bool_)
    for i in range(_MAX_CHARACTERS):
        if not alive.any():
            break
        low = values & 0x1F
        values >>= 5
        # Ends when what is left is only the sign, and the sign bit of this digit says the same.
        more = np.where(low & 0x10, values != -1, values != 0)
        digits[:, i] = low + 0x20 * more + 48
        used[:, i] = alive
        alive &= more
    return digits[used].tobytes().decode("ascii")
