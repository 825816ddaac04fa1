"""The run configuration: one schema for YAML files and flags.

This module knows the shape (a source, a chain of stages, sinks, queues, limits) and no kinds: which
sources, stages and sinks exist, and their options, is the catalog's business. Pure; safe from any
thread.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from pydantic import ByteSize, Field, ValidationError

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.problems import Origins, Problems, did_you_mean, explain, show
from pipeline.yamlfile import Document, KeyPath, parse_value

DEFAULT_STAGES: Final = ("preprocess", "infer", "nms", "overlay")
"""The chain of a run that names no stages."""

_LISTS: Final = ("source", "sources", "stages", "sinks")
# A name ends up in reports, frame ids and file names.
_NAME: Final = re.compile(r"\w[\w.-]*")


class QueueSettings(Config):
    """The queues between threads."""

    capacity: int = Field(
        default=4, ge=1, le=10_000, description="Frames that one queue holds at most."
    )
    max_bytes: ByteSize = Field(
        default=ByteSize(256 * 1024 * 1024),
        ge=1,
        description="Bytes that one queue holds at most: a number, or text such as '256MiB'.",
    )
    threads: Literal["per_stage", "single"] = Field(
        default="per_stage",
        description="per_stage: sources, sinks and the stages with a queue have a thread each; "
        "single: one for all.",
    )


class Settings(Config):
    """A whole run, as written: sources, stages and sinks are still unchecked entries."""

    source: object = Field(None, description="The source: text as on the command line, or a map.")
    sources: list[object] = Field(
        default_factory=list, description="Several sources, each as `source`; instead of it."
    )
    model: str | None = Field(
        None, min_length=1, description="Model name or .onnx file, for the stage 'infer'."
    )
    device: str | None = Field(
        None,
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where the model runs: auto, cpu, cuda or cuda:N.",
    )
    backend: Literal["auto", "onnx", "openvino", "torch"] | None = Field(
        None, description="What runs the model."
    )
    stages: list[object] | None = Field(
        None,
        description=f"The chain, in order; without it: {', '.join(DEFAULT_STAGES)}.",
    )
    sinks: list[object] = Field(default_factory=list, description="Where the results go.")
    queues: QueueSettings = Field(QueueSettings(), description="The queues between threads.")
    mode: Literal["auto", "live", "offline"] = Field(
        "auto", description="live drops rather than lags; offline processes every frame."
    )
    max_frames: int | None = Field(None, ge=1, description="Stop after this many frames a source.")
    duration_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Stop after this many seconds."
    )
    max_age_ms: float | None = Field(
        500,
        gt=0,
        allow_inf_nan=False,
        description="Live: frames older than this are dropped before inference and counted as "
        "stale; null for no limit.",
    )
    report: str | None = Field(None, min_length=1, description="File for the run report, JSON.")
    overwrite: bool = Field(default=False, description="Replace output files that exist.")


@dataclass(frozen=True, slots=True)
class Component:
    """One entry of `sources`, `stages` or `sinks`, taken apart but not yet checked."""

    path: KeyPath
    """Where the entry stands."""
    inner: KeyPath
    """Where its options stand below that: () for {kind: nms, ...}, ("nms",) for {nms: {...}}."""
    kind: str | None
    """None where it has to be recognised from the address."""
    address: str | None
    """The text of a SOURCE or SINK; None where the entry names its kind."""
    name: str | None
    options: Mapping[str, object] = field(default_factory=dict)

    def option_path(self, *keys: str) -> KeyPath:
        """Return where an option stands in the configuration."""
        return (*self.path, *self.inner, *keys)

    def with_option(self, keys: Sequence[str], value: object) -> Component:
        """Return a copy with one option replaced; `keys` leads to it from the top option down."""
        options: dict[str, Any] = copy.deepcopy(dict(self.options))
        target = options
        for key in keys[:-1]:
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            target = inner
        target[keys[-1]] = value
        return replace(self, options=options)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `--set KEY=VALUE`."""

    keys: tuple[str, ...]
    value: object
    where: str
    """`--set KEY`, for messages."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A run as it was asked for: checked in shape, its components not yet looked up."""

    settings: Settings
    sources: tuple[Component, ...]
    stages: tuple[Component, ...]
    sinks: tuple[Component, ...]
    assignments: tuple[Assignment, ...]
    """Those of `--set` that address a source, stage or sink."""
    origins: Origins


