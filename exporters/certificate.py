"""The parity certificate: whether an exported file answers like the network it came from.

Both see the same pictures through the preprocessing, decoder and NMS that a run uses; compared are
the tensors here, and what a user sees in `exporters.results`. Pure apart from running the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from exporters.frames import Picture
from exporters.matching import SCORE_TOLERANCE
from exporters.outcome import FLIP_SHARE, SCORE_THRESHOLD, TENSOR_TOLERANCE
from exporters.outcome import Outcome as Outcome
from exporters.results import Array, Outputs, Seen, compare_results
from pipeline.stage import RunContext
from stages.fitting import Fitter
from stages.nms import NmsConfig, NmsStage

if TYPE_CHECKING:
    from stages.model import LoadedModel

Run = Callable[[Array], Outputs]
"""Takes a batch, (b, 3, h, w) float32; returns every output by name."""

BATCHES: Final = (1, 2, 5)
_OTHER_SIZE: Final = 5, 8
"""Share of the stated input size that graphs of any size are tried at too, and a pixel: no whole
cells, where rounding inside a network shows."""


def certify(
    network: Run,
    model: LoadedModel,
    pictures: Sequence[Picture],
    *,
    dynamic_batch: bool,
    dynamic_size: bool = False,
) -> Outcome:
    """Compare the network with the file as a run would use it.

    Args:
        network: the network the file came from.
        model: the file, opened; its preprocessing, decoder and class names serve both sides.
        pictures: to compare on.
        dynamic_batch: whether the graph takes several pictures at once.
        dynamic_size: whether it takes pictures of any size.
    """
    outcome = Outcome(frames=len(pictures))
    nms = NmsStage(
        # Below the threshold by the tolerance: a score on it may be above on one side only.
        NmsConfig(score_threshold=SCORE_THRESHOLD - SCORE_TOLERANCE, max_detections=10_000),
        "nms",
        model,
    )
    nms.open(RunContext())
    for seen in _rounds(outcome, model, pictures, dynamic_batch, dynamic_size):
        tensors = [one.tensor for one in seen]
        expected = _split(network(np.stack(tensors)), len(seen))
        for one, want, have in zip(seen, expected, model.run(tensors), strict=True):
            apart = _compare_tensors(outcome, one.name, want, have, suppressed=_suppresses(model))
            if apart is not None:
                compare_results(outcome, one, nms, model, want, have, apart)
    _limit_flips(outcome, suppresses=_suppresses(model))
    return outcome


def _rounds(
    outcome: Outcome,
    model: LoadedModel,
    pictures: Sequence[Picture],
    dynamic_batch: bool,  # noqa: FBT001 - as certify's
    dynamic_size: bool,  # noqa: FBT001 - as certify's
) -> Iterator[list[Seen]]:
    """Yield what goes into each run: all pictures alone, then in batches, then at another size."""
    form = model.preprocessing
    shown = _fit(outcome, Fitter(form), pictures)
    outcome.input_sizes_wh.append(form.size_wh)
    outcome.batches.append(1)
    for one in shown:
        yield [one]
    for batch in BATCHES[1:] if dynamic_batch else ():
        outcome.batches.append(batch)
        rows = [shown[k % len(shown)] for k in range(batch)]
        yield [replace(one, name=f"{one.name} (batch {batch})") for one in rows]
    if dynamic_size:
        part, whole = _OTHER_SIZE
        other_wh = form.size_wh[0] * part // whole + 1, form.size_wh[1] * part // whole + 1
        outcome.input_sizes_wh.append(other_wh)
        for one in _fit(outcome, Fitter(replace(form, size_wh=other_wh)), pictures[:2]):
            yield [replace(one, name=f"{one.name} (at {other_wh[0]}x{other_wh[1]})")]


def _fit(outcome: Outcome, fitter: Fitter, pictures: Sequence[Picture]) -> list[Seen]:
    shown = []
    for picture in pictures:
        tensor, letterbox = fitter.fit(picture.image)
        shown.append(Seen(picture.name, picture.image, tensor, letterbox))
        if letterbox.source_wh not in outcome.sizes_wh:
            outcome.sizes_wh.append(letterbox.source_wh)
    return shown


def _limit_flips(outcome: Outcome, *, suppresses: bool) -> None:
    """Make problems of what may differ now and then, where it differs too often."""
    allowed = int(FLIP_SHARE * outcome.detections)
    if not suppresses:
        # Here a flip is proved by its candidate, and one is seen from both sides.
        allowed = max(2, allowed)
    groups = [(outcome.flipped, allowed, "detections differ", "suppression")]
    if outcome.masks is not None:
        allowed = max(1, int(FLIP_SHARE * outcome.masks.compared))
        groups.append((outcome.masks.moved, allowed, "masks differ", "rounding"))
    if outcome.keypoints is not None:
        allowed = max(1, int(FLIP_SHARE * outcome.keypoints.compared))
        groups.append((outcome.keypoints.moved, allowed, "keypoints differ", "ties"))
    for lines, limit, what, why in groups:
        if len(lines) > limit:
            outcome.problems += [
                *lines,
                f"all pictures: {len(lines)} {what}, {limit} may by {why}",
            ]


def _suppresses(model: LoadedModel) -> bool:
    return model.decoder.kind == "rcnn"


def _split(outputs: Outputs, batch: int) -> list[Outputs]:
    if batch == 1:
        return [outputs]
    return [{name: a[row : row + 1] for name, a in outputs.items()} for row in range(batch)]


def _compare_tensors(
    outcome: Outcome, name: str, expected: Outputs, got: Outputs, *, suppressed: bool
) -> float | None:
    """Return the largest difference; None where the answers need not be decoded. Note problems."""
    if expected.keys() != got.keys():
        outcome.problems.append(f"{name}: outputs {sorted(got)}, expected {sorted(expected)}")
        return None
    fine, largest = True, 0.0
    for key, want in expected.items():
        have = got[key]
        if not (np.isfinite(want).all() and np.isfinite(have).all()):
            outcome.problems.append(f"{name}: output '{key}' holds values that are not finite")
            fine = False
        elif suppressed:
            # Rows are ordered by score, so near-ties change places: compared as results only.
            continue
        elif have.shape != want.shape:
            outcome.problems.append(f"{name}: '{key}' is {have.shape}, expected {want.shape}")
            fine = False
        else:
            apart = np.abs(have.astype(np.float64) - want.astype(np.float64))
            outcome.add(apart)
            largest = max(largest, float(apart.max(initial=0)))
            row = np.maximum(1, np.abs(want).max(axis=-1, keepdims=True))
            scaled = float((apart / row).max(initial=0))
            outcome.max_scaled_diff = max(outcome.max_scaled_diff, scaled)
            if not scaled <= TENSOR_TOLERANCE:
                outcome.problems.append(
                    f"{name}: '{key}' differs by {scaled:.3g}, {TENSOR_TOLERANCE:g} allowed"
                )
                fine = False
    return largest if fine else None
