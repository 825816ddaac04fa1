"""What a run shows on the screen: how far it is while it runs, and the essence of its report.

On a terminal a bar; in a pipe or a log a plain line now and then; with `--quiet` neither. Progress
and notes go to stderr, the result to stdout. The main thread draws; `note` may come from any.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from pipeline.url import redact

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pipeline.runner import Snapshot
    from pipeline.stage import StreamInfo

_LINE_EVERY_S: Final = 10.0
"""Plain lines are for logs: often enough to see that it lives, few enough to read afterwards."""


class Console:
    """Shows one run.

    Args:
        quiet: show failures only.
        err: where progress and notes go.
        out: where the result goes.
        terminal: draw a bar; None asks `err`.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        err: TextIO | None = None,
        out: TextIO | None = None,
        terminal: bool | None = None,
    ) -> None:
        self._quiet = quiet
        self._err = err or sys.stderr
        self._out = out or sys.stdout
        able = self._err.isatty() and os.environ.get("TERM") != "dumb"
        self._terminal = able if terminal is None else terminal
        self._lock = threading.Lock()
        self._bar: tuple[Progress, TaskID] | None = None
        self._next_line_s = _LINE_EVERY_S
        self._expected: Callable[[], int | None] = lambda: None
        self._live = False

    def start(self, headline: str, *, live: bool, expected: Callable[[], int | None]) -> None:
        """Show what is about to run.

        Args:
            headline: mode, model, device.
            live: show age and drops rather than the time left.
            expected: frames that will come out, once known; asked while the run goes on.
        """
        self._live, self._expected = live, expected
        if self._quiet:
            return
        self._line(headline)
        if self._terminal:
            self._bar = _make_bar(self._err)
            self._bar[0].start()

    def tick(self, snapshot: Snapshot) -> None:
        """Show how far the run is: for the pipeline's `on_tick`."""
        if self._quiet:
            return
        done = sum(stream.frames_out for stream in snapshot.streams.values())
        expected = None if self._live else self._expected()
        if self._bar is not None:
            progress, task = self._bar
            figures = self._figures(snapshot, left=None)
            with contextlib.suppress(OSError):  # a terminal that was closed must not end the run
                progress.update(task, completed=done, total=expected, figures=figures, refresh=True)
        elif snapshot.wall_s >= self._next_line_s:
            self._next_line_s = snapshot.wall_s + _LINE_EVERY_S
            share = f" of {expected} ({done / expected:.0%})" if expected else ""
            left = (expected - done) / snapshot.fps if expected and snapshot.fps > 0 else None
            figures = self._figures(snapshot, left)
            self._line(f"{snapshot.wall_s:.0f} s: {done} frames{share}, {figures}")

    def note(self, message: str) -> None:
        """Show something the user should know that is no failure."""
        if not self._quiet:
            self._line(f"note: {redact(message)}")

    def stop(self) -> None:
        """End the bar. Idempotent."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def result(self, report: Mapping[str, Any], report_path: str | None) -> None:
        """Print the essence of a report; failures go to stderr, also with `--quiet`.

        Raises:
            BrokenPipeError: nobody reads `out` any more; the failures were printed.
        """
        self.stop()
        try:
            if not self._quiet:
                for line in essence(report):
                    print(line, file=self._out)
                if report_path is not None:
                    print(f"report: {report_path}", file=self._out)
                self._out.flush()
        finally:  # a reader of `out` that has gone away must not hide them
            for line in failures(report):
                self._line(line)

    def _figures(self, snapshot: Snapshot, left: float | None) -> str:
        text = f"{snapshot.fps:.1f} fps"
        if self._live:
            ages = [s.age_ms for s in snapshot.streams.values() if s.age_ms is not None]
            text += f", age {max(ages):.0f} ms" if ages else ""
            text += f", dropped {sum(s.dropped for s in snapshot.streams.values())}"
        elif left is not None:
            text += f", {left:.0f} s left"
        return text

    def _line(self, text: str) -> None:
        # Notes come from the threads of stages: a reader that has gone away must not fail those.
        with self._lock, contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar[0].console.print(
                    text, markup=False, emoji=False, highlight=False, soft_wrap=True
                )
                return
            print(text, file=self._err, flush=True)


def expected_frames(
    streams: Mapping[str, StreamInfo], count: int, max_frames: int | None, duration_s: float | None
) -> int | None:
    """Return how many frames will come, or None while that is not known.

    Args:
        streams: what the sources said when they were opened.
        count: how many sources there are.
        max_frames: the run's limit a source.
        duration_s: the run's limit of time a source.
    """
    if len(streams) < count:
        return None
    total = 0
    for info in streams.values():
        limits = [max_frames]
        limits.append(info.frame_count)
        if duration_s is not None and info.rate_hz is not None:
            limits.append(max(1, round(duration_s * info.rate_hz)))
        known = [limit for limit in limits if limit is not None]
        if not known:
            return None
        total += min(known)
    return total


def essence(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that are printed of a report: mode, streams, speed, outputs.

    Notes are not among them: they were shown when they came up.
    """
    speed, ended = report["throughput"], report["exit"]
    # The failure itself follows on stderr, with all its text.
    how = "failed" if report["failures"] else ended["reason"]
    lines = [f"{report['mode']}: {how}"]
    for name, stream in report["streams"].items():
        dropped = {why: n for why, n in stream["dropped"].items() if n}
        lost = ", ".join(f"{n} {why}" for why, n in dropped.items())
        text = f"  {name}: {stream['frames_in']} frames in, {stream['frames_out']} out"
        text += f", dropped {sum(dropped.values())} ({lost})" if dropped else ", dropped 0"
        age = stream["age_ms"]
        if report["mode"] == "live" and age["p50"] is not None:
            text += f", age {age['p50']:.0f} ms (p99 {age['p99']:.0f} ms)"
        lines.append(text)
    full = sum(stream["dropped"]["full"] for stream in report["streams"].values())
    for name, queue in report["queues"].items():
        # The first queue's drops are those of the streams above; a slow sink's are its own.
        if queue["dropped"] and (queue["dropped"] != full or not name.startswith("source->")):
            lines.append(f"  {name}: {queue['dropped']} frames dropped, the output was too slow")
    bound = speed["bottleneck"]
    busy = f", slowest: {bound} ({report['stages'][bound]['busy_share']:.0%} busy)" if bound else ""
    lines.append(f"  {speed['fps']:.1f} fps in {speed['wall_s']:.1f} s{busy}")
    for output in report["outputs"]:
        size = f", {_size(output['bytes'])}" if output["bytes"] is not None else ""
        duration = f", {output['duration_s']:.2f} s" if output["duration_s"] is not None else ""
        lines.append(f"  {output['uri']}: {output['frames']} frames{duration}{size}")
    return lines


