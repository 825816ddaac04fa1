"""What runs inside one thread: a source or a queue's consumer, some stages, and where results go.

A `Chain` calls stages one after another in the calling thread and hands what leaves the last one
to its outlets: queues of other threads, or sinks run in place. A `Worker` is the thread around a
chain. The engine's promises about failures are kept here: the failing call is named; what was
finished before it is still delivered and finalised downstream; upstream is told to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, cast

from pipeline.clock import Clock
from pipeline.errors import RackfocusError, StageError
from pipeline.frame import Frame, FrameId, Item
from pipeline.metrics import Histogram, StageMetrics, StreamMetrics
from pipeline.queue import BoundedQueue, QueueState
from pipeline.stage import RunContext, Sink, Source, Stage

R = TypeVar("R")
AnyStage = Stage[Frame, Frame]
"""The runner moves items between stages without looking inside; order was checked when it was
built."""


class FrameTap(Protocol):
    """Sees every frame that leaves the last stage, in order, on that stage's thread."""

    def add(self, frame: Frame) -> None:
        """Take note of one frame."""
        ...

    def hexdigest(self) -> str:
        """Return a hash of all that was seen."""
        ...


class Activity(NamedTuple):
    """The call a thread is in."""

    node: str
    operation: str
    since_ns: int
    frame_id: FrameId | None


class RunState:
    """What the threads of one run share. Every method may be called from any thread."""

    def __init__(
        self,
        context: RunContext,
        *,
        workers: int,
        sources: Sequence[Source],
    ) -> None:
        self.context = context
        self.clock: Clock = context.clock
        self.failures: list[RackfocusError] = []
        self.streams: dict[str, StreamMetrics] = {}
        self.draining = threading.Event()
        self.aborted = threading.Event()
        self.ended: set[str] = set()
        """Sources that are read no more, by name."""
        self._lock = threading.Lock()
        self._unopened = workers
        self._gate = threading.Event()
        self._sources = sources
        self._not_refused = len(sources)
        self._uninterruptible: set[str] = set()
        self._on_abort: list[Callable[[], None]] = []

    def fail(self, error: RackfocusError) -> None:
        """Record a failure; the first recorded is the one the run ends with."""
        with self._lock:
            self.failures.append(error)

    def on_abort(self, action: Callable[[], None]) -> None:
        """Register what `abort` calls; the action must not wait."""
        self._on_abort.append(action)

    def drain(self) -> None:
        """Ask the sources to stop; everything under way is finished."""
        self.draining.set()
        self._gate.set()
        for source in self._sources:
            try:
                source.interrupt()
            except Exception as error:  # noqa: BLE001 - one bad source must not save the others
                with self._lock:
                    told = source.name in self._uninterruptible
                    self._uninterruptible.add(source.name)
                if not told:
                    self.fail(StageError(source.name, "interrupt", error))

    def abort(self) -> None:
        """Stop everything at once and discard what is under way. Idempotent."""
        self.aborted.set()
        for action in self._on_abort:
            action()
        self.drain()

    def refuse(self) -> bool:
        """Say that one source could not be opened; True where no source is left."""
        with self._lock:
            self._not_refused -= 1
            return self._not_refused <= 0

    def arrive(self) -> None:
        """Say that one worker's stages are open."""
        with self._lock:
            self._unopened -= 1
            if self._unopened <= 0:
                self._gate.set()

    def wait_until_open(self) -> None:
        """Wait until every stage is open, so that no source starts before it can be served."""
        self._gate.wait()

    @property
    def opened(self) -> bool:
        """Every stage is open."""
        return self._unopened <= 0

    @property
    def stopping(self) -> bool:
        """A drain or an abort was asked for."""
        return self.draining.is_set()


class Outlet(Protocol):
    """Where a chain's results go."""

    @property
    def alive(self) -> bool:
        """False once nothing more is taken."""
        ...

    def put(self, item: Item) -> None:
        """Hand over one item; may wait."""
        ...

    def end(self) -> None:
        """No more items will come: finish in order."""
        ...

    def abort(self) -> None:
        """Discard what is under way."""
        ...


