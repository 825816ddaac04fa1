"""A run as it will be: every source, stage and sink with its kind, name and checked options.

Planning looks kinds up in the catalog, applies the shorthands and `--set`, and checks the order of
the chain. It opens nothing and collects all problems instead of stopping at the first. Used before
a run, by one thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import ValidationError

from pipeline.config import Config
from pipeline.errors import UsageError
from pipeline.problems import Origins, Problems, did_you_mean, explain, show
from pipeline.schema import Assignment, Component, RunConfig, Settings, parse_entry
from stages.addresses import SINK_FORMS, SOURCE_FORMS, Address, parse_sink, parse_source
from stages.catalog import STAGES, TABLES, Kind, Role
from stages.sinks.window import has_display

SYNTHETIC_MODEL: Final = "shapes"
"""The shipped model, trained on the synthetic scenes; the default where all sources are such."""

_PLURAL: Final[Mapping[Role, str]] = {"source": "sources", "stage": "stages", "sink": "sinks"}


@dataclass(frozen=True, slots=True)
class Part:
    """One source, stage or sink of a run."""

    kind: Kind
    name: str
    """Unique among all parts of the run."""
    config: Config
    component: Component
    """The entry it was made from."""
    where: str
    """The place of the entry, for messages; "" for defaults."""
    inner: Part | None = None
    """The source that a wrapping one is made of."""

    @property
    def innermost(self) -> Part:
        """The source that really reads: this one, or the one inside."""
        return self if self.inner is None else self.inner.innermost


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run."""

    settings: Settings
    sources: tuple[Part, ...]
    stages: tuple[Part, ...]
    sinks: tuple[Part, ...]
    origins: Origins

    def queued(self) -> dict[str, bool]:
        """Return, by name, which stages were told to have or not to have a queue."""
        told = {part.name: getattr(part.config, "queue", None) for part in self.stages}
        return {name: queue for name, queue in told.items() if queue is not None}

    def effective(self) -> dict[str, object]:
        """Return the whole configuration with all defaults, as JSON-able values for the report."""
        plain = self.settings.model_dump(
            mode="json",
            exclude={"source", "sources", "stages", "sinks", "model", "device", "backend"},
        )
        for role, parts in (("sources", self.sources), ("stages", self.stages)):
            plain[role] = [_entry(part) for part in parts]
        return plain | {"sinks": [_entry(part) for part in self.sinks]}


def _entry(part: Part) -> dict[str, object]:
    entry = {"kind": part.kind.name, "name": part.name, **part.config.model_dump(mode="json")}
    return entry if part.inner is None else entry | {"source": _entry(part.inner)}


@dataclass(slots=True)
class _Draft:
    """A part whose options are not checked yet."""

    kind: Kind
    component: Component
    stream: str = ""
    inner: _Draft | None = None

    def chain(self) -> list[_Draft]:
        """Return this one and those inside it."""
        return [self, *(self.inner.chain() if self.inner is not None else ())]


def make_plan(config: RunConfig, problems: Problems) -> Plan | None:
    """Check everything that can be checked without opening anything.

    Args:
        config: the run as asked for.
        problems: receives what is wrong.

    Returns:
        The plan; None where there were problems, earlier ones of `problems` included.
    """
    origins = config.origins
    sources = _drafts("source", config.sources, origins, problems)
    stages = _drafts("stage", config.stages, origins, problems)
    sinks = _drafts("sink", config.sinks, origins, problems)
    if not config.sources and not problems.texts:
        problems.add("", f"no source: give {SOURCE_FORMS}")
    if not config.sinks and (default := _default_sink(problems)):
        sinks = [default]
    # A kind that was not found would make every later complaint about the chain a wrong one.
    whole_chain = len(stages) == len(config.stages)
    _share_settings(
        config.settings, stages, sinks, origins, problems if whole_chain else Problems()
    )
    for assignment in config.assignments:
        _assign(assignment, stages, sinks, sources, origins, problems)
    _default_model(config.settings, sources, stages, origins, problems)
    if whole_chain:
        _check_order(stages, origins, problems)
    names = _names([*stages, *sinks, *sources], origins, problems)
    parts = {
        id(draft): part
        for draft, name in zip([*stages, *sinks, *sources], names, strict=True)
        if (part := _validate(draft, name, origins, problems)) is not None
    }
    _check_tracking([parts[id(d)] for d in stages if id(d) in parts], origins, problems)
    if problems.texts:
        return None
    return Plan(
        config.settings,
        tuple(parts[id(draft)] for draft in sources),
        tuple(parts[id(draft)] for draft in stages),
        tuple(parts[id(draft)] for draft in sinks),
        origins,
    )


