"""From a torch network to an ONNX file that describes itself, checked against the network.

The file appears under its name only when ONNX Runtime gives torch's answers with it. Not for use
from several threads at once: torch's tracer has global state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import Preprocessing

if TYPE_CHECKING:
    from torch import nn

KEY: Final = "rackfocus"
"""The one metadata key, holding JSON."""
SCHEMA: Final = 1
_OPSET: Final = 18
"""The lowest that torch's exporter writes without converting; ONNX Runtime runs it from 1.14."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """How far the file's answers are from torch's, over some real inputs."""

    max_abs_diff: float
    """Largest difference of any output value; boxes count in pixels."""
    max_scaled_diff: float
    """Largest difference over max(1, |torch's value|): what the tolerance is about, since float32
    resolves a coordinate of 500 pixels to 3e-5 but a score to 6e-8."""
    frames: int


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """What the file shall say of itself."""

    name: str
    task: str
    decoder: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    licence: str
    """SPDX identifier of the weights' licence."""


def export(
    network: nn.Module, path: Path, card: Card, inputs: F32, *, tolerance: float = 1e-4
) -> Parity:
    """Write `network` to `path` with fixed height and width and a free batch size.

    Args:
        network: takes (b, 3, h, w) float32, returns one tensor; put into evaluation mode.
        path: the file to write; replaced whole, or left as it is when the export fails.
        card: becomes the file's metadata.
        inputs: (n, 3, h, w) float32, preprocessed real pictures, n >= 1, to compare both on.
        tolerance: largest `Parity.max_scaled_diff` allowed; the runtimes' sums differ in order.

    Raises:
        ModelError: the file differs from the network by more than `tolerance`.
    """
    import onnx
    import torch

    if inputs.ndim != 4 or len(inputs) < 1 or inputs.dtype != np.float32:
        raise ValueError(f"inputs must be (n, 3, h, w) float32, got {inputs.shape} {inputs.dtype}")
    network = network.eval()
    # Two, because a batch of one would be taken for a constant.
    example = torch.from_numpy(np.ascontiguousarray(inputs[[0, -1]]))
    with torch.no_grad(), warnings.catch_warnings():
        # Deprecations inside torch and onnxscript, which a caller cannot act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=_OPSET,
            verbose=False,
        )
    model = program.model_proto
    _forget_sources(model)
    parity = compare(network, model.SerializeToString(), inputs)
    if not parity.max_scaled_diff <= tolerance:
        raise ModelError(
            f"{path}: the file differs from the network by {parity.max_scaled_diff:g} over "
            f"{parity.frames} frames; at most {tolerance:g} is allowed. Nothing was written"
        )
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(describe(card, network, parity), sort_keys=True)
    onnx.checker.check_model(model)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(model.SerializeToString())
    os.replace(part, path)  # noqa: PTH105 - atomic, as Path.replace
    return parity


def compare(network: nn.Module, model: bytes, inputs: F32) -> Parity:
    """Run both on each input alone and return the largest difference."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    worst = scaled = 0.0
    for picture in inputs:
        with torch.no_grad():
            expected = network(torch.from_numpy(picture[None])).numpy()
        got = session.run(None, {entry: picture[None]})[0]
        if got.shape != expected.shape:
            raise ModelError(f"the exported file gives {got.shape}, the network {expected.shape}")
        apart = np.abs(got - expected)
        if not np.isfinite(apart).all():
            raise ModelError("the exported file or the network gives values that are not finite")
        worst = max(worst, float(apart.max()))
        scaled = max(scaled, float((apart / np.maximum(np.abs(expected), 1)).max()))
    return Parity(worst, scaled, len(inputs))


def describe(card: Card, network: nn.Module, parity: Parity) -> Mapping[str, Any]:
    """Return what stands under `KEY` in the file."""
    return {
        "schema": SCHEMA,
        "name": card.name,
        "task": card.task,
        "decoder": card.decoder,
        "preprocessing": dataclasses.asdict(card.preprocessing),
        "class_names": list(card.class_names),
        "licence": card.licence,
        "source_sha256": weights_sha256(network),
        "parity": dataclasses.asdict(parity),
    }


def weights_sha256(network: nn.Module) -> str:
    """Return the digest over names, shapes, types and bytes of the state dict, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _forget_sources(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto, imported late
    """Remove what the tracer notes of file names and source lines: half of a small file's size."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
