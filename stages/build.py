"""From a plan to the objects that run, and the checks of what the disk holds before they do.

`check_files` looks at paths and creates nothing; `build` loads the model and makes the sources,
stages and sinks. Used before a run, by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pipeline.errors import RackfocusError, UsageError
from pipeline.problems import Problems, did_you_mean
from pipeline.stage import RunContext, Sink, Source, Stage
from stages.plan import Part, Plan
from stages.sinks import paths
from stages.sinks.containers import container_for
from stages.sources.reconnecting import Reconnecting

if TYPE_CHECKING:
    from stages.backends.network import Networks
    from stages.infer import InferConfig
    from stages.model import LoadedModel

_ONE_FILE_A_STREAM: Final = frozenset({"video", "images"})
"""Sinks whose files hold one stream; a .jsonl file says the stream on every line."""

_GLOB_SIGNS: Final = "*?["


@dataclass(frozen=True, slots=True)
class Built:
    """What a pipeline is made of."""

    sources: tuple[Source, ...]
    stages: tuple[Stage[Any, Any], ...]
    sinks: tuple[Sink, ...]
    live: bool
    model: LoadedModel | None
    """The model of the first infer stage; None where the chain has none."""

    def model_facts(self) -> dict[str, object] | None:
        """Return the report's "model" section."""
        return None if self.model is None else self.model.describe()

    def backend_facts(self) -> dict[str, object] | None:
        """Return the report's "backend" section."""
        return None if self.model is None else dict(self.model.backend.describe())

    def model_line(self) -> str:
        """Return model, decoder, device and provider in a few words."""
        model, backend = self.model_facts(), self.backend_facts()
        if model is None or backend is None:
            return "no model"
        return (
            f"model {model['name']} ({model['decoder']}) on {backend['device']} "
            f"({backend['provider']})"
        )


def check_files(
    plan: Plan, problems: Problems, networks: Callable[[], Networks] | None = None
) -> None:
    """Check sources, model, outputs and report against the disk.

    Args:
        plan: the run.
        problems: receives what is missing, in the way, or written twice.
        networks: gives what the backend torch can run, and what can be pulled; asked only where it
            matters.
    """
    for part in plan.sources:
        _check_source(part, problems)
    for part in plan.stages:
        if part.kind.name == "infer":
            _check_model(part, plan, problems, networks)
    written: dict[str, str] = {}
    for part in plan.sinks:
        path = _path(part)
        if path is not None:
            where = _place(part, plan, "path")
            _check_sink(part, path, plan, where, problems)
            for target in dict.fromkeys(paths.for_stream(path, s.name) for s in plan.sources):
                _claim(written, target, f"sink '{part.name}'", where, problems)
    report = plan.settings.report
    if report is not None:
        where = plan.origins.where(("report",))
        try:
            # A report belongs to its run and is replaced by the next one's, so it needs no flag;
            # but what is called a video or a model is none.
            replaced = Path(report).suffix.lower() == ".json" or not Path(report).is_file()
            paths.check_target(report, overwrite=replaced or plan.settings.overwrite, sink="report")
        except RackfocusError as error:
            problems.add(where, str(error))
        for part in plan.sources:
            _check_not_source(report, part, "report", where, problems)
        _claim(written, report, "the report", where, problems)


def build(plan: Plan, context: RunContext, networks: Callable[[], Networks] | None = None) -> Built:
    """Make the objects of a run; the model is loaded, nothing else is opened.

    Args:
        plan: the run.
        context: receives the notes of loading the model.
        networks: gives what the backend torch can run; asked only where that was chosen.

    Raises:
        UsageError: live and finite sources are mixed and the mode was not said.
        ModelError: the model cannot be read, recognised, or run on the device asked for.
    """
    sources = tuple(_source(part) for part in plan.sources)
    live = _is_live(plan, sources)
    context.live = live
    stages, model = _build_stages(plan.stages, context, networks)
    return Built(sources, stages, tuple(_construct(part) for part in plan.sinks), live, model)


def _source(part: Part) -> Source:
    source: Source = _construct(part)
    reconnect = getattr(part.config, "reconnect", None)
    if reconnect is None or not source.live:
        return source
    return Reconnecting(source, reconnect)


def _construct(part: Part, *extra: object) -> Any:  # noqa: ANN401 - by role, see Kind
    return part.kind.component_class()(part.config, part.name, *extra)


def _is_live(plan: Plan, sources: Sequence[Source]) -> bool:
    mode = plan.settings.mode
    if mode != "auto":
        return mode == "live"
    live = [source.name for source in sources if source.live]
    finite = [source.name for source in sources if not source.live]
    if live and finite:
        raise UsageError(
            f"'{live[0]}' is live and '{finite[0]}' is not: say --offline to process every frame, "
            "or --live to drop frames rather than lag (in YAML: mode)"
        )
    return bool(live)


