"""`doctor`: what a source really gives, what this machine makes of it, and what to change.

The source is opened and watched by the engine that runs use, with the same deadlines; then the same
frames go through the stages for some seconds, and what each costs is measured rather than guessed.
The main thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.console import table
from pipeline.errors import RackfocusError, SourceError, StuckError
from pipeline.limits import Limits
from pipeline.metrics import available_cores
from pipeline.runner import Deadlines, Pipeline, RunResult, Snapshot
from pipeline.stage import RunContext, Source, Stage
from stages.build import build_stages, make_source
from stages.findings import Rows, Watched, Work, advice, source_rows, work_rows
from stages.machine import machine
from stages.observing import delay, tempo
from stages.plan import Part, Plan
from stages.rehearsal import Recorder, Replay

if TYPE_CHECKING:
    from stages.backends.network import Networks
    from stages.model import LoadedModel

WATCH_S: Final = 6.0
"""How long a source is watched unless told otherwise: delay that grows by 20 ms a second shows."""
_WORK_S: Final = 3.0
_MOST_FRAMES: Final = 300
_PATIENCE_S: Final = 30.0
"""For opening. Network sources end by themselves before, with a better reason."""
_DEADLINES: Final = Deadlines(drain_s=5.0, flush_s=5.0, abort_s=5.0)


@dataclass(frozen=True, slots=True)
class Doctor:
    """One call of the command.

    Args:
        plan: one source, the chain whose cost is measured, any sink (it is not used).
        hand_to: told which pipeline a stop request is for; see `pipeline.interrupts`.
        say: takes the lines of the result.
        networks: gives what the backend torch can run.
        stand_in: the model was not asked for, it only stands in for one.
    """

    plan: Plan
    hand_to: Callable[[Pipeline], None]
    say: Callable[[str], None]
    networks: Callable[[], Networks] | None = None
    stand_in: bool = False

    def examine_machine(self) -> int:
        """Say what the machine has, and what a model would run on; return the exit code.

        Raises:
            DeviceError: what was asked for is not there; the rest has been said.
            ModelError: the model cannot be used; likewise.
        """
        for title, rows in machine():
            self._section(title, rows)
        context = RunContext()
        stages, model = build_stages(self.plan.stages, context, self.networks)
        for stage in stages:
            stage.close()
        self._section("model", _model_rows(model, stand_in=self.stand_in))
        if model is not None:
            model.close()
        return 0

    def examine_source(self) -> int:
        """Watch the source, measure the stages on its frames, say both; return the exit code.

        Raises:
            SourceError: it cannot be opened, or gave no frame; the text says why.
            ModelError: the model cannot be used; what the source gives has been said.
        """
        (part,) = self.plan.sources
        watched, recorder, stopped = self._watch(part)
        self._section(f"source {part.name}", source_rows(watched))
        if stopped:
            return 130
        work, stopped = self._measure(part, watched, recorder)
        self._section("work", work_rows(work, watched, stand_in=self.stand_in))
        hints = advice(work, watched)
        self.say("what to change:" if hints else "nothing needs to be changed")
        for hint in hints:
            self.say(f"  - {hint}")
        return 130 if stopped else int(watched.problem is not None)

    def _watch(self, part: Part) -> tuple[Watched, Recorder, bool]:
        source = make_source(part)
        recorder = Recorder()
        context = RunContext()
        seconds = self.plan.settings.duration_s or WATCH_S
        result, stopped = self._run(source, (), recorder, context, seconds)
        problem = _problem(result)
        if not recorder.seen:
            if stopped:
                raise KeyboardInterrupt
            if problem is not None and not isinstance(problem, StuckError):
                raise problem
            raise SourceError(
                f"{part.name}: no picture within {seconds + _PATIENCE_S:g} s, and no reason why: "
                "is it a pipe that nobody writes to, or on a drive that does not answer?"
            )
        info = context.streams[part.name]
        metrics = result.stages[part.name]
        tick_s = float(info.time_base)
        watched = Watched(
            info=info,
            tempo=tempo(recorder.seen, tick_s),
            delay=delay(recorder.seen) if info.live else None,
            seconds=recorder.seen[-1].captured_s - recorder.seen[0].captured_s,
            sizes_wh=recorder.sizes_wh,
            counters={k: v for k, v in result.counters[part.name].items() if v},
            notes=tuple(context.notes),
            problem=None if problem is None else str(problem),
            cpu_share=result.cpu_s / result.wall_s,
            cpu_s=result.cpu_s / len(recorder.seen),
            read_s=metrics.busy_ns / 1e9 / max(1, metrics.items),
        )
        return watched, recorder, stopped

    def _measure(self, part: Part, watched: Watched, recorder: Recorder) -> tuple[Work, bool]:
        """Send frames through the stages: a live source's again, another's from its file."""
        context = RunContext()
        stages, model = build_stages(self.plan.stages, context, self.networks)
        live = watched.info.live
        source = Replay(part.name, recorder.kept, _WORK_S) if live else make_source(part)
        end = Recorder(keep=0)
        result, stopped = self._run(source, stages, end, context, _WORK_S)
        problem = _problem(result)
        if problem is not None and watched.problem is None:
            raise problem
        names = [stage.name for stage in stages]
        costs = {name: result.stages[name] for name in ([] if live else [part.name]) + names}
        if not end.seen:
            raise KeyboardInterrupt
        hz = end.rate_hz
        if live and hz is not None:
            # Decoding was done before, and will want the same cores.
            hz = 1 / (1 / hz + watched.cpu_s / available_cores())
        slowest = max(costs, key=lambda name: costs[name].busy_ns, default=None)
        work = Work(
            model=_model_rows(model, stand_in=self.stand_in),
            device=None if model is None else str(model.backend.describe()["device"]),
            costs=costs,
            hz=hz,
            slowest=slowest,
            source=part.name,
        )
        return work, stopped

    def _run(
        self,
        source: Source,
        stages: tuple[Stage[Any, Any], ...],
        recorder: Recorder,
        context: RunContext,
        seconds: float,
    ) -> tuple[RunResult, bool]:
        """Run until enough was seen; return also whether the user stopped it."""
        live = source.live
        limits = Limits(None, seconds) if live else Limits(_MOST_FRAMES, None)
        pipeline = Pipeline(
            [source], stages, [recorder],
            live=live, limits=limits, deadlines=_DEADLINES, context=context,
        )  # fmt: skip
        enough = False

        def on_tick(_: Snapshot) -> None:
            nonlocal enough
            late_s = recorder.waited_s
            if not enough and late_s > (seconds if recorder.seen else seconds + _PATIENCE_S):
                enough = True
                pipeline.request_stop()

        self.hand_to(pipeline)
        recorder.start()
        result = pipeline.run(on_tick)
        return result, result.exit_code == 130 and not enough

    def _section(self, title: str, rows: Rows) -> None:
        for line in table((title, ""), rows):
            self.say(line)
        self.say("")


def _problem(result: RunResult) -> RackfocusError | None:
    """Return what went wrong, in the words of whoever it went wrong for."""
    if not result.failures:
        return None
    first = result.failures[0]
    return first.__cause__ if isinstance(first.__cause__, RackfocusError) else first


def _model_rows(model: LoadedModel | None, *, stand_in: bool) -> Rows:
    if model is None:
        return []
    about, facts = model.backend.describe(), model.describe()
    width, height = model.preprocessing.size_wh
    name = f"{facts['name']} ({facts['decoder']}, {width}x{height})"
    runs = f"{about['name']} on {about['device']} ({about['provider']})"
    if about["threads"] is not None:
        runs += f", {about['threads']} thread{'' if about['threads'] == 1 else 's'}"
    return [
        ("model", f"{name}, built in, as a stand-in: --model measures yours" if stand_in else name),
        ("runs on", runs),
        ("because", str(about["reason"])),
    ]
