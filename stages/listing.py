"""What `list` prints: the kinds with their options, the models and the example configurations.

Options, types, defaults and descriptions come from the config classes, so that the list cannot
disagree with what is accepted; certificates are what the files state, which a run checks. Pure
apart from looking at model and config files.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr
from pydantic_core import PydanticUndefined

from pipeline.config import Config
from pipeline.errors import ModelError
from pipeline.schema import QueueSettings, Settings
from stages.catalog import TABLES, Role
from stages.decoders.seal import DIGEST, read_card
from stages.model import FIRST_RUNTIMES
from stages.model_files import KnownModel, pulled_folder, pulled_models, shipped_models

CONFIGS_FOLDER: Final = Path(__file__).resolve().parent.parent / "configs"

TOPICS: Final = ("sources", "stages", "sinks", "models", "configs")


_ROLES: Final[dict[str, Role]] = {"sources": "source", "stages": "stage", "sinks": "sink"}


_COLUMNS: Final = ("name", "task", "input", "params", "licence", "weights", "certificate")

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], Iterable[str]]
"""Makes lines of a heading and rows."""


def listing(topic: str | None, known: Iterable[KnownModel], table: Table) -> Iterator[str]:
    """Yield the lines about a topic of `TOPICS`; all of them, shortened, for None.

    Args:
        topic: what to tell about.
        known: the models that can be pulled and exported.
        table: how tables are drawn.
    """
    for each in TOPICS if topic is None else (topic,):
        yield f"{each}:"
        if each == "models":
            yield from _model_names() if topic is None else _models(known, table)
        elif each == "configs":
            yield from _configs(options=topic is not None)
        else:
            for kind in TABLES[_ROLES[each]].values():
                yield f"  {kind.name:<12} {kind.summary}"
                if topic is not None:
                    yield from _options(kind.config_class())
        if topic is None:
            yield ""
    if topic is None:
        yield "options: run.py list sources, run.py list stages, run.py list sinks"


def _options(config: type[Config]) -> Iterator[str]:
    for name, field in config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        told = "required" if default is PydanticUndefined else f"default {_value(default)}"
        yield f"      {name}: {type_name(field.annotation)}, {told}"
        if field.description:
            yield f"          {field.description}"


def type_name(annotation: Any) -> str:  # noqa: ANN401 - whatever stands behind the colon
    """Return an annotation in words a user types: `number`, `true or false`, `auto | cpu`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_name(arg) for arg in args))
    if origin in (list, set, frozenset) or (origin is tuple and args[-1] is Ellipsis):
        return f"list of {type_name(args[0])}"
    if origin is tuple:
        return f"[{', '.join(type_name(arg) for arg in args)}]"
    if origin is not None:
        return "map"
    plain = {
        bool: "true or false",
        int: "integer",
        float: "number",
        Fraction: "number or fraction",
        str: "text",
        SecretStr: "text",
        ByteSize: "bytes",
        type(None): "none",
        object: "text or map",
    }
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "map"
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, BaseModel):
        return "as listed below"
    return str(value) or "''"


def _model_names() -> Iterator[str]:
    for how, files in (("built in", shipped_models()), ("pulled", pulled_models())):
        for name, path in files.items():
            yield f"  {name:<12} {path.stat().st_size / 1e6:.1f} MB, {how}"
    yield "  any .onnx file of a known layout: --model FILE.onnx"
    yield "  to be pulled or exported: run.py list models"


def _models(known: Iterable[KnownModel], table: Table) -> Iterator[str]:
    pulled = pulled_models()
    rows = [_file_row(name, path, "built in") for name, path in shipped_models().items()]
    for model in known:
        here = pulled.pop(model.name, None)
        rows.append(_known_row(model, here))
    rows += [_file_row(name, path, "pulled") for name, path in pulled.items()]
    yield from table(_COLUMNS, rows)
    yield "any .onnx file of a known layout: --model FILE.onnx"
    yield f"run.py models pull NAME gets one for --model NAME, kept in {pulled_folder()}"
    yield "run.py export NAME writes a file, with other weights too; both need the extra torch"


def _known_row(model: KnownModel, file: Path | None) -> tuple[str, ...]:
    weights = "none published"
    if model.weights_url is not None:
        weights = ".".join(model.weights_url.split("/")[2].split(".")[-2:])
    if file is not None:
        weights += f", pulled: {_megabytes(file)}"
    elif model.weights_here:
        weights += ", downloaded"
    width, height = model.input_wh
    return (
        model.name,
        model.task,
        f"{width}x{height}",
        f"{model.parameters / 1e6:.1f} M",
        model.licence or "-",
        weights,
        "-" if file is None else _certificate(_card(file)),
    )


def _file_row(name: str, path: Path, how: str) -> tuple[str, ...]:
    card = _card(path)
    says: Mapping[str, Any] = card or {}
    size = says.get("preprocessing", {}).get("size_wh", ())
    return (
        name,
        str(says.get("task", "-")),
        "x".join(map(str, size)) or "-",
        "-",
        str(says.get("licence", "-")),
        f"{how}: {_megabytes(path)}",
        _certificate(card),
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _card(path: Path) -> Mapping[str, Any] | None:
    """Return what a file says of itself; None where it is damaged."""
    try:
        return read_card(path)
    except (ModelError, OSError):
        return None


def _certificate(card: Mapping[str, Any] | None) -> str:
    """Return the runtimes that were compared with the network, as the file states it."""
    if card is None:
        return "the file is damaged"
    parity = card.get("parity")
    if not isinstance(parity, Mapping):
        return "none"
    # Iterating gives the names, be they a list or the keys of an object.
    runtimes = ", ".join(map(str, parity.get("runtimes", FIRST_RUNTIMES)))
    return runtimes if DIGEST in card else f"{runtimes}; no digest"


def _configs(*, options: bool) -> Iterator[str]:
    for path in sorted(CONFIGS_FOLDER.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        summary = first.removeprefix("#").strip() if first.startswith("#") else ""
        yield f"  {path.name:<18} {summary}"
    if options:
        yield "  keys of a configuration file:"
        for line in _options(Settings):
            yield line
        yield "  keys of queues:"
        for line in _options(QueueSettings):
            yield line