def _drafts(
    role: Role, components: Sequence[Component], origins: Origins, problems: Problems
) -> list[_Draft]:
    """Look the kinds up; entries that stand for none become problems."""
    drafts = (_draft(role, component, origins, problems) for component in components)
    return [draft for draft in drafts if draft is not None]


def _draft(role: Role, component: Component, origins: Origins, problems: Problems) -> _Draft | None:
    where, address = origins.where(component.path), Address("")
    if component.address is not None:
        try:
            parse = parse_source if role == "source" else parse_sink
            address = parse(component.address)
        except UsageError as error:
            problems.add(where, str(error))
            return None
        component = replace(component, kind=address.kind, options=dict(address.options))
    name = component.kind or ""
    kind = TABLES[role].get(name)
    if kind is None:
        known = sorted(TABLES[role])
        problems.add(
            origins.where((*component.path, *(component.inner or ("kind",)))),
            f"unknown {role} kind {show(name)}{did_you_mean(name, known)} "
            f"(known {_PLURAL[role]}: {', '.join(known)})",
        )
        return None
    draft = _Draft(kind, component, address.stream)
    if kind.wraps and component.options.get("source") is not None:
        path = component.option_path("source")
        inner, complaint = parse_entry(component.options["source"], path, addressable=True)
        if inner is None:
            problems.add(origins.where(path), f"'source' of {role} '{name}' {complaint}")
            return None
        draft.inner = _draft(role, inner, origins, problems)
        if draft.inner is None:
            return None
        draft.stream = draft.inner.component.name or draft.inner.stream
    return draft


def _default_sink(problems: Problems) -> _Draft | None:
    if not has_display(os.environ, sys.platform):
        problems.add(
            "",
            "no output, and no screen for a window: add -o SINK (in YAML: sinks), for example "
            f"-o out.mp4; a sink is {SINK_FORMS}",
        )
        return None
    component = Component(("sinks", 0), (), "window", None, None)
    return _Draft(TABLES["sink"]["window"], component)


def _share_settings(
    settings: Settings,
    stages: Sequence[_Draft],
    sinks: Sequence[_Draft],
    origins: Origins,
    problems: Problems,
) -> None:
    """Hand `model`, `device`, `backend` to the infer stages, and `overwrite` to the sinks."""
    infers = [draft for draft in stages if draft.kind.name == "infer"]
    for key in ("model", "device", "backend"):
        value = getattr(settings, key)
        if value is None:
            continue
        where = origins.where((key,))
        if not infers:
            problems.add(where, f"'{key}' has no effect: the chain has no stage 'infer'")
        for draft in infers:
            # A flag outranks the file; two places of one file contradict each other.
            if key in draft.component.options and not where.startswith("--"):
                other = origins.where(draft.component.option_path(key))
                problems.add(where, f"'{key}' is given here and at {other}; remove one")
            _set(draft, (key,), value, where, origins)
    if settings.overwrite:
        for draft in sinks:
            options = draft.component.options
            if "overwrite" in draft.kind.config_class().model_fields and "overwrite" not in options:
                _set(draft, ("overwrite",), value=True, where="", origins=origins)


def _set(draft: _Draft, keys: Sequence[str], value: object, where: str, origins: Origins) -> None:
    draft.component = draft.component.with_option(keys, value)
    if where:
        origins.put(draft.component.option_path(*keys), where)


def _assign(
    assignment: Assignment,
    stages: Sequence[_Draft],
    sinks: Sequence[_Draft],
    sources: Sequence[_Draft],
    origins: Origins,
    problems: Problems,
) -> None:
    """Apply one `--set`: to the part with that name, else to the only one of that kind."""
    root, *keys = assignment.keys
    sources = [each for source in sources for each in source.chain()]
    drafts = [*stages, *sinks, *sources]
    named = [d for d in drafts if d.component.name == root]
    # Stages first: a sink or source is meant only where no stage has that kind.
    by_kind = next(
        (f for g in (stages, sinks, sources) if (f := [d for d in g if d.kind.name == root])), []
    )
    targets = named or by_kind
    wrapping = any(target.kind.wraps for target in targets)
    if keys in (["name"], ["kind"]) or (wrapping and keys[:1] == ["source"]):
        problems.add(assignment.where, f"a {keys[0]} is given in the file, where the part stands")
        return
    if len(targets) == 1:
        _set(targets[0], keys, assignment.value, assignment.where, origins)
        return
    if targets:
        text = f"'{root}' fits {len(targets)} parts of this run; give each a 'name' and use that"
    else:
        known = list(dict.fromkeys(d.component.name or d.kind.name for d in drafts))
        settings = [name for name in Settings.model_fields if name == "queues"]
        absent = " is not part of this run" if root in STAGES else " is not known"
        text = (
            f"'{root}'{absent}{did_you_mean(root, known + settings)} "
            f"(this run has: {', '.join(known + settings)})"
        )
    problems.add(assignment.where, text)


