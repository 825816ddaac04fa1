"""The command line: parse, load the configuration, build, run, map errors to exit codes.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
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
    with _signals() as stop:
        return _run_plan(_load(arguments), arguments, stop)


def _run_plan(plan: Plan, arguments: argparse.Namespace, stop: _Stop) -> int:
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
        queues=QueueOptions(queues.capacity, int(queues.max_bytes), queues.threads, plan.queued()),
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
    failed = _write_report(settings.report, report)
    try:
        console.result(report, settings.report if failed is None else None)
    except BrokenPipeError:
        _silence_stdout()
    if failed is not None:
        print(f"error: {failed}", file=sys.stderr)
        return result.exit_code or failed.exit_code
    return result.exit_code


def _headline(plan: Plan, built: Built) -> str:
    mode = "live" if built.live else "offline"
    why = "" if plan.settings.mode != "auto" else " (from the source)"
    return f"{mode}{why}: {', '.join(s.name for s in built.sources)}; {built.model_line()}"


class _Stop:
    """Passes stop requests on to the pipeline, also those that came before there was one.

    A signal's handler only counts: raised inside an import or a library's callback, an exception
    could be lost or leave things half done.
    """

    def __init__(self) -> None:
        self.received = 0
        self._pipeline: Pipeline | None = None

    def __call__(self, *_: object) -> None:
        self.received += 1
        if self._pipeline is not None:
            self._pipeline.request_stop()
        elif self.received > 1:
            raise KeyboardInterrupt

    def hand_to(self, pipeline: Pipeline) -> None:
        """From now on a request stops `pipeline`; raise KeyboardInterrupt if one has come."""
        self._pipeline = pipeline
        if self.received:
            raise KeyboardInterrupt


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Stop on SIGINT, SIGTERM and a closed terminal: the first drains, the second aborts."""
    import signal

    stop = _Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # as under nohup
        numbers.append(hangup)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_report(path: str | None, report: dict[str, object]) -> SinkError | None:
    """Write the report, whole or not at all; return what went wrong."""
    if path is None:
        return None
    import json

    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    # A file name that is no UTF-8 has lone surrogates in Python; `\udcff` is how JSON writes them.
    data = text.encode("utf-8", errors="backslashreplace")
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # a pipe or /dev/null: replacing it would destroy the device
            return None
        target = target.resolve()  # a link stays one
        part = target.with_name(f"{target.name}.part")
        try:
            part.write_bytes(data)
            part.replace(target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        return SinkError(f"the report {path} cannot be written: {error.strerror}")
    return None


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
    from pipeline.problems import did_you_mean
    from stages.listing import TOPICS, listing

    if arguments.topic is not None and arguments.topic not in TOPICS:
        near = did_you_mean(arguments.topic, TOPICS)
        raise UsageError(f"nothing to list called '{arguments.topic}'{near} ({', '.join(TOPICS)})")
    from exporters import zoo

    for line in listing(arguments.topic, exportable=zoo.describe()):
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
            precision=arguments.precision,
            data=arguments.data,
            max_loss=arguments.max_loss,
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from exporters.verify import verify_file

    verify_file(
        arguments.file,
        weights=arguments.weights,
        frames=arguments.frames,
        fp32=arguments.fp32,
        say=print,
    )
    return 0


_HANDLERS: Final = {
    "run": _run,
    "check": _check,
    "list": _list,
    "export": _export,
    "verify": _verify,
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
        print("stopped before the run began", file=sys.stderr)
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
