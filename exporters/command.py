"""What `export` does: from a name, or a float32 file, to a certified file.

torch and ONNX are imported when the work begins; where the extra is missing the error says so. One
thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters import onnx_export
from exporters.answers import FIRST_RUNTIME, Say, compare, load, table, torch_run
from exporters.cards import card_of
from exporters.frames import SYNTHETIC, pictures
from exporters.reduced import Wanted, write_reduced
from exporters.requirements import CONVERTING, TRACING, need, versions
from exporters.zoo import Entry, find
from pipeline.errors import ParityError, UsageError
from stages.decoders.seal import seal

if TYPE_CHECKING:
    from exporters.download import Progress


def export_model(
    name: str,
    out: str | None,
    *,
    weights: str | None,
    frames: str | None,
    overwrite: bool,
    say: Say,
    progress: Progress | None = None,
    precision: str = "fp32",
    data: Path | None = None,
    max_loss: float | None = None,
    runtimes: Sequence[str] = (),
) -> Path:
    """Write a certified ONNX file and return its path.

    Args:
        name: a name of the zoo; for fp16 and int8 also a float32 ONNX file.
        out: the file; where it is None NAME.onnx or NAME-PRECISION.onnx in the working folder.
        weights: `official`, `random` or a checkpoint; official where it is None.
        frames: clip or folder to compare on; the synthetic scene where it is None.
        overwrite: replace a file that exists.
        say: told the steps and the certificate.
        progress: told about a download.
        precision: fp32, fp16 or int8.
        data: labelled pictures, to measure the accuracy on; fp16 and int8 only.
        max_loss: the most that may be lost, see `reduced.Wanted`; fp16 and int8 only.
        runtimes: names of `answers.RUNTIMES` to certify on besides ONNX Runtime on the CPU; fp32
            only.

    Raises:
        ParityError: the file does not answer like the network, or lost more than allowed; nothing
            was written.
        UsageError: a name, path or choice that cannot work, or the torch extra is missing.
        ModelError: weights or file cannot be had, do not fit or cannot be converted.
    """
    from_file = name.lower().endswith(".onnx")
    _check_choices(name, weights, precision, data, max_loss, from_file=from_file)
    stem = Path(name).stem if from_file else find(name).name
    path = _target(
        out or (f"{stem}.onnx" if precision == "fp32" else f"{stem}-{precision}.onnx"),
        overwrite=overwrite,
    )
    if precision != "fp32" and runtimes:
        raise UsageError("--runtime is for --precision fp32: what fp16 and int8 lose differs by it")
    need(CONVERTING if from_file else TRACING)
    wanted = Wanted(precision, frames, data, max_loss)
    if from_file:
        write_reduced(Path(name).expanduser(), path, wanted, say)
        return path
    from exporters.weights import one_thread

    with one_thread():
        if precision == "fp32":
            _export(find(name), path, weights, frames, say, progress, runtimes)
            return path
        with tempfile.TemporaryDirectory(prefix="rackfocus-") as folder:
            whole = Path(folder) / f"{name}.onnx"
            _export(find(name), whole, weights, frames, say, progress)
            write_reduced(whole, path, wanted, say)
    return path


def _check_choices(
    name: str,
    weights: str | None,
    precision: str,
    data: Path | None,
    max_loss: float | None,
    *,
    from_file: bool,
) -> None:
    if from_file:
        if precision == "fp32":
            raise UsageError(
                f"{name} is an ONNX file already: --precision fp16 or int8 makes a smaller one"
            )
        if not Path(name).expanduser().is_file():
            raise UsageError(f"there is no file {name}")
        if weights is not None:
            raise UsageError(f"--weights has no effect: {name} has its own")
    if precision == "fp32" and (data is not None or max_loss is not None):
        raise UsageError("--data and --max-loss are for --precision fp16 and int8")
    if max_loss is not None and not 0 <= max_loss <= 1:
        raise UsageError(f"--max-loss {max_loss:g}: expected a share, 0 to 1")


def _export(
    entry: Entry,
    path: Path,
    weights: str | None,
    frames: str | None,
    say: Say,
    progress: Progress | None,
    runtimes: Sequence[str] = (),
) -> None:
    from exporters.weights import OFFICIAL, build

    seen = pictures(frames)
    network, source = build(entry, weights or OFFICIAL, progress=progress)
    say(f"{entry.name}: {_weights_line(source.facts())}")
    entry = entry.named(source.class_names)
    draft = onnx_export.describe(card_of(entry, source.licence), network, None)
    del draft["parity"]
    legacy = entry.exporter == "legacy"
    draft["source"] = dict(source.facts())
    draft["export"] = {
        "exporter": entry.exporter,
        "opset": onnx_export.LEGACY_OPSET if legacy else onnx_export.OPSET,
        "precision": "fp32",
        "frames": SYNTHETIC if frames is None else Path(frames).name,
        "versions": versions(("torch", "torchvision", "onnx", "onnxruntime")),
    }
    graph = onnx_export.to_graph(
        network,
        example(entry, seen[0].image),
        entry.outputs,
        legacy=legacy,
        dynamic_batch=entry.dynamic_batch,
        dynamic_size=entry.dynamic_size,
    )
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(seal(graph, draft))
        run = torch_run(network, entry.outputs)
        outcomes = {}
        for runtime in dict.fromkeys([FIRST_RUNTIME, *runtimes]):
            outcomes[runtime] = compare(part, entry, run, frames, runtime)
            if not outcomes[runtime].holds:
                raise ParityError(
                    f"{path.name}: the exported file does not answer like the network ({runtime}); "
                    f"nothing was written\n{table(outcomes[runtime].problems)}"
                )
        parity = {**outcomes[FIRST_RUNTIME].facts(), "runtimes": list(outcomes)}
        part.write_bytes(seal(graph, {**draft, "parity": parity}))
        load(part).close()
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    say(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, certificate:")
    for runtime, outcome in outcomes.items():
        say(f"  {runtime}")
        for line in outcome.lines():
            say(line)


def example(entry: Entry, image: Any) -> Any:  # noqa: ANN401 - NumPy arrays
    """Return what to trace the network on."""
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
