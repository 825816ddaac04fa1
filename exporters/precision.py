"""A graph with smaller numbers: float16, or 8-bit integers with scales measured on real pictures.

What it costs in results is measured by `exporters.loss`. One thread.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.float16 import to_fp16
from exporters.int8 import to_int8
from exporters.layers import layers
from pipeline.errors import ModelError

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A graph with smaller numbers."""

    graph: bytes
    """Serialised ModelProto, checked, without our metadata."""
    layers: int
    """Convolutions and matrix products."""
    kept: tuple[str, ...]
    """Names of those that stay float32."""


def reduce(graph: bytes, precision: str, feeds: Sequence[Array]) -> Reduced:
    """Return the graph in float16 or in 8-bit integers; inputs and outputs keep their types.

    What is computed after the last layers (decoding of boxes, softmax, sigmoid) stays float32, and
    so do coordinates inside (anchors, boxes of regions): float16 resolves 600 pixels to half a one.

    Args:
        graph: a float32 model with one input.
        precision: fp16 or int8.
        feeds: what the graph takes, from real pictures, to measure ranges on; int8 only.

    Raises:
        ModelError: the graph has no float32 layers, or the runtime cannot convert it.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    _check_float32(model)
    _free_weights(model)
    count = len(layers(model))
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of libraries inside libraries
        try:
            made, kept = (to_fp16(model), ()) if precision == "fp16" else to_int8(model, feeds)
            onnx.checker.check_model(made, full_check=True)
        except Exception as error:
            raise ModelError(f"the graph cannot be made {precision}: {error}") from error
    return Reduced(made.SerializeToString(), count, kept)


def _check_float32(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto, imported late
    import onnx

    if any("Quantize" in node.op_type or "QLinear" in node.op_type for node in model.graph.node):
        raise ModelError("the file is quantised already; give the float32 file it was made from")
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    floats |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    if not any(set(node.input) & floats for node in layers(model)):
        raise ModelError("the graph has no float32 convolutions or matrix products to make smaller")


def _free_weights(model: Any) -> None:  # noqa: ANN401 - as above
    """Take the weights from among the inputs, where older exporters put them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' advice, which is not for the user, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
