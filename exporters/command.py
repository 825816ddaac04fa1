"""What `export` and `verify` do: from a name to a certified file, and from a file to a verdict.

torch and ONNX are imported when the work begins; where the extra is missing the error says so. One
thread.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from exporters import onnx_export
from exporters.cards import card_of, check_card, short
from exporters.frames import SYNTHETIC, pictures
from exporters.zoo import ZOO, Entry, find
from pipeline.errors import ModelError, ParityError, UsageError
from stages.decoders.seal import SealError, seal

if TYPE_CHECKING:
    from torch import nn

    from exporters.certificate import Outcome, Run
    from exporters.download import Progress
    from stages.model import LoadedModel

Say = Callable[[str], None]

_NEEDED: Final = ("torch", "torchvision", "onnx", "onnxscript")
_SHOWN: Final = 12
"""Lines of a table of differences; the number of the others is said."""


def export_model(
    name: str,
    out: str | None,
    *,
    weights: str,
    frames: str | None,
    overwrite: bool,
    say: Say,
    progress: Progress | None = None,
) -> Path:
    """Write a certified ONNX file and return its path.

    Args:
        name: a name of the zoo.
        out: the file; NAME.onnx in the working folder where it is None.
        weights: `official`, `random` or a checkpoint.
        frames: clip or folder to compare on; the synthetic scene where it is None.
        overwrite: replace a file that exists.
        say: told the steps and the certificate.
        progress: told about a download.

    Raises:
        ParityError: the file does not answer like the network; nothing was written.
        UsageError: a name, path or choice that cannot work, or the torch extra is missing.
        ModelError: the weights cannot be had or do not fit.
    """
    entry = find(name)
    path = _target(out or f"{name}.onnx", overwrite=overwrite)
    _need_torch()
    from exporters.weights import one_thread

    with one_thread():
        _export(entry, path, weights, frames, say, progress)
    return path


def _export(
    entry: Entry,
    path: Path,
    weights: str,
    frames: str | None,
    say: Say,
    progress: Progress | None,
) -> None:
    from exporters.weights import build

    seen = pictures(frames)
    network, source = build(entry, weights, progress=progress)
    say(f"{entry.name}: {_weights_line(source.facts())}")
    entry = entry.named(source.class_names)
    card = card_of(entry, source.licence)
    draft = onnx_export.describe(card, network, None)
    del draft["parity"]
    draft["source"] = dict(source.facts())
    draft["export"] = {
        "exporter": entry.exporter,
        "opset": onnx_export.LEGACY_OPSET if entry.exporter == "legacy" else onnx_export.OPSET,
        "precision": "fp32",
        "frames": SYNTHETIC if frames is None else Path(frames).name,
        "versions": _versions(),
    }
    legacy = entry.exporter == "legacy"
    graph = onnx_export.to_graph(
        network,
        _example(entry, seen[0].image),
        entry.outputs,
        legacy=legacy,
        dynamic_batch=entry.dynamic_batch,
        dynamic_size=entry.dynamic_size,
    )
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(seal(graph, draft))
        outcome = _compare(part, entry, torch_run(network, entry.outputs), frames)
        if not outcome.holds:
            raise ParityError(
                f"{path}: the exported file does not answer like the network; nothing was "
                f"written\n{_table(outcome)}"
            )
        part.write_bytes(seal(graph, {**draft, "parity": outcome.facts()}))
        _load(part).close()
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, certificate:")
    for line in outcome.lines():
        say(line)


def verify_file(file: str, *, weights: str | None, frames: str | None, say: Say) -> None:
    """Check a certified file: its digest, its form, and its numbers where the network can be had.

    Args:
        file: the ONNX file.
        weights: where the weights are; what the file names where it is None, but without network.
        frames: clip or folder to compare on; the synthetic scene where it is None.
        say: told what was checked and what could not be.

    Raises:
        ParityError: the file is not what its certificate says, or answers otherwise.
        ModelError: it is no model, or carries no certificate.
        UsageError: a path or name that cannot work.
    """
    path = Path(file)
    try:
        model = _load(path)
    except SealError as error:
        raise ParityError(str(error)) from error
    stated = model.metadata
    certified = model.certified
    model.close()
    if not certified:
        raise ModelError(
            f"{path} carries no certificate: it was not written by `export`, or before there were "
            "certificates"
        )
    say(f"{path}: the digest holds")
    entry = ZOO.get(str(stated.get("name")))
    if entry is None:
        say(f"  numbers not compared: '{stated.get('name')}' is no model of `list models`")
        return
    check_card(path, entry, stated)
    missing = missing_package()
    if missing is not None:
        say(f'  numbers not compared: {missing} is not installed (pip install -e ".[torch]")')
        return
    _check_graph(path)
    from exporters.weights import one_thread

    with one_thread():
        _check_numbers(path, entry, stated, weights, frames, say)


def _check_numbers(
    path: Path,
    entry: Entry,
    stated: Mapping[str, Any],
    weights: str | None,
    frames: str | None,
    say: Say,
) -> None:
    from exporters.weights import build

    facts: Mapping[str, Any] = stated.get("source", {})
    chosen = weights or str(facts.get("weights"))
    if chosen == "file":
        say("  numbers not compared: the weights were a file; give it with --weights FILE")
        return
    try:
        network, source = build(entry, chosen, download=weights is not None)
    except ModelError as error:
        if weights is not None:
            raise
        say(f"  numbers not compared: {error}")
        return
    if onnx_export.weights_sha256(network) != stated.get("source_sha256"):
        told = f"{path}: the weights ({chosen}) are not those it was exported from"
        if weights is None and chosen == "random":
            # Random numbers and sums may differ between versions of torch and processors.
            say(f"  numbers not compared: {told.partition(': ')[2]}; torch or machine differ")
            return
        raise ParityError(told)
    names = list(entry.named(source.class_names).class_names)
    if names != stated.get("class_names"):
        raise ParityError(
            f"{path}: class_names is {short(stated.get('class_names'))}, expected {short(names)}"
        )
    outcome = _compare(path, entry, torch_run(network, entry.outputs), frames)
    if not outcome.holds:
        raise ParityError(f"{path}: the file does not answer like the network\n{_table(outcome)}")
    say("  the numbers hold:")
    for line in outcome.lines():
        say(line)


def torch_run(network: nn.Module, names: tuple[str, ...]) -> Run:
    """Return a function that runs the network as a backend would."""
    import torch

    def run(batch: Any) -> dict[str, Any]:  # noqa: ANN401 - NumPy arrays
        with torch.no_grad():
            values = network(torch.from_numpy(np.ascontiguousarray(batch)))
        several = (values,) if isinstance(values, torch.Tensor) else values
        return {name: value.numpy() for name, value in zip(names, several, strict=True)}

    return run


def _compare(path: Path, entry: Entry, run: Run, frames: str | None) -> Outcome:
    from exporters.certificate import BATCHES, certify

    model = _load(path, max(BATCHES) if entry.dynamic_batch else 1)
    try:
        return certify(
            run,
            model,
            pictures(frames),
            dynamic_batch=entry.dynamic_batch,
            dynamic_size=entry.dynamic_size,
        )
    finally:
        model.close()


def _load(path: Path, batch: int = 1) -> LoadedModel:
    """Open a file as a run does, on the CPU."""
    from stages.infer import InferConfig
    from stages.model import load_model

    return load_model(InferConfig(model=str(path), device="cpu", batch=batch), lambda _: None)


def _check_graph(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path} is no valid ONNX graph: {error}") from error


def _table(outcome: Outcome) -> str:
    lines = [f"  {problem}" for problem in outcome.problems[:_SHOWN]]
    more = len(outcome.problems) - _SHOWN
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)


def _example(entry: Entry, image: Any) -> Any:  # noqa: ANN401 - NumPy arrays
    from stages.fitting import Fitter

    tensor = Fitter(entry.preprocessing).fit(image)[0]
    # Two, because a batch of one would be taken for a constant.
    return np.stack([tensor] * (2 if entry.dynamic_batch else 1)).astype(np.float32)


def _weights_line(facts: Mapping[str, object]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "weights")
    return f"weights {facts['weights']}" + (f" ({rest})" if rest else "")


def _target(out: str, *, overwrite: bool) -> Path:
    path = Path(out).expanduser()
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"-o {out}: an exported model is an .onnx file")
    if not path.parent.is_dir():
        raise UsageError(f"-o {out}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; --overwrite replaces it")
    return path


def missing_package() -> str | None:
    """Return the first package of the torch extra that is not installed; None where all are."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return None


def _need_torch() -> None:
    missing = missing_package()
    if missing is not None:
        raise UsageError(
            f'export needs {missing}, which is not installed: pip install -e ".[torch]"'
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "onnx", "onnxruntime"):
        found[name] = str(importlib.import_module(name).__version__)
    return found