def failures(report: Mapping[str, Any]) -> list[str]:
    """Return one line for each failure of a report, the one that ended the run first."""
    found = [str(failure["message"]) for failure in report["failures"]]
    return [f"{'error' if i == 0 else 'then'}: {text}" for i, text in enumerate(found)]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: drawn to fit where stdout is a terminal, else one a row."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (heading, *rows)
        ]
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, title in enumerate(heading):
        # What is to be typed stands whole on a narrow terminal; the rest is folded, never cut off.
        drawn.add_column(title, no_wrap=k == 0, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # texts, because brackets are markup in strings
    console = RichConsole(file=sys.stdout)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().splitlines()


def _size(count: int) -> str:
    """Return bytes for people: 1 kB is 1000 bytes, as disks and players count."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _make_bar(stream: TextIO) -> tuple[Progress, TaskID]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        MofNCompleteColumn(),
        TextColumn("frames"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=RichConsole(file=stream, force_terminal=True),
        transient=True,
        # The pipeline ticks four times a second; a drawing thread of its own would take the GIL.
        auto_refresh=False,
    )
    return progress, progress.add_task("run", total=None, figures="")


@contextlib.contextmanager
def download_bar(stream: TextIO | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function that shows bytes here and in all: a bar on a terminal, else tenths as lines.

    Nothing is shown before its first call.
    """
    out = stream or sys.stderr
    told = -1
    bar: tuple[Progress, TaskID] | None = None

    def show(here: int, total: int | None) -> None:
        nonlocal bar, told
        if out.isatty():
            if bar is None:
                bar = _make_download_bar(out)
                bar[0].start()
            bar[0].update(bar[1], completed=here, total=total)
        elif total and here * 10 // total > told:
            told = here * 10 // total
            out.write(f"downloading: {_size(here)} of {_size(total)}\n")

    try:
        yield show
    finally:
        if bar is not None:
            bar[0].stop()


def _make_download_bar(stream: TextIO) -> tuple[Progress, TaskID]:
    from rich.console import Console as RichConsole
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        *Progress.get_default_columns()[:2],
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=RichConsole(file=stream),
    )
    return bar, bar.add_task("downloading", total=None)