def parse_assignment(text: str) -> Assignment:
    """Return what `KEY=VALUE` says; the value is read as YAML.

    Raises:
        ConfigError: there is no `=`, no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {show(text)}: expected KEY=VALUE with a dotted key, "
            "for example --set nms.score_threshold=0.4"
        )
    where = f"--set {key.strip()}"
    try:
        return Assignment(keys, parse_value(value), where)
    except ConfigError:
        raise ConfigError(f"{where}: {show(value)} is not a YAML value; quote it") from None


def load_config(
    document: Document | None,
    flags: Mapping[str, tuple[object, str]],
    assignments: Sequence[Assignment],
    problems: Problems,
) -> RunConfig | None:
    """Merge a file with flags and `--set`, later ones first in rank, and check the shape.

    Args:
        document: the YAML file, if any.
        flags: top-level key to (value, the flag's name for messages).
        assignments: from `--set`; those of top-level keys are applied here.
        problems: receives what is wrong.

    Returns:
        The run as asked for, or None where its shape is too broken to go on.
    """
    origins = Origins(document)
    content = document.value if document is not None else None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        problems.add(origins.where(()), f"expected a mapping of keys, got {show(content)}")
        return None
    data: dict[str, Any] = copy.deepcopy(content)
    if "source" in flags or "sources" in flags:
        data.pop("source", None)
        data.pop("sources", None)
    for key, (value, where) in flags.items():
        data[key] = value
        origins.put((key,), where)
    rest = [a for a in assignments if not _apply(a, data, origins, problems)]
    if data.get("source") is not None and data.get("sources"):
        problems.add(origins.where(("sources",)), "give either 'source' or 'sources', not both")
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        explain(error, Settings, "the configuration", (), origins, problems)
        return _without_broken_keys(data, error, rest, origins, problems)
    return _components(settings, tuple(rest), origins, problems)


def _without_broken_keys(
    data: dict[str, Any],
    error: ValidationError,
    rest: Sequence[Assignment],
    origins: Origins,
    problems: Problems,
) -> RunConfig | None:
    """Go on without the wrong top-level keys, so that the problems of the others are found too."""
    broken = {item["loc"][0] for item in error.errors() if item["loc"]}
    try:
        settings = Settings.model_validate({k: v for k, v in data.items() if k not in broken})
    except ValidationError:
        return None
    return _components(settings, tuple(rest), origins, problems)


def _apply(
    assignment: Assignment, data: dict[str, Any], origins: Origins, problems: Problems
) -> bool:
    """Apply `--set` of a top-level key; False where it addresses a component."""
    root = assignment.keys[0]
    if root in _LISTS:
        problems.add(
            assignment.where,
            f"'{root}' cannot be set from here; address a stage, source or sink by its kind or "
            "name, for example --set nms.score_threshold=0.4",
        )
        return True
    if root not in Settings.model_fields:
        if len(assignment.keys) > 1:
            return False
        known = [name for name in Settings.model_fields if name not in _LISTS]
        problems.add(
            assignment.where,
            f"unknown key '{root}'{did_you_mean(root, known)} (known keys: {', '.join(known)}; "
            "options of a stage are KIND.OPTION)",
        )
        return True
    target: dict[str, Any] = data
    for key in assignment.keys[:-1]:
        inner = target.get(key)
        if not isinstance(inner, dict):
            inner = target[key] = {}
        target = inner
    target[assignment.keys[-1]] = assignment.value
    origins.put(assignment.keys, assignment.where)
    return True


def _components(
    settings: Settings, rest: tuple[Assignment, ...], origins: Origins, problems: Problems
) -> RunConfig:
    sources: list[tuple[KeyPath, object]] = [
        (("sources", i), entry) for i, entry in enumerate(settings.sources)
    ]
    if settings.source is not None:
        sources = [(("source",), settings.source)]
    stages = settings.stages if settings.stages is not None else list(DEFAULT_STAGES)
    parts: dict[str, tuple[Component, ...]] = {}
    for role, entries in (
        ("source", sources),
        ("stage", [(("stages", i), entry) for i, entry in enumerate(stages)]),
        ("sink", [(("sinks", i), entry) for i, entry in enumerate(settings.sinks)]),
    ):
        found = []
        for path, entry in entries:
            component, complaint = parse_entry(entry, path, addressable=role != "stage")
            if component is None:
                problems.add(origins.where(path), f"this {role} entry {complaint}")
            else:
                found.append(component)
        parts[role] = tuple(found)
    return RunConfig(settings, parts["source"], parts["stage"], parts["sink"], rest, origins)


def parse_entry(entry: object, path: KeyPath, *, addressable: bool) -> tuple[Component | None, str]:
    """Take an entry of `sources`, `stages` or `sinks` apart.

    Args:
        entry: text, `{kind: K, option: ...}` or `{K: {option: ...}}`.
        path: where it stands.
        addressable: text is an address (a source or sink), not a kind.

    Returns:
        The component and "", or None and what is wrong with the entry.
    """
    if isinstance(entry, int) and not isinstance(entry, bool):
        entry = str(entry)  # `source: 0` is the first camera
    if isinstance(entry, str) and entry.strip():
        kind, address = (None, entry) if addressable else (entry, None)
        return Component(path, (), kind, address, None), ""
    if not isinstance(entry, dict) or not entry:
        return None, f"is {show(entry)}; expected a name or a map such as {{kind: ...}}"
    inner: KeyPath
    if "kind" in entry:
        kind, inner, options = entry["kind"], (), {k: v for k, v in entry.items() if k != "kind"}
        if not isinstance(kind, str):
            return None, f"has the kind {show(kind)}; expected a word"
    elif len(entry) == 1:
        kind, body = next(iter(entry.items()))
        inner, options = (kind,), {} if body is None else body
        if not isinstance(options, dict):
            return None, f"gives '{kind}' the value {show(body)}; expected a map of its options"
        options = dict(options)
    else:
        first = next(iter(entry))
        lost = entry[first] is None
        remedy = f"indent the options below '{first}:'" if lost else f"write {{{first}: {{...}}}}"
        keys = ", ".join(f"'{key}'" for key in entry)
        return None, f"has the keys {keys} and no 'kind'; {remedy}, or add 'kind: ...'"
    name = options.pop("name", None)
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        return None, f"has the name {show(name)}; expected letters, digits, '_', '.' and '-'"
    return Component(path, inner, kind, None, name, options), ""
