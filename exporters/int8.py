"""A graph in 8-bit integers, with scales measured on pictures, but for layers that lose too much.

The quantiser is ONNX Runtime's own. One thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporters.layers import layers, name_nodes, outside

Array = NDArray[np.generic]

LEAST_SNR_DB: Final = 30.0
"""A layer stays float32 where 256 steps over the range of its input or output leave less signal to
noise than this: an error of 3 % there. With every layer in 8 bits YOLOX-nano lost half of its mAP,
and nearly all of that came from the five layers below 28 dB; beyond 30 dB nothing more was gained.
Last layers are no exception: kept as a rule, they doubled SSD300's file and brought back half a
percent of its detections."""
_QUANTISED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool")
"""Layers, and what passes 8-bit values on without new rounding."""
_INT8_OPSET: Final = 13
"""The lowest in which a scale for each channel can be written."""


def to_int8(model: Any, feeds: Sequence[Array]) -> tuple[Any, tuple[str, ...]]:  # noqa: ANN401 - onnx.ModelProto
    """Return the model with its layers in 8 bits, and the names of those that stay float32.

    Args:
        model: in float32, one input. Batch sizes stay open where they are. May be modified.
        feeds: what the graph takes, from real pictures.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset < _INT8_OPSET:
        model = onnx.version_converter.convert_version(model, _INT8_OPSET)
    # The quantiser passes models on as files.
    with tempfile.TemporaryDirectory(prefix="rackfocus-") as folder:
        before, folded, after = (str(Path(folder) / f"{k}.onnx") for k in range(3))
        onnx.save(model, before)
        # Folds batch normalisation into convolutions, whose ranges are measured then.
        quant_pre_process(before, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
        name_nodes(model)
        onnx.save(model, folded)
        entry = model.graph.input[0].name
        kept = _sensitive(model, entry, feeds)
        quantize_static(
            folded,
            after,
            _Reader(entry, feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Signed activations run at half the speed.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=[*outside(model), *kept],
        )
        made = onnx.load(after)
    return made, tuple(node.name for node in layers(model) if node.name in kept)


class _Reader:
    """Hands out the pictures; the quantiser asks until there is none."""

    def __init__(self, entry: str, feeds: Sequence[Array]) -> None:
        self._feeds = iter([{entry: feed} for feed in feeds])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _sensitive(model: Any, entry: str, feeds: Sequence[Array]) -> set[str]:  # noqa: ANN401 - as above
    """Return the layers whose input or output 256 steps resolve too little.

    Noise of rounding to steps of s has the power s^2 / 12 (uniform over a step: Widrow and Kollar,
    Quantization Noise, 2008).
    """
    import onnx
    import onnxruntime

    nodes = layers(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    watched = dict.fromkeys(
        name for n in nodes for name in (n.input[0], n.output[0]) if name not in weights
    )
    # Statistics as outputs: the tensors of all pictures would not fit into memory.
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in watched:
        probe.graph.node.append(onnx.helper.make_node("Mul", [name, name], [f"{name}:square"]))
        for kind, of in (("Min", name), ("Max", name), ("Mean", f"{name}:square")):
            end = f"{name}:{kind}"
            probe.graph.node.append(onnx.helper.make_node(f"Reduce{kind}", [of], [end], keepdims=0))
            probe.graph.output.append(
                onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, ())
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows = np.array([session.run(None, {entry: feed}) for feed in feeds], np.float64)
    low, high, square = np.moveaxis(rows.reshape(len(feeds), -1, 3), 2, 0)
    # Zero is always one of the steps.
    span = np.maximum(high.max(0), 0) - np.minimum(low.min(0), 0)
    noise = (span / 255) ** 2 / 12
    signal = square.mean(0)
    # A tensor that is zero throughout is resolved perfectly.
    poor = dict(zip(watched, signal < noise * 10 ** (LEAST_SNR_DB / 10), strict=True))
    return {n.name for n in nodes if poor.get(n.input[0]) or poor.get(n.output[0])}
