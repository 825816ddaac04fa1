"""The command line: parse, load the configuration, build, run, map errors to exit codes.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pipeline.errors import RackfocusError, SinkError, UsageError

if TYPE_CHECKING:
    from pipeline.runner import Pipeline, RunResult
    from stages.build import Built
    from stages.plan import Plan

EXIT_CODES: Final = "exit codes: 0 done, 1 the run failed, 2 usage or config, 130 stopped by you"

EXAMPLES: Final = f"""\
examples:
  run.py run synthetic:shapes -o out.mp4 --duration 10
  run.py run street.mp4 --model yolox_nano.onnx -o out.mp4 -o out.jsonl --report report.json
  run.py run 0 --model yolox_nano.onnx
  run.py run -c configs/file.yaml --set nms.score_threshold=0.5
  run.py check configs/file.yaml
  run.py list sinks

{EXIT_CODES}"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about an unknown flag names the nearest known one."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n  {self.prog} --help lists what there is")

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def _run_parser(prog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        description="Run sources through the stages into sinks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a file, a folder or pattern of images, 0 or /dev/video0, synthetic:shapes",
    )
    add(
        "-o",
        dest="sinks",
        action="append",
        metavar="SINK",
        help="out.mp4 | .mkv | .mov, out.jsonl, frames/%%06d.jpg, window, null; may repeat",
    )
    add("-c", dest="config", metavar="FILE.yaml", help="a configuration file; flags outrank it")
    add("--model", metavar="NAME|FILE.onnx", help="the model; built in: shapes")
    add("--device", metavar="auto|cpu|cuda[:n]", help="where the model runs")
    add("--backend", metavar="auto|onnx", help="what runs the model")
    _add_set(parser)
    mode = parser.add_mutually_exclusive_group()
    add_mode = mode.add_argument
    add_mode("--live", action="store_true", help="stay fresh: drop frames rather than lag")
    add_mode("--offline", action="store_true", help="process every frame, in order")
    add("--report", metavar="FILE.json", help="write the run report; an older one is replaced")
    add("--overwrite", action="store_true", help="replace output files that exist")
    add("--duration", metavar="S", help="stop after S seconds of each source")
    add("--max-frames", metavar="N", help="stop after N frames of each source")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="show failures only")
    how_much.add_argument("--verbose", action="store_true", help="show tracebacks of errors")
    return parser


def _check_parser(prog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        description="Validate a configuration file without running it.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="FILE.yaml", help="the configuration file")
    _add_set(parser)
    parser.add_argument("--verbose", action="store_true", help="show tracebacks of errors")
    return parser


def _list_parser(prog: str) -> _Parser:
    parser = _Parser(prog=prog, description="Say what there is to choose from.", allow_abbrev=False)
    parser.add_argument(
        "topic", nargs="?", metavar="sources|stages|sinks|models|configs", help="only these"
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks of errors")
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set an option of a stage by kind or name, e.g. nms.score_threshold=0.4; may repeat",
    )


_COMMANDS: Final = {
    "run": (_run_parser, "run sources through the stages into sinks"),
    "check": (_check_parser, "validate a configuration file without running it"),
    "list": (_list_parser, "say what sources, stages, sinks, models and configs there are"),
}


def _parse(argv: Sequence[str], prog: str) -> tuple[str, argparse.Namespace]:
    """Return the command and its arguments; print help and exit where that is asked for."""
    if not argv:
        raise UsageError(f"no command; {prog} --help lists what there is")
    if argv[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<8} {told}" for name, (_, told) in _COMMANDS.items())
        print(f"usage: {prog} COMMAND ...\n\ncommands:\n{commands}\n\n{EXAMPLES}")
        raise SystemExit(0)
    command = argv[0]
    if command not in _COMMANDS:
        near = _did_you_mean(command, _COMMANDS)
        raise UsageError(f"unknown command '{command}'{near} (commands: {', '.join(_COMMANDS)})")
    parser = _COMMANDS[command][0](f"{prog} {command}")
    # Intermixed: sources may stand before, between and after the flags.
    arguments, unknown = parser.parse_known_intermixed_args(list(argv[1:]))
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = _did_you_mean(flag, parser.flags())
        parser.error(f"unknown argument '{flag}'{near}")
    return command, arguments


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


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
    config = load_config(document, _flags(arguments), assignments, problems)
    plan = make_plan(config, problems) if config is not None else None
    if plan is not None:
        check_files(plan, problems)
    problems.raise_if_any()
    if plan is None:
        raise UsageError("the configuration cannot be used")
    return plan


def _flags(arguments: argparse.Namespace) -> dict[str, tuple[object, str]]:
    """Return the flags that were given as configuration keys: value, and place for messages."""
    given = vars(arguments)
    flags: dict[str, tuple[object, str]] = {}
    for key, flag, place in (
        ("sources", "sources", ""),
        ("sinks", "sinks", "-o"),
        ("model", "model", "--model"),
        ("device", "device", "--device"),
        ("backend", "backend", "--backend"),
        ("report", "report", "--report"),
        ("duration_s", "duration", "--duration"),
        ("max_frames", "max_frames", "--max-frames"),
    ):
        if given.get(flag) not in (None, []):
            flags[key] = (given[flag], place)
    if given.get("overwrite"):
        flags["overwrite"] = (True, "--overwrite")
    for mode in ("live", "offline"):
        if given.get(mode):
            flags["mode"] = (mode, f"--{mode}")
    return flags


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
    from stages.listing import TOPICS, listing

    if arguments.topic is not None and arguments.topic not in TOPICS:
        near = _did_you_mean(arguments.topic, TOPICS)
        raise UsageError(f"nothing to list called '{arguments.topic}'{near} ({', '.join(TOPICS)})")
    for line in listing(arguments.topic):
        print(line)
    return 0


_HANDLERS: Final = {"run": _run, "check": _check, "list": _list}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 usage, 130 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command, parsed = _parse(arguments, Path(sys.argv[0]).name or "run.py")
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
