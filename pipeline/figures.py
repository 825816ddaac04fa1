"""What a running pipeline tells of itself: the figures of one moment, for whoever shows them.

`RunContext.figures` gives them to sinks while the run goes on. They are the report's figures, taken
early. Counters are read one after another while their threads go on counting, so a frame may be in
one of them and not yet in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.metrics import Histogram, StageMetrics
from pipeline.queue import QueueStats

if TYPE_CHECKING:
    from pipeline.segment import Chain, RunState
    from pipeline.wiring import Threads, Wiring

NodeRole = Literal["source", "stage", "sink"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram of milliseconds in a few numbers; percentiles within 1 %, None while empty."""

    count: int
    total: float
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None

    @staticmethod
    def of(histogram: Histogram) -> Spread:
        """Summarise a histogram of milliseconds."""
        return Spread(
            histogram.count,
            histogram.total,
            histogram.percentile(50),
            histogram.percentile(95),
            histogram.percentile(99),
            histogram.max if histogram.count else None,
        )


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """One source's frames so far."""

    state: str
    """connecting, running, stalled, backing off or stopped."""
    reason: str
    """Of the last change of state; "" while nothing went wrong. Free of credentials."""
    frames_in: int
    frames_out: int
    dropped_full: int
    dropped_stale: int
    corrupt: int
    epochs: int
    last_age_ms: float | None
    age_ms: Spread
    """Since the start, from capture until a sink had taken the frame."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One source, stage or sink so far."""

    role: NodeRole
    items: int
    busy_s: float
    service_ms: Spread
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """The whole run so far."""

    wall_s: float
    live: bool
    opened: bool
    """Every stage and sink is open."""
    streams: Mapping[str, StreamFigures]
    nodes: Mapping[str, NodeFigures]
    """Sources, stages and sinks by name, in the order of the chain."""
    queues: Mapping[str, QueueStats]

    @property
    def waiting_for(self) -> list[str]:
        """Streams that have given no frame yet."""
        return [name for name, stream in self.streams.items() if not stream.frames_in]

    @property
    def ready(self) -> bool:
        """Every stage is open and every source has given a frame."""
        return self.opened and not self.waiting_for


def ages_by_stream(streams: Iterable[str], sinks: Iterable[Chain]) -> dict[str, Histogram]:
    """Return each stream's ages over all sinks. Any thread."""
    ages = {name: Histogram() for name in streams}
    for chain in sinks:
        # A copy: its thread adds a stream at its first frame.
        for stream, histogram in dict(chain.ages_ms).items():
            ages[stream].merge(histogram)
    return ages


def take_figures(
    state: RunState,
    wiring: Wiring,
    threads: Threads,
    metrics: Mapping[str, StageMetrics],
    started_ns: int,
) -> Figures:
    """Return the figures of this moment. Any thread; about a millisecond of Python.

    Args:
        state: what the run's threads share.
        wiring: its sources, stages and sinks.
        threads: its queues and sinks' chains.
        metrics: by the name of source, stage or sink.
        started_ns: Clock.now_ns() when the threads were started.
    """
    ages = ages_by_stream(state.streams, threads.sinks)
    counters = {node.name: dict(node.counters) for node in wiring.nodes}
    roles: dict[str, NodeRole] = {source.name: "source" for source in wiring.sources}
    roles |= {sink.name: "sink" for sink in wiring.sinks}
    states = {name: _state(name, state) for name in state.streams}
    return Figures(
        wall_s=(state.clock.now_ns() - started_ns) / 1e9,
        live=state.context.live,
        opened=state.opened,
        streams={
            name: StreamFigures(
                *states[name],
                stream.frames_in,
                stream.frames_out,
                stream.dropped_full,
                stream.dropped_stale,
                counters.get(name, {}).get("corrupt", 0),
                stream.epochs,
                stream.last_age_ms,
                Spread.of(ages[name]),
            )
            for name, stream in state.streams.items()
        },
        nodes={
            name: NodeFigures(
                roles.get(name, "stage"),
                each.items,
                each.busy_ns / 1e9,
                Spread.of(each.service_ms),
                counters.get(name, {}),
            )
            for name, each in metrics.items()
        },
        queues={queue.name: queue.stats() for queue in threads.queues},
    )


def _state(stream: str, state: RunState) -> tuple[str, str]:
    """Return what a stream is doing and why; a start and an end as they should be are no events."""
    event = next((e for e in reversed(list(state.context.events)) if e.stream == stream), None)
    reason = "" if event is None else event.reason
    if stream in state.ended:
        return "stopped", reason
    if event is not None:
        return event.state, reason
    return ("running" if stream in state.context.streams else "connecting"), ""
