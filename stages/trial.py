"""The trial run of a graph that nobody knows yet: on gray pictures, before anything is started.

What comes out is what recognition looks at, and shows whether the numbers are numbers and follow
the batch. Used by one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from stages.backends.backend import Backend
from stages.decoders.decoder import GraphInfo, TensorInfo
from stages.decoders.metadata import stated

if TYPE_CHECKING:
    from stages.infer import InferConfig

Array = NDArray[np.generic]

_GRAY: Final = 114
_TARGET_SIZES: Final = "orig_target_sizes"


def fix_target_sizes(backend: Backend, config: InferConfig) -> None:
    """Tell a graph of RT-DETR's kind that its picture is as large as its input.

    Such graphs take the size of the original picture as a second input and scale their boxes to it.
    With the input's own size they are in model pixels, as everybody else's, and the letterbox takes
    them to the picture.
    """
    others = [info for info in backend.inputs if info.name == _TARGET_SIZES]
    rest = tuple(info for info in backend.inputs if info.name != _TARGET_SIZES)
    if len(others) != 1 or others[0].shape[-1:] != (2,):
        return
    size_wh = trial_size(GraphInfo(rest, backend.outputs, backend.metadata), config)
    if size_wh is not None:
        backend.fix(_TARGET_SIZES, np.array(size_wh, others[0].dtype))


def trial_size(graph: GraphInfo, config: InferConfig) -> tuple[int, int] | None:
    """Return the (width, height) of a trial run, or None where nothing tells it."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) not in (3, 4):
        return None
    shape = graph.inputs[0].shape[-3:]
    if 3 not in (shape[0], shape[2]):
        return None
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    wanted = config.input_size
    if wanted is None and None in (width, height):
        says = stated(graph.metadata)
        wanted = None if says is None else says.size_wh
    if width is not None and height is not None:
        # Where the user asks for another size than the graph's, recognition shows both.
        return width, height
    return wanted


def blank_picture(info: TensorInfo, size_wh: tuple[int, int]) -> Array:
    """Return a gray picture as the input takes it, without a batch axis."""
    width, height = size_wh
    shape = (3, height, width) if info.shape[-3] == 3 else (height, width, 3)
    try:
        return np.full(shape, _GRAY, np.dtype(info.dtype))
    except TypeError as error:
        raise ModelError(f"input '{info.name}' takes {info.dtype}, which no picture is") from error


def check_numbers(backend: Backend, size_wh: tuple[int, int], outputs: Mapping[str, Array]) -> None:
    """Refuse a graph that gives NaN for every picture, before a run has begun."""
    bad = _nan_output(outputs)
    if bad is None:
        return
    # A graph that divides by the picture's own deviation may do so for the gray picture alone.
    gray = blank_picture(backend.inputs[0], size_wh)
    noise = np.random.default_rng(0).integers(0, 256, gray.shape).astype(gray.dtype)
    batched = len(backend.inputs[0].shape) == 4
    bad = _nan_output(backend.run(noise[None] if batched else noise))
    if bad is not None:
        name, count, size = bad
        raise ModelError(
            f"output '{name}' holds NaN in {count} of {size} values whatever the picture shows: "
            "the weights are damaged, or numbers overflow in half precision; download or export "
            "the file again"
        )


def _nan_output(outputs: Mapping[str, Array]) -> tuple[str, int, int] | None:
    """Return name, NaN values and all values of the first output that holds NaN."""
    for name, array in outputs.items():
        count = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        if count:
            return name, count, array.size
    return None


def run_trial(backend: Backend, size_wh: tuple[int, int], batch: int) -> dict[str, Array]:
    """Return what the graph answers to so many gray pictures of that size."""
    gray = blank_picture(backend.inputs[0], size_wh)
    if len(backend.inputs[0].shape) == 3:
        return backend.run(gray)
    return backend.run(np.stack([gray] * batch))


def outputs_that_follow(
    backend: Backend, size_wh: tuple[int, int], batch: int, single: Mapping[str, Array]
) -> frozenset[str]:
    """Return the outputs that have a row for each picture; all must, or frames would be mixed."""
    info = backend.inputs[0]
    fixed = info.shape[0] if len(info.shape) == 4 else 1
    if fixed is not None:
        raise ModelError(
            f"batch {batch} was asked for, but the graph takes {fixed} picture(s) at once: "
            "set infer.batch to 1, or export it with an open batch"
        )
    several = run_trial(backend, size_wh, batch)
    for name, array in several.items():
        if (batch, *single[name].shape[1:]) != array.shape or single[name].shape[:1] != (1,):
            raise ModelError(
                f"output '{name}' does not follow the batch: {list(single[name].shape)} for one "
                f"picture, {list(array.shape)} for {batch}; set infer.batch to 1"
            )
    return frozenset(several)