def _build_stages(
    parts: Sequence[Part], context: RunContext, networks: Callable[[], Networks] | None
) -> tuple[tuple[Stage[Any, Any], ...], LoadedModel | None]:
    """Make the chain; a stage around `infer` shares the model of the one it belongs to."""
    models: dict[int, LoadedModel] = {}
    for index, part in enumerate(parts):
        if part.kind.name == "infer":
            from stages.model import load_model

            config = cast("InferConfig", part.config)
            models[index] = load_model(config, context.note, networks)
    stages = []
    for index, part in enumerate(parts):
        if not part.kind.needs_model:
            stages.append(_construct(part))
            continue
        # The order check has made sure that an infer stage comes before nms, after preprocess.
        before = [i for i in models if i <= index]
        after = [i for i in models if i >= index]
        owner = after[0] if part.kind.name == "preprocess" else before[-1]
        stages.append(_construct(part, models[owner]))
    return tuple(stages), next(iter(models.values()), None)


def _path(part: Part) -> str | None:
    value = getattr(part.config, "path", None)
    return None if value is None else str(value)


def _place(part: Part, plan: Plan, option: str) -> str:
    return plan.origins.where(part.component.option_path(option))


def _read_paths(part: Part) -> list[str]:
    """Return the paths a source reads: patterns stay patterns; none for a camera."""
    value = getattr(part.config, "path", None)
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def _check_source(part: Part, problems: Problems) -> None:
    for text in _read_paths(part):
        complaint = _missing(text, part.kind.name)
        if complaint:
            problems.add(part.where, f"source '{text}': {complaint}")


def _missing(text: str, kind: str) -> str:
    """Return why a source's path cannot be read; "" where it can."""
    path = Path(text)
    if path.exists():
        if kind == "file" and path.is_dir():
            return "this is a folder; the kind for it is images"
        if path.is_file() and path.stat().st_size == 0:
            return "the file is empty (0 bytes)"
        return ""
    if kind == "images" and any(sign in text for sign in _GLOB_SIGNS):
        return "" if any(_glob(path)) else f"no file fits the pattern (looked in {Path.cwd()})"
    siblings: list[str] = []
    if path.parent.is_dir():
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    looked = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
    return f"no such file{did_you_mean(path.name, siblings)}{looked}"


def _glob(pattern: Path) -> Iterator[Path]:
    root = Path(pattern.anchor) if pattern.is_absolute() else Path()
    return root.glob(str(pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern))


def _check_model(
    part: Part, plan: Plan, problems: Problems, networks: Callable[[], Networks] | None
) -> None:
    from stages.model_files import resolve_model

    config = cast("InferConfig", part.config)
    if config.model is None:
        return
    if config.backend == "torch" and networks is not None:
        _check_network(part, config, plan, problems, networks())
        return
    try:
        resolve_model(config.model, networks)
    except RackfocusError as error:
        problems.add(_place(part, plan, "model"), str(error))


def _check_network(
    part: Part, config: InferConfig, plan: Plan, problems: Problems, networks: Networks
) -> None:
    for option, check, value in (
        ("model", networks.check_model, config.model),
        ("weights", networks.check_weights, config.weights),
    ):
        if value is None:
            continue
        try:
            check(value)
        except RackfocusError as error:
            problems.add(_place(part, plan, option), str(error))


def _check_sink(part: Part, path: str, plan: Plan, where: str, problems: Problems) -> None:
    streams = [source.name for source in plan.sources]
    label = f"sink '{part.name}'"
    try:
        if part.kind.name == "video":
            container_for(path, getattr(part.config, "codec", "h264"), label)
        if part.kind.name in _ONE_FILE_A_STREAM:
            paths.check_streams(path, streams, sink=label)
        targets = dict.fromkeys(paths.for_stream(path, stream) for stream in streams)
        for target in targets:
            if part.kind.name == "images":
                target %= 0  # the series must not start on files that exist
            paths.check_target(
                target, overwrite=bool(getattr(part.config, "overwrite", False)), sink=label
            )
    except RackfocusError as error:
        problems.add(where, str(error))
    for source in plan.sources:
        _check_not_source(path, source, label, where, problems)


def _check_not_source(path: str, source: Part, label: str, where: str, problems: Problems) -> None:
    target = paths.for_stream(path, source.name)
    for read in _read_paths(source):
        one, other = Path(target), Path(read)
        # samefile sees hard links too, but needs both to exist.
        same = one.exists() and other.exists() and one.samefile(other)
        if same or one.resolve() == other.resolve():
            problems.add(
                where,
                f"{label}: {target} is the input '{source.name}'; writing would destroy it; "
                "choose another path for the output",
            )


def _claim(written: dict[str, str], path: str, label: str, where: str, problems: Problems) -> None:
    key = str(Path(path).resolve())
    if key in written:
        problems.add(where, f"{label} and {written[key]} both write {path}; give each its own file")
    written.setdefault(key, label)