def _default_model(
    settings: Settings,
    sources: Sequence[_Draft],
    stages: Sequence[_Draft],
    origins: Origins,
    problems: Problems,
) -> None:
    for draft in stages:
        if draft.kind.name != "infer" or settings.model or draft.component.options.get("model"):
            continue
        if sources and all(source.chain()[-1].kind.name == "synthetic" for source in sources):
            _set(draft, ("model",), SYNTHETIC_MODEL, "", origins)
        elif sources:
            problems.add(
                "",
                "no model: add --model FILE.onnx (in YAML: model), for example --model yolox.onnx; "
                f"the built-in '{SYNTHETIC_MODEL}' knows only what synthetic:shapes draws",
            )


def _check_order(stages: Sequence[_Draft], origins: Origins, problems: Problems) -> None:
    """Check that each stage accepts what the one before produces; the first mismatch is enough."""
    produced, maker = "Frame", "the source"
    for draft in stages:
        stage = draft.kind.component_class()
        accepted, name = stage.accepts.__name__, draft.component.name or draft.kind.name
        if accepted != produced:
            remedy = _makers(accepts=produced, produces=accepted)
            problems.add(
                origins.where(draft.component.path),
                f"stage '{name}' accepts {accepted}, but {maker} produces {produced}; {remedy}",
            )
            return
        produced, maker = stage.produces.__name__, f"'{name}'"
    if produced != "Frame":
        remedy = _makers(accepts=produced, produces="Frame")
        problems.add(
            origins.where(stages[-1].component.path),
            f"sinks accept Frame, but {maker}, the last stage, produces {produced}; {remedy}",
        )


def _check_tracking(stages: Sequence[Part], origins: Origins, problems: Problems) -> None:
    """Check that what needs a stage 'track' has one, and that it remembers enough."""
    tracks = [(i, part) for i, part in enumerate(stages) if part.kind.name == "track"]
    for index, part in enumerate(stages):
        every = getattr(part.config, "detect_every", 1)
        if every > 1 and not any(place > index for place, _ in tracks):
            problems.add(
                origins.where(part.component.option_path("detect_every")),
                f"'detect_every' of stage '{part.name}' is {every}: the frames between would have "
                "no detections; put the stage 'track' behind 'nms', it fills them in",
            )
        trails_s = getattr(part.config, "trails", 0)
        before = [track for place, track in tracks if place < index]
        known_s = getattr(before[-1].config, "trail_s", 0) if before else 0
        if trails_s > known_s:
            remedy = f"raise '{before[-1].name}.trail_s'" if before else "put 'track' before it"
            problems.add(
                origins.where(part.component.option_path("trails")),
                f"'trails' of stage '{part.name}' is {trails_s:g} s, but frames come with "
                f"{known_s:g} s of each path; {remedy}",
            )


def _makers(*, accepts: str, produces: str) -> str:
    """Return advice: which stage turns one type into the other, directly or at all."""
    kinds = {name: kind.component_class() for name, kind in STAGES.items()}
    fits = [
        name
        for name, stage in kinds.items()
        if (stage.accepts.__name__, stage.produces.__name__) == (accepts, produces)
    ]
    if fits:
        return f"put '{fits[0]}' between them"
    return "the usual order is preprocess, infer, nms, overlay"


def _names(drafts: Sequence[_Draft], origins: Origins, problems: Problems) -> list[str]:
    """Return a unique name for each: the given one, else the stream's or kind's with a number."""
    taken: dict[str, str] = {}
    for draft in drafts:
        name, where = draft.component.name, origins.where(draft.component.path)
        if name is not None and name in taken:
            problems.add(
                where, f"the name '{name}' is taken (first at {taken[name]}); choose another"
            )
        elif name is not None:
            taken[name] = where
    result = []
    for draft in drafts:
        name = draft.component.name
        if name is None:
            wanted = draft.stream or draft.kind.name
            name = next(n for n in _numbered(wanted) if n not in taken)
            taken[name] = origins.where(draft.component.path)
        result.append(name)
    return result


def _numbered(name: str) -> Iterable[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _validate(draft: _Draft, name: str, origins: Origins, problems: Problems) -> Part | None:
    component = draft.component
    where = origins.where(component.path)
    model = draft.kind.config_class()
    try:
        config = model.model_validate(dict(component.options))
    except ValidationError as error:
        subject = f"{draft.kind.role} '{component.name or draft.kind.name}'"
        explain(
            error,
            model,
            subject,
            component.option_path(),
            origins,
            problems,
            also_known=("name",) if component.inner else ("kind", "name"),
        )
        return None
    inner = None if draft.inner is None else _validate(draft.inner, name, origins, problems)
    return Part(draft.kind, name, config, component, where, inner)
