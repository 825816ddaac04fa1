"""Whether a user would see the same: boxes, masks, keypoints and class maps of network and file.

Both sides' outputs go through the decoder and NMS of a run. One thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporters.matching import (
    SCORE_TOLERANCE,
    keypoint_distances,
    map_differences,
    mask_iou,
    partners,
    same_place,
)
from exporters.outcome import (
    KEYPOINT_PX,
    MASK_IOU,
    MATCH_IOU,
    SCORE_THRESHOLD,
    TIE_SHARE,
    KeypointOutcome,
    MapOutcome,
    MaskOutcome,
    Outcome,
)
from pipeline.detections import Detections
from pipeline.frame import U8, Frame, FrameId, FrameTime, Inferred
from pipeline.geometry import Letterbox
from stages.decoders.decoder import MapSource
from stages.nms import NmsStage

if TYPE_CHECKING:
    from stages.model import LoadedModel

Array = NDArray[np.generic]
Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One picture as the graph is given it."""

    name: str
    """What a table calls it."""
    image: U8
    """(h, w, 3) BGR."""
    tensor: Array
    letterbox: Letterbox


def compare_results(
    outcome: Outcome,
    seen: Seen,
    nms: NmsStage,
    model: LoadedModel,
    expected: Outputs,
    got: Outputs,
    apart: float,
) -> None:
    """Compare what a run would show of one picture, and note it in `outcome`.

    Args:
        outcome: gets numbers and problems.
        seen: the picture.
        nms: open, with a threshold below `SCORE_THRESHOLD` by `SCORE_TOLERANCE`.
        model: whose decoder reads both sides.
        expected: the network's outputs, of this picture alone.
        got: the file's.
        apart: the largest difference of any two values in them.
    """
    raw = [model.decoder.decode(out, SCORE_THRESHOLD - SCORE_TOLERANCE) for out in (expected, got)]
    maps = [side.class_map for side in raw]
    if maps[0] is not None and maps[1] is not None:
        _compare_maps(outcome, seen, maps[0], maps[1], apart)
        return
    want, have = (_detect(nms, seen, outputs) for outputs in (expected, got))
    counted = int((want.score >= SCORE_THRESHOLD).sum())
    outcome.detections += counted
    outcome.frames_without_detections += counted == 0
    for one, other, side, missing in (
        (want, have, raw[1], "not found by the file"),
        (have, want, raw[0], "found by the file only"),
    ):
        rows = np.flatnonzero(one.score >= SCORE_THRESHOLD)
        mine = (one.xyxy[rows], one.score[rows], one.class_id[rows])
        match, iou = partners(mine, (other.xyxy, other.score, other.class_id))
        same = iou >= MATCH_IOU
        if same.any():
            outcome.min_iou = min(outcome.min_iou, float(iou[same].min()))
            moved = np.abs(mine[0][same] - other.xyxy[match[same]])
            outcome.max_box_diff_px = max(outcome.max_box_diff_px, float(moved.max()))
            off = np.abs(mine[1][same] - other.score[match[same]])
            outcome.max_score_diff = max(outcome.max_score_diff, float(off.max()))
        if one is want:
            _compare_parts(outcome, seen, one[rows[same]], other[match[same]])
        lost = np.flatnonzero(~same)
        candidates = seen.letterbox.to_source(side.xyxy), side.score, side.class_id
        _, near = partners((mine[0][lost], mine[1][lost], mine[2][lost]), candidates)
        for row, overlap in zip(rows[lost], near, strict=True):
            flip = raw[1].suppressed or overlap >= MATCH_IOU
            (outcome.flipped if flip else outcome.problems).append(
                f"{seen.name}: {_name(one, row)} is {missing}"
            )


def _compare_parts(outcome: Outcome, seen: Seen, want: Detections, have: Detections) -> None:
    """Compare masks and keypoints of detections that belong together, row by row."""
    if want.masks is not None and have.masks is not None:
        masks = outcome.masks = outcome.masks or MaskOutcome()
        for row, (one, other) in enumerate(zip(want.masks, have.masks, strict=True)):
            masks.compared += 1
            iou = mask_iou(one, other)
            if iou >= MASK_IOU:
                masks.min_iou = min(masks.min_iou, iou)
                continue
            # Corners are cut to whole pixels: two that are 1e-4 apart may be cut to different ones,
            # and then the whole mask is drawn a pixel wider.
            told = f"{seen.name}: the mask of {_name(want, row)} has IoU {iou:.3f}"
            (outcome.problems if same_place(one, other) else masks.moved).append(told)
    if want.keypoints is not None and have.keypoints is not None:
        points = outcome.keypoints = outcome.keypoints or KeypointOutcome()
        allowed = KEYPOINT_PX / min(seen.letterbox.scale_xy)
        for row, (mine, theirs) in enumerate(zip(want.keypoints, have.keypoints, strict=True)):
            points.compared += len(mine)
            for k, (far, off) in enumerate(zip(*keypoint_distances(mine, theirs), strict=True)):
                points.max_score_diff = max(points.max_score_diff, float(off))
                if far <= allowed and off <= SCORE_TOLERANCE:
                    points.max_diff_px = max(points.max_diff_px, float(far))
                    continue
                told = f"{seen.name}: keypoint {k} of {_name(want, row)} is {far:.3g} px off"
                (points.moved if off <= SCORE_TOLERANCE else outcome.problems).append(told)


def _compare_maps(
    outcome: Outcome, seen: Seen, want: MapSource, have: MapSource, apart: float
) -> None:
    maps = outcome.maps = outcome.maps or MapOutcome()
    painted, leads = map_differences(want, have, seen.letterbox)
    maps.add(painted, len(leads))
    # Scores that are no further apart than this cannot change places by more than twice as much;
    # interpolation between them rounds once more.
    tie = 2 * apart + 1e-5
    if (beyond := int((leads > tie).sum())) > 0:
        outcome.problems.append(
            f"{seen.name}: {beyond} of {painted.size} pixels have another class, which is behind "
            f"by up to {leads.max():.3g}; {tie:.3g} is a tie"
        )
    elif len(leads) > TIE_SHARE * painted.size:
        outcome.problems.append(
            f"{seen.name}: {len(leads)} of {painted.size} pixels are ties and have another class, "
            f"{TIE_SHARE:g} of them may"
        )


def _name(found: Detections, row: int) -> str:
    place = ", ".join(f"{v:.1f}" for v in found.xyxy[row])
    return f"{found.name_of(row)} {found.score[row]:.3f} at ({place})"


def _detect(nms: NmsStage, seen: Seen, outputs: Outputs) -> Detections:
    image = seen.image
    frame = Frame(FrameId("parity", 0, 0), FrameTime(0, None, Fraction(1), None), image)
    found = nms.process([Inferred(frame, outputs, seen.letterbox)])[0].detections
    return found if found is not None else Detections.empty()
