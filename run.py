"""The command line: parse, load the configuration, build, run, map errors to exit codes.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.arguments import given_flags, parse
from pipeline.errors import RackfocusError, SinkError, UsageError

if TYPE_CHECKING:
    from pipeline.runner import Pipeline, RunResult
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
        check_files(plan, problems)
    problems.raise_if_any()
    if plan is None:
        raise UsageError("the configuration cannot be used")
    return plan


def _run(arguments: argparse.Namespace) -> int:
    plan = _load(arguments)
    from pipeline.console import Console, expected_frames
    from pipeline.limits import Limits
    from pipeline.report import build_report
    from pipeline.runner import Pipeline, QueueOptions, Snapshot
    from pipeline.stage import RunContext
    from stages.build import build
    from stages.sinks.record import DetectionsHash

    settings = plan.settings
    console = Console(quiet=arguments.quiet)
    context = RunContext(on_note=console.note)
    built = build(plan, context)
    queues = settings.queues
    pipeline = Pipeline(
        built.sources,
        built.stages,
        built.sinks,
        live=built.live,
        queues=QueueOptions(queues.capacity, int(queues.max_bytes), queues.threads),
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
    with _signals(pipeline) as signals:

        def on_tick(snapshot: Snapshot) -> None:
            if signals:
                context.note("stopping: outputs are being completed; once more to abort")
            console.tick(snapshot)

        try:
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
    failed = _write_report(settings.report, report)
    console.result(report, settings.report if failed is None else None)
    if failed is not None:
        print(f"error: {failed}", file=sys.stderr)
        return result.exit_code or failed.exit_code
    return result.exit_code


def _headline(plan: Plan, built: Built) -> str:
    mode = "live" if built.live else "offline"
    why = "" if plan.settings.mode != "auto" else " (from the source)"
    return f"{mode}{why}: {', '.join(s.name for s in built.sources)}; {built.model_line()}"


@contextmanager
def _signals(pipeline: Pipeline) -> Iterator[list[int]]:
    """Stop on SIGINT and SIGTERM: the first drains, the second aborts. Yields those received."""
    import signal
    from types import FrameType

    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        pipeline.request_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_report(path: str | None, report: dict[str, object]) -> SinkError | None:
    """Write the report, whole or not at all; return what went wrong."""
    if path is None:
        return None
    import json

    part = Path(f"{path}.part")
    try:
        part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        return SinkError(f"the report {path} cannot be written: {error.strerror}")
    return None


def _print_causes(result: RunResult) -> None:
    import traceback

    for failure in result.failures:
        traceback.print_exception(failure)


def _check(arguments: argparse.Namespace) -> int:
    plan = _load(arguments)
    print(f"ok: {arguments.config}")
    for role, parts in (("sources", plan.sources), ("stages", plan.stages), ("sinks", plan.sinks)):
        print(f"  {role}: {', '.join(part.name for part in parts)}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from pipeline.problems import did_you_mean
    from stages.listing import TOPICS, listing

    if arguments.topic is not None and arguments.topic not in TOPICS:
        near = did_you_mean(arguments.topic, TOPICS)
        raise UsageError(f"nothing to list called '{arguments.topic}'{near} ({', '.join(TOPICS)})")
    for line in listing(arguments.topic):
        print(line)
    return 0


_HANDLERS: Final = {"run": _run, "check": _check, "list": _list}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 usage, 130 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, parsed = parse(arguments, Path(sys.argv[0]).name or "run.py")
        code = _HANDLERS[command](parsed)
        sys.stdout.flush()
        return code
    except RackfocusError as error:
        _tell(str(error), verbose="--verbose" in arguments)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped before the run began", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`list | head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback unless asked
        text = f"unexpected {type(error).__name__}: {error}; --verbose shows where"
        _tell(text, verbose="--verbose" in arguments)
        return 1


def _tell(text: str, *, verbose: bool) -> None:
    from pipeline.url import redact

    if verbose:
        import traceback

        traceback.print_exc()
    for line in text.splitlines():
        print(
            f"error: {redact(line)}" if not line.startswith(" ") else redact(line), file=sys.stderr
        )


if __name__ == "__main__":
    sys.exit(main())
