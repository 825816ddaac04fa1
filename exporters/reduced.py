"""From a float32 file to one with smaller numbers that states what was lost.

The float32 file may be of ours or any that a run recognises; torch is not needed. One thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporters.answers import Say, load, table
from exporters.cards import precision_of
from exporters.frames import SYNTHETIC, halves
from exporters.loss import SCHEMA, Loss, measure_loss
from exporters.precision import Reduced, reduce
from exporters.requirements import versions
from pipeline.errors import ModelError, ParityError, UsageError
from stages.decoders.metadata import KEY
from stages.decoders.metadata import SCHEMA as CARD_SCHEMA
from stages.decoders.seal import DIGEST, seal

if TYPE_CHECKING:
    from exporters.accuracy.labelled import Labelled
    from stages.model import LoadedModel

MAX_LOSS: Final[Mapping[str, float]] = {"fp16": 0.02, "int8": 0.1}
"""Share of detections that may differ. Those whose scores lie around the threshold do: YOLOX-nano
with its published weights lost 0 and 0.05. Random weights lose 0.001 to 0.017 in fp16, and in int8
up to 0.7: untrained layers have no margin, and no scale rescues them."""
MAX_MAP_DROP: Final[Mapping[str, float]] = {"fp16": 0.005, "int8": 0.03}
"""Of mAP50-95, where labels are given. With its published weights YOLOX-nano lost 0.017 in int8."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What the file with smaller numbers shall be."""

    precision: str
    """fp16 or int8."""
    frames: str | None = None
    """Clip or folder to measure ranges and loss on; the synthetic scene where it is None."""
    data: Path | None = None
    """Labelled pictures, to measure the accuracy on."""
    max_loss: float | None = None
    """The limit: of the drop in mAP50-95 with `data`, else of `Loss.loss`; None for the default."""

    def limit(self) -> float:
        """Return the limit that holds."""
        if self.max_loss is not None:
            return self.max_loss
        return (MAX_LOSS if self.data is None else MAX_MAP_DROP)[self.precision]


