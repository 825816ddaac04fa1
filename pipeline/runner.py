"""Runs sources, stages and sinks in threads linked by bounded queues, and accounts for every frame.

Which threads and queues there are is in `wiring`. `Pipeline.run` blocks its caller, who may be told
about progress.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RackfocusError, StageError, StuckError
from pipeline.figures import ages_by_stream, take_figures
from pipeline.frame import Item
from pipeline.limits import Limits
from pipeline.metrics import (
    Histogram,
    StageMetrics,
    StreamMetrics,
    peak_rss_mb,
)
from pipeline.queue import BoundedQueue, QueueStats
from pipeline.segment import Chain, FrameTap, RunState, Worker
from pipeline.stage import OutputInfo, RunContext, Sink, Source, Stage
from pipeline.wiring import QueueOptions, Wiring
from pipeline.workers import SourceWorker


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
            or several sources are to share a thread.
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
        self._live = live
        self._wiring = Wiring(sources, stages, sinks, live=live, options=queues or QueueOptions())
        self._limits = limits or Limits()
        self._deadlines = deadlines or Deadlines()
        self._context = context or RunContext()
        self._context.live = live
        self._tap = tap
        self._stop_requests = 0
        self._workers: list[Worker] = []
        self._queues: list[BoundedQueue[Item]] = []

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
        wiring = self._wiring
        state = RunState(self._context, workers=wiring.worker_count, sources=wiring.sources)
        threads = wiring.build(state, self._limits, self._tap)
        self._workers, self._queues = threads.workers, threads.queues
        for queue in self._queues:
            state.on_abort(queue.abort)
        # 1 ms instead of 5: a thread back from a C call waits less for one that runs Python.
        switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(0.001)
        started, cpu = time.monotonic(), time.process_time()
        started_ns = self._context.clock.now_ns()
        self._context.figures = lambda: take_figures(
            state, wiring, threads, self._stage_metrics(threads.sinks), started_ns
        )
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
        return RunResult(
            live=self._live,
            exit_code=exit_code,
            reason=reason,
            failures=failures,
            wall_s=wall_s,
            cpu_s=time.process_time() - cpu,
            peak_rss_mb=peak_rss_mb(),
            streams=state.streams,
            ages_ms=ages_by_stream(state.streams, threads.sinks),
            stages=self._stage_metrics(threads.sinks),
            counters={node.name: dict(node.counters) for node in self._wiring.nodes},
            queues={queue.name: queue.stats() for queue in self._queues},
            outputs=outputs,
            context=self._context,
            started_ns=started_ns,
            tap=self._tap,
        )

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
        for sink in self._wiring.sinks:
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
        if self._stop_requests or any(sink.wants_stop for sink in self._wiring.sinks):
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
        return {node.name: found[node.name] for node in self._wiring.nodes}


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
