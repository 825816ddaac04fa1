"""The command line: parse, load the configuration, build, run, map errors to exit codes.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.arguments import given_flags, parse
from pipeline.errors import RackfocusError, SinkError, UsageError

if TYPE_CHECKING:
    from exporters.download import Progress
    from exporters.networks import ZooNetworks
    from pipeline.interrupts import StopRequests
    from pipeline.runner import RunResult
    from stages.build import Built
    from stages.plan import Plan


def _load(arguments: argparse.Namespace) -> Plan:
    """Return the checked run that file and flags ask for; raise with all that is wrong."""
    from pipeline.errors import ConfigError
    from pipeline.problems import Problems
    from pipeline.schema import load_config, parse_assignment
    from pipeline.yamlfile import load_yaml
    from stages.build import check_files
    from stages.plan import make_plan

    problems = Problems()
    assignments = []
    for text in arguments.assignments:
        try:
            assignments.append(parse_assignment(text))
        except ConfigError as error:
            problems.add("", str(error))
    document = load_yaml(Path(arguments.config)) if arguments.config else None
    config = load_config(document, given_flags(arguments), assignments, problems)
    plan = make_plan(config, problems) if config is not None else None
    if plan is not None:
        check_files(plan, problems, _networks)
    problems.raise_if_any()
    if plan is None:
        raise UsageError("the configuration cannot be used")
    return plan


def _networks(progress: Progress | None = None) -> ZooNetworks:
    from exporters.networks import ZooNetworks

    return ZooNetworks(progress)


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.interrupts import stop_requests

    with stop_requests() as stop:
        return _run_plan(_load(arguments), arguments, stop)


def _run_plan(plan: Plan, arguments: argparse.Namespace, stop: StopRequests) -> int:
    from pipeline.console import Console, download_bar, expected_frames
    from pipeline.limits import Limits
    from pipeline.report import build_report
    from pipeline.report_file import write_report
    from pipeline.runner import Pipeline, Snapshot
    from pipeline.stage import RunContext
    from pipeline.wiring import QueueOptions
    from stages.build import build
    from stages.sinks.record import DetectionsHash

    settings = plan.settings
    console = Console(quiet=arguments.quiet)
    context = RunContext(on_note=console.note)
    with download_bar() as progress:
        built = build(plan, context, lambda: _networks(None if arguments.quiet else progress))
    queues = settings.queues
    pipeline = Pipeline(
        built.sources,
        built.stages,
        built.sinks,
        live=built.live,
        queues=QueueOptions(
            queues.capacity,
            int(queues.max_bytes),
            queues.threads,
            plan.queued(),
            None if settings.max_age_ms is None else settings.max_age_ms / 1e3,
        ),
        limits=Limits(settings.max_frames, settings.duration_s),
        context=context,
        tap=DetectionsHash() if built.model is not None else None,
    )
    console.start(
        _headline(plan, built),
        live=built.live,
        expected=lambda: expected_frames(
            dict(context.streams), len(built.sources), settings.max_frames, settings.duration_s
        ),
    )

    def on_tick(snapshot: Snapshot) -> None:
        if stop.received:
            context.note("stopping: outputs are being completed; once more to abort")
        console.tick(snapshot)

    try:
        stop.hand_to(pipeline)
        result = pipeline.run(on_tick)
    finally:
        console.stop()
    report = build_report(
        result,
        config=plan.effective(),
        model=built.model_facts(),
        backend=built.backend_facts(),
    )
    if arguments.verbose:
        _print_causes(result)
    unwritten = None
    if settings.report is not None:
        try:
            write_report(settings.report, report)
        except SinkError as error:
            unwritten = error
    try:
        console.result(report, settings.report if unwritten is None else None)
    except BrokenPipeError:
        _silence_stdout()
    if unwritten is not None:
        print(f"error: {unwritten}", file=sys.stderr)
        return result.exit_code or unwritten.exit_code
    return result.exit_code


def _headline(plan: Plan, built: Built) -> str:
    mode = "live" if built.live else "offline"
    why = "" if plan.settings.mode != "auto" else " (from the source)"
    return f"{mode}{why}: {', '.join(s.name for s in built.sources)}; {built.model_line()}"


def _print_causes(result: RunResult) -> None:
    for failure in result.failures:
        _print_cause(failure)


def _print_cause(error: BaseException) -> None:
    import traceback

    from pipeline.url import redact

    print(redact("".join(traceback.format_exception(error))), file=sys.stderr)


def _check(arguments: argparse.Namespace) -> int:
    plan = _load(arguments)
    print(f"ok: {arguments.config}")
    for role, parts in (("sources", plan.sources), ("stages", plan.stages), ("sinks", plan.sinks)):
        print(f"  {role}: {', '.join(part.name for part in parts)}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from pipeline.console import table
    from pipeline.problems import did_you_mean
    from stages.listing import TOPICS, listing

    if arguments.topic is not None and arguments.topic not in TOPICS:
        near = did_you_mean(arguments.topic, TOPICS)
        raise UsageError(f"nothing to list called '{arguments.topic}'{near} ({', '.join(TOPICS)})")
    from exporters import zoo

    for line in listing(arguments.topic, zoo.describe(), table):
        print(line)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from exporters.command import export_model
    from pipeline.console import download_bar

    with download_bar() as progress:
        export_model(
            arguments.name,
            arguments.out,
            weights=arguments.weights,
            frames=arguments.frames,
            overwrite=arguments.overwrite,
            say=print,
            progress=progress,
        )
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from exporters.pull import pull_models
    from pipeline.console import download_bar

    pull_models(arguments.names, overwrite=arguments.overwrite, say=print, bar=download_bar)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from exporters.command import verify_file

    verify_file(arguments.file, weights=arguments.weights, frames=arguments.frames, say=print)
    return 0


_HANDLERS: Final = {
    "run": _run,
    "check": _check,
    "list": _list,
    "export": _export,
    "verify": _verify,
    "models": _models,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 usage, 130 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        command, parsed = parse(arguments, Path(sys.argv[0]).name or "run.py")
        code = _HANDLERS[command](parsed)
        sys.stdout.flush()
        return code
    except RackfocusError as error:
        _tell(error, str(error), verbose="--verbose" in arguments)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`list | head`); Python would complain at exit.
        _silence_stdout()
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback unless asked
        told = " ".join(str(error).split())
        text = f"unexpected {type(error).__name__}: {told}; --verbose shows where"
        _tell(error, text, verbose="--verbose" in arguments)
        return 1


def _prepare_streams() -> None:
    """Make stdout and stderr usable whatever they are: closed, or of an encoding that lacks
    letters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Also keeps the number free: an output file must not become what libraries log to.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - kept open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """Let what is still buffered for a reader that has gone away go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: BaseException, text: str, *, verbose: bool) -> None:
    from pipeline.url import redact

    if verbose:
        _print_cause(error)
    for line in text.splitlines():
        print(
            f"error: {redact(line)}" if not line.startswith(" ") else redact(line), file=sys.stderr
        )


if __name__ == "__main__":
    sys.exit(main())