class QueueOutlet:
    """Hands items to another thread, and counts the frames that its queue drops."""

    def __init__(self, queue: BoundedQueue[Item], state: RunState, *, count_drops: bool) -> None:
        self.queue = queue
        self._state = state
        self._count_drops = count_drops
        self._alive = True

    @property
    def alive(self) -> bool:
        """False once the queue was aborted."""
        return self._alive and self.queue.state is not QueueState.ABORTED

    def put(self, item: Item) -> None:
        """Offer to the queue."""
        offer = self.queue.put(item)
        self._alive = not offer.aborted
        if self._count_drops:
            for dropped in offer.dropped:
                self._state.streams[dropped.id.stream].dropped_full += 1

    def end(self) -> None:
        """End the queue behind its items."""
        self.queue.end()

    def abort(self) -> None:
        """Abort the queue."""
        self.queue.abort()


class Worker:
    """One thread: its chain, and what it is doing right now, for whoever must name a stuck
    stage."""

    def __init__(self, name: str, state: RunState) -> None:
        self.name = name
        self.state = state
        self.chain: Chain
        self.activity: Activity | None = None
        self.progress = 0
        """Calls completed: grows for as long as the thread gets anywhere."""
        # A daemon, because a thread stuck in a library must not keep the process from ending.
        self.thread = threading.Thread(target=self._guard, name=f"rackfocus {name}", daemon=True)

    def call(
        self,
        node: str,
        operation: str,
        function: Callable[[], R],
        frame_id: FrameId | None = None,
    ) -> R:
        """Run one call of a source, stage or sink; its failure is raised as a StageError."""
        self.activity = Activity(node, operation, self.state.clock.now_ns(), frame_id)
        try:
            return function()
        except BaseException as error:
            # Also what is no Exception (a library's sys.exit, a Rust panic): nobody else would
            # hear of it, and the threads around this one would wait for ever.
            raise StageError(node, operation, error, frame_id) from error
        finally:
            self.activity = None
            self.progress += 1

    def open_chain(self) -> bool:
        """Open the chain's stages; where one fails, record it, end the run and return False."""
        try:
            self.chain.open()
        except StageError as error:
            self.state.fail(error)
            self.state.abort()
            return False
        self.state.arrive()
        return True

    def run(self) -> None:
        """What the thread does, until its stream ends, it is aborted, or it fails."""
        raise NotImplementedError

    def _guard(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - a fault of the engine must reach the caller
            self.state.fail(StageError(self.name, "run", error))
            self.state.abort()


class Chain:
    """Stages run one after another in one thread, then outlets. Only its worker's thread calls
    it."""

    def __init__(
        self,
        stages: Sequence[AnyStage],
        outlets: Sequence[Outlet],
        worker: Worker,
        *,
        tap: FrameTap | None = None,
        last: bool = False,
    ) -> None:
        self._stages = list(stages)
        self._outlets = list(outlets)
        self._worker = worker
        self._state = worker.state
        self._tap = tap
        self._last = last
        self._opened = 0
        self._failed_at = -1
        self.metrics = [StageMetrics() for _ in stages]
        self.ages_ms: dict[str, Histogram] = {}
        """Per stream, age after a sink of this chain had taken the frame."""

    @property
    def max_size(self) -> int:
        """The batch that the first stage wants."""
        return self._stages[0].batching.max_size if self._stages else 1

    @property
    def max_wait_s(self) -> float:
        """How long the first stage waits for its batch."""
        return self._stages[0].batching.max_wait_s if self._stages else 0.0

    @property
    def alive(self) -> bool:
        """Whether anyone still takes results."""
        return not self._outlets or any(outlet.alive for outlet in self._outlets)

    def named_metrics(self) -> dict[str, StageMetrics]:
        """Return each stage's measurements by its name."""
        return {
            stage.name: metrics for stage, metrics in zip(self._stages, self.metrics, strict=True)
        }

    def open(self) -> None:
        """Open the stages in order.

        Raises:
            StageError: one failed; those before it are open and want `close`.
        """
        for stage in self._stages:
            self._worker.call(stage.name, "open", partial(stage.open, self._state.context))
            self._opened += 1
        for outlet in self._outlets:
            if isinstance(outlet, InlineSink):
                outlet.chain.open()

    def process(self, items: Sequence[Item], start: int = 0) -> None:
        """Run items through the stages from `start` on and hand the results to the outlets.

        Depth first: what an earlier part of `items` produced is delivered before a later part can
        fail.

        Raises:
            StageError: a stage failed; `finish` then flushes only the stages behind it.
        """
        if start == len(self._stages):
            self._deliver(items)
            return
        stage, metrics = self._stages[start], self.metrics[start]
        size = stage.batching.max_size
        for offset in range(0, len(items), size):
            chunk = cast("Sequence[Frame]", items[offset : offset + size])
            wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                out = self._worker.call(
                    stage.name, "process", partial(stage.process, chunk), chunk[0].id
                )
            except StageError:
                self._failed_at = start
                raise
            wall = time.perf_counter_ns() - wall
            metrics.cpu_ns += time.thread_time_ns() - cpu
            metrics.busy_ns += wall
            metrics.items += len(chunk)
            metrics.service_ms.add(wall / 1e6 / len(chunk), len(chunk))
            if isinstance(stage, Sink):
                self._record_ages(chunk)
                if stage.wants_stop:
                    self._state.drain()
            if out:
                self.process(out, start + 1)

    def finish(self) -> None:
        """End of stream: flush the stages in order, then end the outlets. Failures are recorded."""
        for index, stage in enumerate(self._stages[: self._opened]):
            if index <= self._failed_at:  # asked anew: what a flush gave may fail further down
                continue
            try:
                out = self._worker.call(stage.name, "flush", stage.flush)
                if out:
                    self.process(out, index + 1)
            except StageError as error:
                self._state.fail(error)
        for outlet in self._outlets:
            outlet.end()

    def abort(self) -> None:
        """Discard: tell the outlets, flush nothing."""
        for outlet in self._outlets:
            outlet.abort()

    def close(self) -> None:
        """Close what was opened, last first. Failures are recorded."""
        for outlet in self._outlets:
            if isinstance(outlet, InlineSink):
                outlet.chain.close()
        while self._opened:
            self._opened -= 1
            stage = self._stages[self._opened]
            try:
                self._worker.call(stage.name, "close", stage.close)
            except StageError as error:
                self._state.fail(error)

    def _deliver(self, items: Sequence[Item]) -> None:
        for item in items:
            if self._last:
                frame = cast("Frame", item)
                if self._tap is not None:
                    self._tap.add(frame)
                self._state.streams[frame.id.stream].frames_out += 1
            for outlet in self._outlets:
                if outlet.alive:
                    outlet.put(item)

    def _record_ages(self, frames: Sequence[Frame]) -> None:
        now = self._state.clock.now_ns()
        for frame in frames:
            age_ms = (now - frame.time.captured_ns) / 1e6
            stream = frame.id.stream
            if stream not in self.ages_ms:
                self.ages_ms[stream] = Histogram()
            self.ages_ms[stream].add(age_ms)
            self._state.streams[stream].last_age_ms = age_ms


class InlineSink:
    """A sink run in the thread of the chain before it; its failure does not stop that chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._state = chain._state
        self._alive = True

    @property
    def alive(self) -> bool:
        """False once the sink failed."""
        return self._alive

    def put(self, item: Item) -> None:
        """Give the item to the sink."""
        try:
            self.chain.process([item])
        except StageError as error:
            self._state.fail(error)
            self._alive = False

    def end(self) -> None:
        """Finalise the output, if the sink has not failed."""
        if self._alive:
            self.chain.finish()

    def abort(self) -> None:
        """Nothing to discard: the chain's `close` closes the sink without a flush."""
        self._alive = False
