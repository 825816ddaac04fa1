"""What `list` prints: the kinds with their options, the models and the example configurations.

Options, types, defaults and descriptions come from the config classes, so that the list cannot
disagree with what is accepted. Pure apart from looking for model and config files.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic_core import PydanticUndefined

from pipeline.config import Config
from pipeline.schema import QueueSettings, Settings
from stages.catalog import TABLES, Role

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS_FOLDER: Final = ROOT / "models" / "weights"
CONFIGS_FOLDER: Final = ROOT / "configs"

TOPICS: Final = ("sources", "stages", "sinks", "models", "configs")

_ROLES: Final[dict[str, Role]] = {"sources": "source", "stages": "stage", "sinks": "sink"}


def listing(topic: str | None, exportable: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines about a topic of `TOPICS`; all of them, shortened, for None.

    Args:
        topic: what to tell about.
        exportable: a line for each model that `export` knows.
    """
    if topic is None:
        for each in TOPICS:
            yield from _lines(each, exportable, options=False)
            yield ""
        yield "options: run.py list sources, run.py list stages, run.py list sinks"
        return
    yield from _lines(topic, exportable, options=True)


def _lines(topic: str, exportable: Iterable[str], *, options: bool) -> Iterator[str]:
    yield f"{topic}:"
    if topic == "models":
        yield from _models()
        if options:
            yield "  to be exported, with the extra torch (run.py export NAME):"
            for line in exportable:
                yield f"  {line}"
        else:
            yield "  to be exported: run.py list models"
    elif topic == "configs":
        yield from _configs(options=options)
    else:
        for kind in TABLES[_ROLES[topic]].values():
            yield f"  {kind.name:<12} {kind.summary}"
            if options:
                yield from _options(kind.config_class())


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


def _models() -> Iterator[str]:
    found = sorted(MODELS_FOLDER.glob("*.onnx"))
    for path in found:
        size = path.stat().st_size / 1e6
        yield f"  {path.stem:<12} {size:.1f} MB, built in"
    if not found:
        yield "  none is built in"
    yield "  any .onnx file of a known layout: --model FILE.onnx"


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
