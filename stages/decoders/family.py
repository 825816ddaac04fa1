"""What every family of detectors shares: how a decoder is made from a graph, and its checks.

Pure functions on NumPy arrays and descriptions of graphs; no session, no state, safe from any
thread. `Family` is what `recognise` walks over; the arrays' checks are the decoders' last line, so
that a graph which goes wrong ends in one clear message and never in boxes of nonsense.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import (
    I64,
    Candidates,
    Decoder,
    GraphInfo,
    MaskSource,
    Outputs,
    Preprocessing,
    TensorInfo,
)

# Scores are probabilities. Quantised graphs overshoot 1 by up to half a step (1/255 on 8 bits);
# anything beyond that is a logit or the wrong decoder.
SCORE_SLACK = 0.01


class Family(Decoder):
    """A decoder that can be made from a graph's description and say how sure that is."""

    form: ClassVar[str]
    """The outputs this family reads, in words, for error messages."""
    options: ClassVar[tuple[str, ...]] = ()
    """The options `fit` knows."""

    names: tuple[str, ...] | None = None
    """Class names that follow from the form itself; None where the count decides."""
    note: str = ""
    """What of the graph is left unread, for the log."""

    @classmethod
    @abstractmethod
    def fit(
        cls,
        graph: GraphInfo,
        size_wh: tuple[int, int],
        class_count: int | None,
        options: Mapping[str, object],
    ) -> Self:
        """Return the decoder for this graph.

        Args:
            graph: Its outputs as seen in a trial run.
            size_wh: The model's input, pixels.
            class_count: How many class names are known; used only where shapes do not say it.
            options: Values of the names in `options`.

        Raises:
            ModelError: the outputs are not of this family's form; says expected and seen.
        """

    @classmethod
    @abstractmethod
    def evidence(cls, graph: GraphInfo, size_wh: tuple[int, int]) -> str | None:
        """Return why the graph can only be of this family, or None; asked of graphs that fit."""

    @abstractmethod
    def usual(self, size_wh: tuple[int, int]) -> Preprocessing:
        """Return the preprocessing that this family's published exports were trained with."""

    @classmethod
    def misfit(cls, graph: GraphInfo, detail: str) -> ModelError:
        """Return the error for a graph that is not of this form."""
        return ModelError(
            f"decoder {cls.kind!r} does not fit the graph: {detail}. Expected {cls.form}. "
            f"Seen: {graph.summary()}"
        )


