"""Which threads a run has, and the queues between them.

A queue starts a thread; a stage without one runs in the thread before it. Live sources drop in
their first queue only; everything after it blocks, except that in live mode each sink's own queue
drops, so that one slow output delays nobody. Used by the runner, before any thread runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pipeline.clock import Clock
from pipeline.errors import UsageError
from pipeline.frame import Frame, Item
from pipeline.limits import Limits
from pipeline.metrics import available_cores
from pipeline.queue import BoundedQueue, Policy
from pipeline.segment import AnyStage, Chain, FrameTap, InlineSink, QueueOutlet, RunState, Worker
from pipeline.stage import Sink, Source, Stage
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
class Threads:
    """What runs: workers with their chains, and the queues between them."""

    workers: list[Worker]
    queues: list[BoundedQueue[Item]]
    """From the sources to the sinks."""
    sinks: list[Chain]
    """The chains that hold the sinks."""


class Wiring:
    """The plan of one run's threads and queues.

    Args:
        sources: at least one, names unique.
        stages: the chain; the order of types must fit.
        sinks: at least one; each sees every frame.
        live: drop early and stay fresh, instead of processing every frame.
        options: how the threads are linked.

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
        options: QueueOptions,
    ) -> None:
        self.sources = list(sources)
        self.stages: list[AnyStage] = list(stages)
        self.sinks = list(sinks)
        self._live = live
        self._options = options
        self._check()

    @property
    def nodes(self) -> list[Source | Stage[Frame, Frame]]:
        """Sources, stages and sinks, in the order of the chain."""
        return [*self.sources, *self.stages, *self.sinks]

    @property
    def worker_count(self) -> int:
        """How many threads there will be."""
        if self._options.threads == "single":
            return 1
        return len(self.sources) + len(self._with_queue()) + len(self.sinks)

    def _check(self) -> None:
        if not self.sources or not self.sinks:
            raise UsageError("a pipeline needs at least one source and one sink")
        names = [node.name for node in self.nodes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise UsageError(
                f"names must be unique in a pipeline, used twice: {', '.join(double)}; "
                "give one of them another `name`"
            )
        if len(self.sources) > 1 and self._options.threads == "single":
            raise UsageError("queues.threads: single takes one source, got several")
        first = self.stages[0].name if self.stages else ""
        if len(self.sources) > 1 and not self._options.queued.get(first, True):
            raise UsageError(
                f"stage {first!r} cannot do without a queue: several sources feed it; "
                "remove its `queue: false`"
            )
        kind, maker = "Frame", "the source"
        for stage in self.stages:
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
        every = len(self.sources) + len(self.stages) + len(self.sinks)
        crowded = every > available_cores()
        found = []
        heavy = next((i for i, s in enumerate(self.stages) if not s.light), 0)
        for index, stage in enumerate(self.stages):
            # Live, a frame that waits for the first heavy stage must wait where a newer one can
            # still take its place: in the first queue, not in one behind preprocessing.
            if self._live and 0 < index <= heavy and stage.name not in self._options.queued:
                continue
            # Live, frames are dropped in front of the first stage, before work goes into them; and
            # the threads of several sources cannot share one stage.
            needed = index == 0 and (self._live or len(self.sources) > 1)
            if self._options.queued.get(stage.name, needed or not (crowded and stage.light)):
                found.append(index)
        return found

    def build(self, state: RunState, limits: Limits, tap: FrameTap | None) -> Threads:
        """Make workers, queues and chains; nothing is started.

        Args:
            state: what the threads share.
            limits: when the sources stop by themselves.
            tap: sees every frame that leaves the last stage.
        """
        readers = [SourceWorker(source, state, limits) for source in self.sources]
        workers: list[Worker] = list(readers)
        queues: list[BoundedQueue[Item]] = []
        if self._options.threads == "single":
            inline = [InlineSink(Chain([sink], [], readers[0])) for sink in self.sinks]
            readers[0].chain = Chain(self.stages, inline, readers[0], tap=tap, last=True)
            return Threads(workers, queues, [sink.chain for sink in inline])
        sink_outlets: list[QueueOutlet] = []
        sink_chains: list[Chain] = []
        before = self.stages[-1].name if self.stages else "source"
        for sink in self.sinks:
            policy = sink.on_full or ("drop_oldest" if self._live else "block")
            queue = self._queue(
                f"{before}->{sink.name}",
                state.clock,
                policy=cast("Policy", policy),
                producers=1 if self.stages else len(self.sources),
                sink=True,
            )
            queues.append(queue)
            worker = QueueWorker(f"sink {sink.name}", queue, state)
            worker.chain = Chain([sink], [], worker)
            workers.append(worker)
            sink_outlets.append(QueueOutlet(queue, state, count_drops=False))
            sink_chains.append(worker.chain)
        outlets, last = sink_outlets, True
        end = len(self.stages)
        starts = self._with_queue()
        for start in reversed(starts):
            stage, first = self.stages[start], start == starts[0]
            before = "source" if start == 0 else self.stages[start - 1].name
            queue = self._queue(
                f"{before}->{stage.name}",
                state.clock,
                policy="drop_oldest" if self._live and first else "block",
                producers=len(self.sources) if first else 1,
                one_per_stream=self._live and first,
            )
            queues.append(queue)
            max_age_s = self._options.max_age_s if self._live and first else None
            worker = QueueWorker(f"stage {stage.name}", queue, state, max_age_s=max_age_s)
            worker.chain = Chain(
                self.stages[start:end],
                outlets,
                worker,
                tap=tap if last else None,
                last=last,
            )
            workers.append(worker)
            outlets, last, end = [QueueOutlet(queue, state, count_drops=first)], False, start
        for reader in readers:
            reader.chain = Chain(
                self.stages[:end], outlets, reader, tap=tap if last else None, last=last
            )
        return Threads(workers, queues[::-1], sink_chains)

    def _queue(
        self,
        name: str,
        clock: Clock,
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
        return BoundedQueue(
            name,
            capacity=capacity,
            max_bytes=self._options.max_bytes,
            policy=policy,
            producers=producers,
            one_per=_stream_of if one_per_stream else None,
            clock=clock,
        )


def _stream_of(item: Item) -> str:
    frame = item if isinstance(item, Frame) else item.frame
    return frame.id.stream
