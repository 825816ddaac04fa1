"""The arguments of the command line: what each command takes, and its help.

Imports the standard library only, so that `--help` answers at once. What the values mean is the
schema's business. Pure, apart from printing help.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, NoReturn

from pipeline.errors import UsageError

EXIT_CODES: Final = "exit codes: 0 done, 1 the run failed, 2 usage or config, 130 stopped by you"

EXPORT_EPILOG: Final = """\
exit codes: 0 done, 1 the file does not answer like the network, 2 usage or weights

needs the extra torch: pip install -e ".[torch]"; RACKFOCUS_HOME is where downloads are kept"""

PULL_EPILOG: Final = """\
examples:
  run.py models pull yolox-nano ssdlite320
  run.py run street.mp4 --model yolox-nano -o out.mp4

exit codes: 0 done or here already, 1 a file does not answer like the network, 2 name, network or
weights

needs the extra torch: pip install -e ".[torch]"; without it the weights are downloaded and kept.
RACKFOCUS_HOME, else ~/.cache/rackfocus, is where: weights/ for downloads, models/ for models"""

EXAMPLES: Final = f"""\
examples:
  run.py run synthetic:shapes -o out.mp4 --duration 10
  run.py run street.mp4 --model yolox_nano.onnx -o out.mp4 -o out.jsonl --report report.json
  run.py run 0 --model yolox_nano.onnx
  run.py run -c configs/file.yaml --set nms.score_threshold=0.5
  run.py check configs/file.yaml
  run.py list sinks
  run.py models pull yolox-nano
  run.py export yolox-nano -o yolox_nano.onnx
  run.py verify yolox_nano.onnx

{EXIT_CODES}"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about an unknown flag names the nearest known one."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n  {self.prog} --help lists what there is")

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def _run_arguments(parser: _Parser) -> None:
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
    add("--model", metavar="NAME|FILE.onnx", help="the model: a file, shapes, or one pulled")
    add("--device", metavar="auto|cpu|cuda[:n]", help="where the model runs")
    add("--backend", metavar="auto|onnx|openvino|torch", help="what runs the model")
    _add_set(parser)
    mode = parser.add_mutually_exclusive_group()
    add_mode = mode.add_argument
    add_mode("--live", action="store_true", help="stay fresh: drop frames rather than lag")
    add_mode("--offline", action="store_true", help="process every frame, in order")
    add("--report", metavar="FILE.json", help="write the run report; an older one is replaced")
    _add_overwrite(parser, "output files that exist")
    add("--duration", metavar="S", help="stop after S seconds of each source")
    add("--max-frames", metavar="N", help="stop after N frames of each source")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="show failures only")
    _add_verbose(how_much)


def _check_arguments(parser: _Parser) -> None:
    parser.add_argument("config", metavar="FILE.yaml", help="the configuration file")
    _add_set(parser)
    _add_verbose(parser)


def _list_arguments(parser: _Parser) -> None:
    parser.add_argument(
        "topic", nargs="?", metavar="sources|stages|sinks|models|configs", help="only these"
    )
    _add_verbose(parser)


def _models_arguments(parser: _Parser) -> None:
    add = parser.add_argument
    add("action", choices=("pull",), metavar="pull", help="the only one there is")
    add("names", nargs="+", metavar="NAME", help="models of `list models`; any number of them")
    _add_overwrite(parser, "pulled models that are here; weights are not fetched again")
    _add_verbose(parser)


def _export_arguments(parser: _Parser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="a model of `list models`")
    add("-o", dest="out", metavar="FILE.onnx", help="the file to write; default NAME.onnx")
    _add_overwrite(parser, "a file that exists")
    add("--precision", choices=("fp32",), default="fp32", help="of weights and sums")
    _add_weights(parser, "official")
    _add_verbose(parser)


def _verify_arguments(parser: _Parser) -> None:
    parser.add_argument("file", metavar="FILE.onnx", help="a file that `export` wrote")
    _add_weights(parser, None)
    _add_verbose(parser)