def grid_rows(size_wh: tuple[int, int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return how many cells each level has; a last partial cell counts."""
    width, height = size_wh
    return tuple(-(-width // stride) * -(-height // stride) for stride in strides)


def cell_grid(size_wh: tuple[int, int], strides: Sequence[int]) -> tuple[F32, F32]:
    """Return all cells, level after level, row-major.

    Returns:
        (n, 2) float32 column and row of each cell, and (n, 1) float32 its stride in pixels.
    """
    width, height = size_wh
    cells, steps = [], []
    for stride in strides:
        rows, columns = np.mgrid[: -(-height // stride), : -(-width // stride)]
        cells.append(np.stack((columns.ravel(), rows.ravel()), axis=1))
        steps.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


def shape_without_batch(info: TensorInfo, ndim: int) -> tuple[int | None, ...] | None:
    """Return an output's shape with `ndim` axes, its batch axis removed; None if it has others."""
    if len(info.shape) == ndim + 1:
        return info.shape[1:]
    return info.shape if len(info.shape) == ndim else None


def read(outputs: Outputs, name: str, shape: tuple[int | None, ...]) -> NDArray[np.generic]:
    """Return one output without its batch axis, checked. Shares memory with `outputs`.

    Args:
        outputs: One picture's outputs.
        name: The output's name.
        shape: Its expected shape without the batch axis; None stands for any size.

    Raises:
        ModelError: the output is missing or has another shape.
    """
    array = outputs.get(name)
    if array is None:
        seen = ", ".join(outputs) or "none"
        raise ModelError(f"the graph gave no output {name!r}; its outputs: {seen}")
    bare = array[0] if array.ndim == len(shape) + 1 and array.shape[0] == 1 else array
    if bare.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, bare.shape, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(
            f"output {name!r} must be ({expected}) with or without a batch axis of 1, "
            f"got {array.shape}"
        )
    return bare


def as_f32(array: NDArray[np.generic]) -> F32:
    """Return the values as float32; the same array where they already are."""
    return array.astype(np.float32, copy=False)


def reject_nan(scores: NDArray[np.generic], kind: str) -> None:
    """Raise ModelError where a score is not a number.

    Asked before filtering: a NaN compares false with every threshold and would vanish unseen.
    """
    bad = int(np.isnan(as_f32(scores)).sum())
    if bad:
        raise ModelError(
            f"{kind}: {bad} of {scores.size} scores are NaN: the graph went wrong on this picture "
            "(half precision that overflows, or damaged weights)"
        )


def corners(centre_xy: F32, size_wh: F32) -> F32:
    """Return (n, 4) xyxy of boxes given as (n, 2) centres and (n, 2) sizes."""
    with np.errstate(invalid="ignore"):  # inf - inf: `candidates` reports what is not finite
        half = size_wh * np.float32(0.5)
        return np.concatenate((centre_xy - half, centre_xy + half), axis=1)


def candidates(
    kind: str,
    xyxy: F32,
    score: F32,
    class_id: I64,
    *,
    suppressed: bool = False,
    masks: MaskSource | None = None,
    keypoints: F32 | None = None,
) -> Candidates:
    """Return checked candidates; scores a rounding error outside 0..1 are clipped.

    Raises:
        ModelError: a score is no probability, or a box or a keypoint is not finite.
    """
    if len(score):
        low, high = float(score.min()), float(score.max())
        if not (low >= -SCORE_SLACK and high <= 1 + SCORE_SLACK):
            raise ModelError(
                f"{kind}: scores must lie in 0..1, got {low:g}..{high:g}: another decoder, or "
                "a graph that was exported without its last sigmoid"
            )
        bad = int((~np.isfinite(xyxy)).any(axis=1).sum())
        if bad:
            raise ModelError(
                f"{kind}: {bad} of {len(xyxy)} boxes above the threshold have values that are not "
                "finite: the graph went wrong on this picture"
            )
        if keypoints is not None and not np.isfinite(keypoints).all():
            raise ModelError(
                f"{kind}: keypoints have values that are not finite: the graph went wrong on this "
                "picture"
            )
    return Candidates(
        xyxy=np.ascontiguousarray(xyxy, dtype=np.float32),
        score=score.clip(0, 1).astype(np.float32, copy=False),
        class_id=class_id.astype(np.int64, copy=False),
        suppressed=suppressed,
        masks=masks,
        keypoints=None if keypoints is None else as_f32(keypoints),
    )


def sigmoid(values: NDArray[np.generic]) -> F32:
    """Return 1 / (1 + exp(-x)) as float32, without overflow."""
    # tanh saturates instead of overflowing; the two are the same function.
    half = np.float32(0.5)
    result: F32 = half * (np.tanh(as_f32(values) * half) + np.float32(1))
    return result


def check_class_ids(kind: str, class_id: I64, class_count: int) -> None:
    """Raise ModelError where a graph that has its own class ids uses one that has no name."""
    if not len(class_id):
        return
    low, high = int(class_id.min()), int(class_id.max())
    if low < 0 or high >= class_count:
        raise ModelError(
            f"{kind}: the graph gave class ids {low}..{high}, but there "
            f"are names for 0..{class_count - 1}: give class_names that cover all its classes"
        )


def flag(options: Mapping[str, object], name: str, *, default: bool) -> bool:
    """Return a boolean option.

    Raises:
        ModelError: it is something else.
    """
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ModelError(f"decoder option {name!r} must be true or false, got {value!r}")
    return value


def whole_numbers(
    options: Mapping[str, object], name: str, default: Sequence[int]
) -> tuple[int, ...]:
    """Return an option that is a list of positive whole numbers.

    Raises:
        ModelError: it is something else.
    """
    value = options.get(name, default)
    if not isinstance(value, Sequence) or not all(isinstance(v, int) and v > 0 for v in value):
        raise ModelError(
            f"decoder option {name!r} must be a list of positive whole numbers, got {value!r}"
        )
    return tuple(value)
