"""Runs sources, stages and sinks in threads linked by bounded queues, and accounts for every frame.

A queue starts a thread; a stage without one runs in the thread before it. Live sources drop in
their first queue only; everything after it blocks, except that in live mode each sink's own queue
drops, so that one slow output delays nobody. `Pipeline.run` blocks its caller, who may be told
about progress.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pipeline.errors import RackfocusError, StageError, StuckError, UsageError
from pipeline.frame import Frame, Item
from pipeline.limits import Limits
from pipeline.metrics import (
    Histogram,
    StageMetrics,
    StreamMetrics,
    available_cores,
    peak_rss_mb,
)
from pipeline.queue import BoundedQueue, Policy, QueueStats
from pipeline.segment import AnyStage, Chain, FrameTap, InlineSink, QueueOutlet, RunState, Worker
from pipeline.stage import OutputInfo, RunContext, Sink, Source, Stage
from pipeline.workers import QueueWorker, SourceWorker

LIVE_CAPACITY = 2
"""Later queues of a live run. The first holds the newest frame of each stream and no other: a
second one would only add age, since who is slower than the stream would always get the older one.
"""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How the threads are linked."""

    capacity: int = 4
    """Frames per queue. On 2 cores 1, 4 and 16 were measured to give the same throughput."""
    max_bytes: int = 256 * 1024 * 1024
    """Bytes per queue, so that 8K frames do not multiply into gigabytes."""
    threads: Literal["per_stage", "single"] = "per_stage"
    queued: Mapping[str, bool] = field(default_factory=dict)
    """By stage: whether it has a queue, and so a thread. Those not named have one, except that
    light stages share a thread where the cores are fewer than the threads would be, and that live
    the first heavy stage shares that of the light ones before it."""
    max_age_s: float | None = 0.5
    """Live: a frame older than this when it leaves the first queue is dropped, counted as stale."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a stop may take before whoever holds it up is named."""

    drain_s: float = 60.0
    """Draining without any call completing: then the run is aborted."""
    flush_s: float = 600.0
    """The same while something is flushed: putting a file in its final form may copy gigabytes."""
    abort_s: float = 10.0
    """After an abort: then the threads left are reported stuck and abandoned."""
    slow_call_s: float = 60.0
    """One call in a running pipeline: then the user is told where it is."""


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """One stream's figures of one moment."""

    frames_in: int
    frames_out: int
    dropped: int
    age_ms: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `run` reports while it runs."""

    wall_s: float
    fps: float
    """Frames out of the last stage per second, over the last two seconds."""
    streams: dict[str, StreamSnapshot]


@dataclass(slots=True)
class RunResult:
    """Everything a finished run knows about itself; `report.build_report` makes JSON of it."""

    live: bool
    exit_code: int
    reason: str
    failures: list[RackfocusError]
    """The first is the one that ended the run."""
    wall_s: float
    cpu_s: float
    peak_rss_mb: float | None
    streams: dict[str, StreamMetrics]
    ages_ms: dict[str, Histogram]
    stages: dict[str, StageMetrics]
    """Sources, stages and sinks by name, in the order of the chain."""
    counters: dict[str, dict[str, int]]
    queues: dict[str, QueueStats]
    outputs: list[OutputInfo]
    context: RunContext
    started_ns: int
    """Clock.now_ns() when the threads were started."""
    tap: FrameTap | None = field(default=None)


class Pipeline:
    """One run: sources in front, a chain of stages, sinks at the end.

    Args:
        sources: at least one, names unique.
        stages: the chain; the order of types must fit.
        sinks: at least one; each sees every frame.
        live: drop early and stay fresh, instead of processing every frame.
        tap: sees every frame that leaves the last stage.

    Raises:
        UsageError: names are not unique, nothing to read or write, the order of stages cannot work,
            or several sources are to share a single thread.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stages: Sequence[Stage[Any, Any]],
        sinks: Sequence[Sink],
        *,
        live: bool,
        queues: QueueOptions | None = None,
        limits: Limits | None = None,
        deadlines: Deadlines | None = None,
        context: RunContext | None = None,
        tap: FrameTap | None = None,
    ) -> None:
        self._sources = list(sources)
        self._stages: list[AnyStage] = list(stages)
        self._sinks = list(sinks)
        self._live = live
        self._options = queues or QueueOptions()
        self._limits = limits or Limits()
        self._deadlines = deadlines or Deadlines()
        self._context = context or RunContext()
        self._context.live = live
        self._tap = tap
        self._stop_requests = 0
        self._workers: list[Worker] = []
        self._queues: list[BoundedQueue[Item]] = []
        self._check()

    def request_stop(self) -> None:
        """Ask to stop: the first call drains, the second aborts.

        Only counts, takes no lock: safe in a signal handler and from any thread.
        """
        self._stop_requests += 1

    def run(
        self, on_tick: Callable[[Snapshot], None] | None = None, tick_s: float = 0.25
    ) -> RunResult:
        """Run until the sources end, a limit is reached, a stop is asked for or something fails.

        Does not raise for a failed run: the result carries the failures.

        Args:
            on_tick: called in this thread about every `tick_s` seconds.
        """
        single = self._options.threads == "single"
        state = RunState(
            self._context, workers=self._worker_count(single=single), sources=self._sources
        )
        last = self._build(state, single=single)
        for queue in self._queues:
            state.on_abort(queue.abort)
        # 1 ms instead of 5: a thread back from a C call waits less for one that runs Python.
        switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(0.001)
        started, cpu = time.monotonic(), time.process_time()
        started_ns = self._context.clock.now_ns()
        try:
            for worker in self._workers:
                worker.thread.start()
            stuck = self._supervise(state, on_tick, tick_s, started)
        except BaseException:
            state.abort()
            self._wait_for_threads()  # or the process may end while they close the outputs
            raise
        finally:
            sys.setswitchinterval(switch_interval)
        wall_s = time.monotonic() - started
        outputs = [] if stuck else self._outputs(state)
        failures = state.failures + stuck
        exit_code, reason = self._verdict(failures)
        ages: dict[str, Histogram] = {name: Histogram() for name in state.streams}
        for chain in last:
            for stream, histogram in chain.ages_ms.items():
                ages[stream].merge(histogram)
        return RunResult(
            live=self._live,
            exit_code=exit_code,
            reason=reason,
            failures=failures,
            wall_s=wall_s,
            cpu_s=time.process_time() - cpu,
            peak_rss_mb=peak_rss_mb(),
            streams=state.streams,
            ages_ms=ages,
            stages=self._stage_metrics(last),
            counters={node.name: dict(node.counters) for node in self._nodes},
            queues={queue.name: queue.stats() for queue in self._queues},
            outputs=outputs,
            context=self._context,
            started_ns=started_ns,
            tap=self._tap,
        )

    @property
    def _nodes(self) -> list[Source | Stage[Frame, Frame]]:
        return [*self._sources, *self._stages, *self._sinks]

    def _check(self) -> None:
        if not self._sources or not self._sinks:
            raise UsageError("a pipeline needs at least one source and one sink")
        names = [node.name for node in self._nodes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise UsageError(
                f"names must be unique in a pipeline, used twice: {', '.join(double)}; "
                "give one of them another `name`"
            )
        if len(self._sources) > 1 and self._options.threads == "single":
            raise UsageError("queues.threads: single takes one source, got several")
        first = self._stages[0].name if self._stages else ""
        if len(self._sources) > 1 and not self._options.queued.get(first, True):
            raise UsageError(
                f"stage {first!r} cannot do without a queue: several sources feed it; "
                "remove its `queue: false`"
            )
        kind, maker = "Frame", "the source"
        for stage in self._stages:
            if stage.accepts.__name__ != kind:
                raise UsageError(
                    f"stage {stage.name!r} accepts {stage.accepts.__name__}, "
                    f"but {maker} produces {kind}"
                )
            kind, maker = stage.produces.__name__, repr(stage.name)
        if kind != "Frame":
            raise UsageError(f"sinks accept Frame, but {maker} produces {kind}")

    def _with_queue(self) -> list[int]:
        """Return the positions of the stages that start a thread.

        A light stage costs less than the switch to its thread and back, but only where threads
        outnumber cores: with cores to spare it is worth a thread, since it then takes nothing from
        the stage before it. Measured on 2 cores, 720p, YOLOX-nano: 92 frames/s against 88.
        """
        every = len(self._sources) + len(self._stages) + len(self._sinks)
        crowded = every > available_cores()
        found = []
        heavy = next((i for i, s in enumerate(self._stages) if not s.light), 0)
        for index, stage in enumerate(self._stages):
            # Live, a frame that waits for the first heavy stage must wait where a newer one can
            # still take its place: in the first queue, not in one behind preprocessing.
            if self._live and 0 < index <= heavy and stage.name not in self._options.queued:
                continue
            # Live, frames are dropped in front of the first stage, before work goes into them; and
            # the threads of several sources cannot share one stage.
            needed = index == 0 and (self._live or len(self._sources) > 1)
            if self._options.queued.get(stage.name, needed or not (crowded and stage.light)):
                found.append(index)
        return found

    def _worker_count(self, *, single: bool) -> int:
        if single:
            return 1
        return len(self._sources) + len(self._with_queue()) + len(self._sinks)

    def _build(self, state: RunState, *, single: bool) -> list[Chain]:
        """Make workers, queues and chains; return the chains that hold the sinks."""
        readers = [SourceWorker(source, state, self._limits) for source in self._sources]
        self._workers = list(readers)
        self._queues = []
        if single:
            inline = [InlineSink(Chain([sink], [], readers[0])) for sink in self._sinks]
            readers[0].chain = Chain(self._stages, inline, readers[0], tap=self._tap, last=True)
            return [sink.chain for sink in inline]
        sink_outlets: list[QueueOutlet] = []
        sink_chains: list[Chain] = []
        before = self._stages[-1].name if self._stages else "source"
        for sink in self._sinks:
            policy = sink.on_full or ("drop_oldest" if self._live else "block")
            queue = self._queue(
                f"{before}->{sink.name}",
                policy=cast("Policy", policy),
                producers=1 if self._stages else len(self._sources),
                sink=True,
            )
            worker = QueueWorker(f"sink {sink.name}", queue, state)
            worker.chain = Chain([sink], [], worker)
            self._workers.append(worker)
            sink_outlets.append(QueueOutlet(queue, state, count_drops=False))
            sink_chains.append(worker.chain)
        outlets, last = sink_outlets, True
        end = len(self._stages)
        starts = self._with_queue()
        for start in reversed(starts):
            stage, first = self._stages[start], start == starts[0]
            before = "source" if start == 0 else self._stages[start - 1].name
            queue = self._queue(
                f"{before}->{stage.name}",
                policy="drop_oldest" if self._live and first else "block",
                producers=len(self._sources) if first else 1,
                one_per_stream=self._live and first,
            )
            max_age_s = self._options.max_age_s if self._live and first else None
            worker = QueueWorker(f"stage {stage.name}", queue, state, max_age_s=max_age_s)
            worker.chain = Chain(
                self._stages[start:end],
                outlets,
                worker,
                tap=self._tap if last else None,
                last=last,
            )
            self._workers.append(worker)
            outlets, last, end = [QueueOutlet(queue, state, count_drops=first)], False, start
        for reader in readers:
            reader.chain = Chain(
                self._stages[:end], outlets, reader, tap=self._tap if last else None, last=last
            )
        self._queues.reverse()
        return sink_chains

    def _queue(
        self,
        name: str,
        *,
        policy: Policy,
        producers: int,
        sink: bool = False,
        one_per_stream: bool = False,
    ) -> BoundedQueue[Item]:
        capacity = self._options.capacity
        if one_per_stream:
            capacity = producers
        elif self._live and not sink:
            capacity = min(capacity, LIVE_CAPACITY)
        queue: BoundedQueue[Item] = BoundedQueue(
            name,
            capacity=capacity,
            max_bytes=self._options.max_bytes,
            policy=policy,
            producers=producers,
            one_per=_stream_of if one_per_stream else None,
            clock=self._context.clock,
        )
        self._queues.append(queue)
        return queue

    def _supervise(
        self,
        state: RunState,
        on_tick: Callable[[Snapshot], None] | None,
        tick_s: float,
        started: float,
    ) -> list[RackfocusError]:
        """Wait for the threads; carry out stop requests; give up on those that do not return."""
        rates: deque[tuple[float, int]] = deque([(started, 0)])
        next_tick = started + tick_s
        watch = _Watch(self._workers)
        handled = 0
        while alive := [w for w in self._workers if w.thread.is_alive()]:
            alive[0].thread.join(0.02)
            requests = self._stop_requests
            if requests > handled:
                (state.drain if requests == 1 else state.abort)()
                handled = requests
            now = time.monotonic()
            if on_tick is not None and now >= next_tick:
                next_tick = now + tick_s
                on_tick(self._snapshot(state, rates, now, started))
            idle_s = watch.idle_s(now)
            if state.aborted.is_set():
                if watch.since_abort_s(now) > self._deadlines.abort_s:
                    return [_stuck(worker, self._deadlines.abort_s, state) for worker in alive]
            elif (state.stopping or state.failures) and idle_s > (patience := self._patience()):
                for worker in [w for w in alive if w.activity is not None] or alive:
                    state.fail(_stuck(worker, patience, state))
                state.abort()
            elif idle_s > self._deadlines.slow_call_s:
                for worker in alive:
                    activity = worker.activity  # read once: its thread may clear it at any moment
                    if activity is not None:
                        self._context.note(
                            f"{activity.node} has been in {activity.operation} for more than "
                            f"{self._deadlines.slow_call_s:g} s"
                        )
        return []

    def _patience(self) -> float:
        activities = [worker.activity for worker in self._workers]
        flushing = any(activity and activity.operation == "flush" for activity in activities)
        return self._deadlines.flush_s if flushing else self._deadlines.drain_s

    def _wait_for_threads(self) -> None:
        deadline = time.monotonic() + self._deadlines.abort_s
        for worker in self._workers:
            if worker.thread.is_alive():
                worker.thread.join(max(0.0, deadline - time.monotonic()))

    def _outputs(self, state: RunState) -> list[OutputInfo]:
        found: list[OutputInfo] = []
        for sink in self._sinks:
            try:
                found.extend(sink.outputs())
            except Exception as error:  # noqa: BLE001 - the other sinks' figures are still right
                state.fail(StageError(sink.name, "outputs", error))
        return found

    def _snapshot(
        self, state: RunState, rates: deque[tuple[float, int]], now: float, started: float
    ) -> Snapshot:
        out = sum(stream.frames_out for stream in state.streams.values())
        rates.append((now, out))
        while len(rates) > 2 and now - rates[0][0] > 2:
            rates.popleft()
        (then, before), elapsed = rates[0], now - rates[0][0]
        return Snapshot(
            wall_s=now - started,
            fps=(out - before) / elapsed if now > then else 0.0,
            streams={
                name: StreamSnapshot(
                    s.frames_in, s.frames_out, s.dropped_full + s.dropped_stale, s.last_age_ms
                )
                for name, s in list(state.streams.items())
            },
        )

    def _verdict(self, failures: list[RackfocusError]) -> tuple[int, str]:
        if failures:
            return failures[0].exit_code, str(failures[0])
        if self._stop_requests > 1:
            return 130, "aborted by the user"
        if self._stop_requests or any(sink.wants_stop for sink in self._sinks):
            return 130, "stopped by the user"
        return 0, "end of stream"

    def _stage_metrics(self, sink_chains: list[Chain]) -> dict[str, StageMetrics]:
        found: dict[str, StageMetrics] = {}
        for worker in self._workers:
            if isinstance(worker, SourceWorker):
                found[worker.source.name] = worker.metrics
            found |= worker.chain.named_metrics()
        for chain in sink_chains:
            found |= chain.named_metrics()
        return {node.name: found[node.name] for node in self._nodes}


def _stream_of(item: Item) -> str:
    frame = item if isinstance(item, Frame) else item.frame
    return frame.id.stream


class _Watch:
    """Knows for how long no thread has completed a call."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._progress = -1
        self._since = time.monotonic()
        self._aborted_at: float | None = None

    def idle_s(self, now: float) -> float:
        progress = sum(worker.progress for worker in self._workers)
        if progress != self._progress:
            self._progress, self._since = progress, now
        return now - self._since

    def since_abort_s(self, now: float) -> float:
        if self._aborted_at is None:
            self._aborted_at = now
        return now - self._aborted_at


def _stuck(worker: Worker, waited_s: float, state: RunState) -> StuckError:
    activity = worker.activity
    frame = sys._current_frames().get(worker.thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"
    if activity is None:
        return StuckError(worker.name, "its loop", waited_s, stack)
    waited_s = max(waited_s, (state.clock.now_ns() - activity.since_ns) / 1e9)
    return StuckError(
        f"{worker.name} ({activity.node})", activity.operation, round(waited_s, 1), stack
    )


def live_threads() -> list[str]:
    """Return the names of the engine's threads that are alive: for tests and diagnosis."""
    return [t.name for t in threading.enumerate() if t.name.startswith("rackfocus")]
