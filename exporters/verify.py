"""What `verify` does: from a certified file to a verdict.

torch and ONNX are imported when they are needed; what could not be checked without them is said.
One thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporters.answers import FIRST_RUNTIME, Say, compare, load, table, torch_run
from exporters.cards import check_card, short
from exporters.frames import halves
from exporters.loss import Answer, Loss, frames_sha256, measure_loss
from exporters.reduced import read_otherwise
from exporters.requirements import CONVERTING, TRACING, missing
from exporters.zoo import ZOO, Entry
from pipeline.errors import DeviceError, ModelError, ParityError, UsageError
from stages.decoders.seal import SealError

if TYPE_CHECKING:
    from torch import nn

    from exporters.certificate import Run
    from stages.model import LoadedModel

LOSS_TOLERANCE: Final = 0.01
"""By how much loss and mean score difference may exceed what the file states: float32 sums of
another machine move scores by 1e-6, 8-bit ones not at all where processors do not saturate."""


def verify_file(
    file: str,
    *,
    weights: str | None,
    frames: str | None,
    say: Say,
    fp32: str | None = None,
) -> None:
    """Check a certified file: its digest, its form, and its numbers where float32 can be had.

    Args:
        file: the ONNX file.
        weights: where the weights are; what the file names where it is None, but without network.
        frames: clip or folder to compare on; the synthetic scene where it is None.
        say: told what was checked and what could not be.
        fp32: for a file in fp16 or int8, the one it was made from; the network where it is None.

    Raises:
        ParityError: the file is not what its certificate says, or answers otherwise.
        ModelError: it is no model, or carries no certificate.
        UsageError: a path or name that cannot work.
    """
    path = Path(file)
    try:
        model = load(path)
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
    origin: Mapping[str, Any] | None = (stated.get("parity") or {}).get("fp32")
    if origin is None and fp32 is not None:
        raise UsageError(
            f"--fp32 has no effect: {path} is no file that was made from a float32 one"
        )
    say(f"{path}: the digest holds")
    name = str((origin or stated).get("name"))
    # A file of others may have the same name; only those from the zoo state their weights.
    entry = ZOO.get(name) if "source_sha256" in stated else None
    if entry is not None:
        check_card(path, entry, stated)
    if missing(CONVERTING) is None:
        _check_graph(path)
    else:
        say("  graph not checked: onnx is not installed")
    if origin is not None and fp32 is not None:
        with closing(_fp32_file(path, Path(fp32), model, stated)) as source:
            _check_loss(path, stated, lambda t: source.run([t])[0], frames, say)
        return
    if entry is None:
        told = " (--fp32 FILE.onnx gives the file it was made from)" if origin is not None else ""
        say(f"  numbers not compared: '{name}' is not from a model of `list models`{told}")
        return
    lacking = missing(TRACING)
    if lacking is not None:
        say(f'  numbers not compared: {lacking} is not installed (pip install -e ".[torch]")')
        return
    from exporters.weights import one_thread

    with one_thread():
        network = _network(path, entry, stated, weights, say)
        if network is None:
            return
        run = torch_run(network, entry.outputs)
        if origin is not None:
            _check_loss(path, stated, lambda t: run(t[None]), frames, say)
            return
        for runtime in stated["parity"].get("runtimes", (FIRST_RUNTIME,)):
            _check_runtime(path, entry, run, frames, runtime, say)


def _check_runtime(
    path: Path, entry: Entry, run: Run, frames: str | None, runtime: str, say: Say
) -> None:
    try:
        outcome = compare(path, entry, run, frames, runtime)
    except DeviceError as error:
        say(f"  {runtime} not compared: {error}")
        return
    if not outcome.holds:
        raise ParityError(
            f"{path}: the file does not answer like the network ({runtime})\n"
            f"{table(outcome.problems)}"
        )
    say(f"  the numbers hold ({runtime}):")
    for line in outcome.lines():
        say(line)


def _network(
    path: Path, entry: Entry, stated: Mapping[str, Any], weights: str | None, say: Say
) -> nn.Module | None:
    """Return the network the file came from, or None and say why it cannot be had."""
    from exporters import onnx_export
    from exporters.weights import build

    facts: Mapping[str, Any] = stated.get("source", {})
    chosen = weights or str(facts.get("weights"))
    if chosen == "file":
        say("  numbers not compared: the weights were a file; give it with --weights FILE")
        return None
    try:
        network, source = build(entry, chosen, download=weights is not None)
    except ModelError as error:
        if weights is not None:
            raise
        say(f"  numbers not compared: {error}")
        return None
    if onnx_export.weights_sha256(network) != stated.get("source_sha256"):
        told = f"{path}: the weights ({chosen}) are not those it was exported from"
        if weights is None and chosen == "random":
            # Random numbers and sums may differ between versions of torch and processors.
            say(f"  numbers not compared: {told.partition(': ')[2]}; torch or machine differ")
            return None
        raise ParityError(told)
    names = list(entry.named(source.class_names).class_names)
    if names != stated.get("class_names"):
        raise ParityError(
            f"{path}: class_names is {short(stated.get('class_names'))}, expected {short(names)}"
        )
    return network


def _fp32_file(
    path: Path, fp32: Path, model: LoadedModel, stated: Mapping[str, Any]
) -> LoadedModel:
    """Return the float32 file, opened; raise where it is another than the one stated."""
    source = load(fp32)
    weights = stated.get("source_sha256")
    same = source.sha256 == stated["parity"]["fp32"]["sha256"] or (
        weights is not None and source.metadata.get("source_sha256") == weights
    )
    if not same or "fp32" in (source.metadata.get("parity") or {}):
        source.close()
        raise ParityError(f"{fp32} is not the float32 file that {path} was made from")
    other = read_otherwise(source, model)
    if other is not None:
        source.close()
        raise ParityError(f"{path}: a run would read {other} otherwise than in {fp32}")
    return source


def _check_loss(
    path: Path, stated: Mapping[str, Any], answer: Answer, frames: str | None, say: Say
) -> None:
    """Measure the loss again; raise where it is larger than the certificate says."""
    _, judged = halves(frames)
    with closing(load(path)) as model:
        loss = measure_loss(answer, model, judged)
    parity: Mapping[str, Any] = stated["parity"]
    if frames_sha256(judged) != parity["frames_sha256"]:
        say(
            "  measured on other pictures than the certificate's, so not judged "
            f"(it was made on {stated.get('export', {}).get('frames')}, --frames):"
        )
    else:
        _check_not_worse(path, parity, loss)
        say(f"  the loss is not larger than stated ({parity['loss']:.4f}):")
    for line in loss.lines():
        say(line)


def _check_not_worse(path: Path, parity: Mapping[str, Any], loss: Loss) -> None:
    results: Mapping[str, Any] = parity.get("results", {})
    for what, now, before in (
        ("loss", loss.loss, parity["loss"]),
        ("mean_score_diff", loss.mean_score_diff, results.get("mean_score_diff", 0.0)),
    ):
        if not now <= before + LOSS_TOLERANCE:
            raise ParityError(
                f"{path}: {what} is {now:.4f}, the certificate says {before:.4f}: the file does "
                f"not answer as when it was made\n{table(loss.differences)}"
            )


def _check_graph(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path} is no valid ONNX graph: {error}") from error