def _add_weights(parser: _Parser, default: str | None) -> None:
    told = "those the file names, without network" if default is None else default
    parser.add_argument(
        "--weights",
        metavar="FILE|official|random",
        default=default,
        help=f"a state dict, published weights, or seeded random ones; default: {told}",
    )
    parser.add_argument(
        "--frames",
        metavar="CLIP|DIR",
        help="pictures to compare on; default: the synthetic scene",
    )


def _add_set(parser: _Parser) -> None:
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set an option of a stage by kind or name, e.g. nms.score_threshold=0.4; may repeat",
    )


def _add_overwrite(parser: _Parser, what: str) -> None:
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def _add_verbose(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--verbose", action="store_true", help="show tracebacks of errors")


class _Command(NamedTuple):
    """One command: its line in the list of commands, its help, and its arguments."""

    summary: str
    description: str
    epilog: str
    add_arguments: Callable[[_Parser], None]

    def parser(self, prog: str) -> _Parser:
        parser = _Parser(
            prog=prog,
            description=self.description,
            epilog=self.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        return parser


_COMMANDS: Final = {
    "run": _Command(
        "run sources through the stages into sinks",
        "Run sources through the stages into sinks.",
        EXAMPLES,
        _run_arguments,
    ),
    "check": _Command(
        "validate a configuration file without running it",
        "Validate a configuration file without running it.",
        EXIT_CODES,
        _check_arguments,
    ),
    "models": _Command(
        "pull models with official weights, for --model NAME",
        "Download official weights and keep a certified model of them, for --model NAME.",
        PULL_EPILOG,
        _models_arguments,
    ),
    "export": _Command(
        "write a model as a certified ONNX file",
        "Write a model as an ONNX file that provably answers like its network.",
        EXPORT_EPILOG,
        _export_arguments,
    ),
    "verify": _Command(
        "check such a file",
        "Check that an exported file still is what its certificate says.",
        EXPORT_EPILOG,
        _verify_arguments,
    ),
    "list": _Command(
        "say what sources, stages, sinks, models and configs there are",
        "Say what there is to choose from.",
        EXIT_CODES,
        _list_arguments,
    ),
}


def parse(argv: Sequence[str], prog: str) -> tuple[str, argparse.Namespace]:
    """Return the command and its arguments; print help and exit where that is asked for."""
    if not argv:
        raise UsageError(f"no command; {prog} --help lists what there is")
    if argv[0] in ("-h", "--help"):
        commands = "\n".join(
            f"  {name:<8} {command.summary}" for name, command in _COMMANDS.items()
        )
        sys.stdout.write(f"usage: {prog} COMMAND ...\n\ncommands:\n{commands}\n\n{EXAMPLES}\n")
        raise SystemExit(0)
    command = argv[0]
    if command not in _COMMANDS:
        near = _near(command, _COMMANDS)
        raise UsageError(f"unknown command '{command}'{near} (commands: {', '.join(_COMMANDS)})")
    parser = _COMMANDS[command].parser(f"{prog} {command}")
    given = list(argv[1:])
    # What follows `--` is no flag; argparse forgets that where arguments are intermixed.
    end = given.index("--") if "--" in given else len(given)
    given, rest = given[:end], given[end + 1 :]
    if rest and command != "run":
        given, rest = [*given, *rest], []
    # Intermixed: sources may stand before, between and after the flags.
    arguments, unknown = parser.parse_known_intermixed_args(given)
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = _near(flag, parser.flags())
        parser.error(f"unknown argument '{flag}'{near}")
    if rest:
        arguments.sources = [*arguments.sources, *rest]
    return command, arguments


def _near(word: str, known: Iterable[str]) -> str:
    # Imported here: it needs pydantic, and `--help` is to answer at once.
    from pipeline.problems import did_you_mean

    return did_you_mean(word, known)


def given_flags(arguments: argparse.Namespace) -> dict[str, tuple[object, str]]:
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