def write_reduced(source: Path, path: Path, wanted: Wanted, say: Say) -> None:
    """Write the file.

    Args:
        source: the float32 file.
        path: the file to write; it appears when all is done, or not at all.
        wanted: what it shall be.
        say: told the steps and the certificate.

    Raises:
        ParityError: more was lost than allowed; nothing was written.
        ModelError: the source cannot be read, recognised or converted.
        UsageError: frames, labels or path that cannot work.
    """
    labelled = _labelled(wanted)
    with closing(load(source)) as model:
        card = dict(model.metadata) or _foreign_card(model)
        if precision_of(card) != "fp32":
            raise ModelError(
                f"{source} is {precision_of(card)} already; give the float32 file it was made from"
            )
        calibration, judged = halves(wanted.frames)
        made = _reduce(source, model, wanted.precision, calibration)
        draft = _draft(card, wanted, made)
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_bytes(seal(made.graph, draft))
            with closing(load(part)) as reduced:
                other = read_otherwise(model, reduced)
                if other:
                    raise ModelError(
                        f"{source}: a run would read {other} of the new file otherwise"
                    )
                loss = measure_loss(lambda t: model.run([t])[0], reduced, judged, labelled)
            parity = _parity(card, model, wanted, made, loss)
            _check_limit(path, wanted, loss)
            part.write_bytes(seal(made.graph, {**draft, "parity": parity}))
            load(part).close()
            part.replace(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
    kept = f", {len(made.kept)} of {made.layers} layers in float32" if made.kept else ""
    say(f"{path}: {wanted.precision}{kept}, {path.stat().st_size / 1e6:.1f} MB, against fp32:")
    for line in loss.lines():
        say(line)
    say(f"  limit     {wanted.limit():g} {_of_what(wanted)}")


def _labelled(wanted: Wanted) -> Labelled | None:
    if wanted.data is None:
        return None
    from exporters.accuracy.layouts import read_labelled

    return read_labelled(wanted.data)


def _reduce(source: Path, model: LoadedModel, precision: str, calibration: Any) -> Reduced:  # noqa: ANN401 - pictures
    import onnx

    from stages.fitting import Fitter

    graph = onnx.load(str(source))
    ours = [entry for entry in graph.metadata_props if entry.key == KEY]
    for entry in ours:
        graph.metadata_props.remove(entry)
    fitter = Fitter(model.preprocessing)
    tensors = [fitter.fit(picture.image)[0] for picture in calibration]
    batched = len(model.backend.inputs[0].shape) == 4
    feeds = [tensor[None] if batched else tensor for tensor in tensors]
    try:
        return reduce(graph.SerializeToString(), precision, feeds)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error


def _draft(card: Mapping[str, Any], wanted: Wanted, made: Reduced) -> dict[str, Any]:
    """Return the card without its certificate."""
    draft = {key: value for key, value in card.items() if key not in (DIGEST, "parity")}
    draft["name"] = f"{card['name']}-{wanted.precision}"
    before: Mapping[str, Any] = card.get("export", {})
    draft["export"] = {
        **before,
        "precision": wanted.precision,
        "frames": SYNTHETIC if wanted.frames is None else Path(wanted.frames).name,
        "float32_layers": list(made.kept),
        "versions": {**before.get("versions", {}), **versions(("onnx", "onnxruntime"))},
    }
    return draft


def _parity(
    card: Mapping[str, Any], model: LoadedModel, wanted: Wanted, made: Reduced, loss: Loss
) -> dict[str, Any]:
    """Return the certificate."""
    return {
        "schema": SCHEMA,
        "precision": wanted.precision,
        "layers": made.layers,
        "layers_in_float32": len(made.kept),
        **loss.facts(),
        "limit": {"of": _of_what(wanted), "value": wanted.limit()},
        "fp32": {"name": card["name"], "sha256": model.sha256, "parity": card.get("parity")},
    }


def _of_what(wanted: Wanted) -> str:
    return "loss" if wanted.data is None else "drop of mAP50-95"


def _check_limit(path: Path, wanted: Wanted, loss: Loss) -> None:
    lost = loss.loss if loss.map_drop is None else loss.map_drop
    # Written so that a loss that is no number is over it.
    if lost <= wanted.limit():
        return
    advice = "" if wanted.frames else "; --frames takes pictures like those it is meant for"
    raise ParityError(
        f"{path}: {wanted.precision} loses {lost:.4f} ({_of_what(wanted)}), {wanted.limit():g} is "
        f"allowed (--max-loss); nothing was written{advice}\n"
        + "\n".join([*loss.lines(), table(loss.differences)])
    )


def read_otherwise(before: LoadedModel, after: LoadedModel) -> str | None:
    """Return what a run would read otherwise in one file than in the other, or None."""
    pairs = {
        "the decoder": (before.decoder.kind, after.decoder.kind),
        "its options": (dict(before.options), dict(after.options)),
        "the preprocessing": (before.preprocessing, after.preprocessing),
        "the class names": (before.class_names, after.class_names),
    }
    return next((what for what, (one, other) in pairs.items() if one != other), None)


def _foreign_card(model: LoadedModel) -> dict[str, Any]:
    """Return what a file of others says of itself, as it was recognised."""
    metadata = model.backend.metadata
    return {
        "schema": CARD_SCHEMA,
        "name": model.name,
        "task": _task(model),
        "decoder": model.decoder.kind,
        "options": dict(model.options),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "class_names": list(model.class_names),
        "licence": metadata.get("license", "unknown"),
        "source": {"weights": "file", "file": model.path.name, "file_sha256": model.sha256},
    }


def _task(model: LoadedModel) -> str:
    found = model.decoder.decode(model.run([model.blank()])[0], 0.0)
    if found.class_map is not None:
        return "semantic"
    if found.masks is not None:
        return "segment"
    return "detect" if found.keypoints is None else "keypoints"
