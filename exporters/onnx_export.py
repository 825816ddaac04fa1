"""From a torch network to an ONNX file that describes itself, checked against the network.

The file appears under its name only when ONNX Runtime gives torch's answers with it. Not for use
from several threads at once: torch's tracer has global state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import ModelError
from pipeline.geometry import F32
from stages.decoders.decoder import Preprocessing
from stages.decoders.metadata import KEY as KEY
from stages.decoders.seal import seal

if TYPE_CHECKING:
    from torch import nn

SCHEMA: Final = 1
OPSET: Final = 18
"""The lowest that torch's exporter writes without converting; ONNX Runtime runs it from 1.14."""
_SIDES: Final = (2, "height"), (3, "width")
LEGACY_OPSET: Final = 17
"""The highest that torch's older exporter writes for detectors."""


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
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """The decoder's."""


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
    if inputs.ndim != 4 or len(inputs) < 1 or inputs.dtype != np.float32:
        raise ValueError(f"inputs must be (n, 3, h, w) float32, got {inputs.shape} {inputs.dtype}")
    # Two, because a batch of one would be taken for a constant.
    model = to_graph(network.eval(), np.ascontiguousarray(inputs[[0, -1]]), ("output",))
    parity = compare(network, model, inputs)
    if not parity.max_scaled_diff <= tolerance:
        raise ModelError(
            f"{path}: the file differs from the network by {parity.max_scaled_diff:g} over "
            f"{parity.frames} frames; at most {tolerance:g} is allowed. Nothing was written"
        )
    write(path, seal(model, describe(card, network, dataclasses.asdict(parity))))
    return parity


def to_graph(
    network: nn.Module,
    example: F32,
    outputs: Sequence[str],
    *,
    legacy: bool = False,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
) -> bytes:
    """Return `network` as a checked, serialised graph with input "images" and no metadata.

    Args:
        network: in evaluation mode; takes (b, 3, h, w) float32.
        example: what to trace it on; with a free batch, two pictures or more.
        outputs: names for what it returns, in order.
        legacy: trace it as a script, for networks that torch.export cannot follow.
        dynamic_batch: leave the batch size free; not with `legacy`.
        dynamic_size: leave height and width free too; not with `legacy`.
    """
    import onnx
    import torch

    images = torch.from_numpy(example)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": list(outputs)}
    with torch.no_grad(), warnings.catch_warnings():
        # Deprecations inside torch and onnxscript, which a caller cannot act on.
        warnings.simplefilter("ignore")
        if legacy:
            file = io.BytesIO()
            torch.onnx.export(
                network, (images,), file, dynamo=False, opset_version=LEGACY_OPSET, **names
            )
            model = onnx.load_model_from_string(file.getvalue())
        else:
            free = {0: torch.export.Dim("batch", min=1)} if dynamic_batch else {}
            if dynamic_size:
                free |= {axis: torch.export.Dim(name) for axis, name in _SIDES}
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes=(free,) if free else None,
                opset_version=OPSET,
                verbose=False,
                **names,
            )
            model = program.model_proto
    _forget_sources(model)
    # With shape inference, whose complaints are errors.
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


def write(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what is there."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


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


def describe(card: Card, network: nn.Module, parity: Mapping[str, object] | None) -> dict[str, Any]:
    """Return what stands under `KEY` in the file."""
    return {
        "schema": SCHEMA,
        "name": card.name,
        "task": card.task,
        "decoder": card.decoder,
        "options": dict(card.options),
        "preprocessing": dataclasses.asdict(card.preprocessing),
        "class_names": list(card.class_names),
        "licence": card.licence,
        "source_sha256": weights_sha256(network),
        "parity": parity,
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
