"""The run's figures as JSON for the page and as text for Prometheus, from one and the same sample.

The server's thread runs it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from pipeline.figures import Figures, Spread
from pipeline.queue import QueueStats
from pipeline.stage import RunContext
from pipeline.url import redact

_SAMPLE_S: Final = 0.25
"""However many ask, figures are gathered so often: it is Python that the pipeline waits for."""
_RATES_S: Final = 2.0
"""Rates are taken over about so long, or since somebody last looked."""
_EVENTS: Final = 20
STATES: Final = ("connecting", "running", "stalled", "backing off", "stopped")


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one moment, and what they give when compared with an earlier one."""

    number: int
    """Counts the samples of a run."""
    figures: Figures
    fps: Mapping[str, float]
    """By stream: frames out of the last stage per second."""
    rates_hz: Mapping[str, float]
    """By source, stage or sink: items per second."""
    busy: Mapping[str, float]
    """By source, stage or sink: share of the time spent inside."""
    viewers: int


class Sampler:
    """Takes samples when asked, at most four a second.

    Args:
        context: its `figures` are asked.
        viewers: says how many watch.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        context: RunContext,
        viewers: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._viewers = viewers
        self._now = now
        self._last: Sample | None = None
        self._taken_s = 0.0
        self._past: deque[Figures] = deque()

    def sample(self) -> Sample | None:
        """Return the newest sample; None where there is no run to ask."""
        now = self._now()
        if self._context.figures is None:
            return None
        if self._last is None or now - self._taken_s >= _SAMPLE_S:
            self._taken_s = now
            self._last = self._take(self._context.figures())
        return self._last

    def _take(self, new: Figures) -> Sample:
        self._past.append(new)
        while len(self._past) > 2 and new.wall_s - self._past[1].wall_s >= _RATES_S:
            self._past.popleft()
        old = self._past[0]
        # The first sample has nothing before it but the start of the run.
        first = old is new
        elapsed_s = max(new.wall_s - (0.0 if first else old.wall_s), 1e-6)
        out = {} if first else {name: s.frames_out for name, s in old.streams.items()}
        items = {} if first else {name: n.items for name, n in old.nodes.items()}
        busy_s = {} if first else {name: n.busy_s for name, n in old.nodes.items()}
        return Sample(
            number=1 if self._last is None else self._last.number + 1,
            figures=new,
            fps={n: (s.frames_out - out.get(n, 0)) / elapsed_s for n, s in new.streams.items()},
            rates_hz={n: (x.items - items.get(n, 0)) / elapsed_s for n, x in new.nodes.items()},
            busy={
                n: min(1.0, (x.busy_s - busy_s.get(n, 0.0)) / elapsed_s)
                for n, x in new.nodes.items()
            },
            viewers=self._viewers(),
        )


def as_json(sample: Sample, context: RunContext) -> dict[str, object]:
    """Return what /stats.json holds; JSON-able, free of credentials."""
    figures = sample.figures
    began_ns = context.clock.now_ns() - int(figures.wall_s * 1e9)
    return {
        "sample": sample.number,
        "mode": "live" if figures.live else "offline",
        "wall_s": round(figures.wall_s, 3),
        "ready": figures.ready,
        "viewers": sample.viewers,
        "streams": {
            name: {
                "state": stream.state,
                "reason": redact(stream.reason),
                "fps": round(sample.fps[name], 2),
                "frames_in": stream.frames_in,
                "frames_out": stream.frames_out,
                "dropped": {
                    "full": stream.dropped_full,
                    "stale": stream.dropped_stale,
                    "corrupt": stream.corrupt,
                },
                "epochs": stream.epochs,
                "age_ms": {"last": _rounded(stream.last_age_ms), **_spread(stream.age_ms)},
            }
            for name, stream in figures.streams.items()
        },
        "stages": {
            name: {
                "role": node.role,
                "items": node.items,
                "rate_hz": round(sample.rates_hz[name], 2),
                "busy_share": round(sample.busy[name], 4),
                "service_ms": _spread(node.service_ms),
                "counters": dict(node.counters),
            }
            for name, node in figures.nodes.items()
        },
        "queues": {name: asdict(queue) for name, queue in figures.queues.items()},
        "events": [
            {
                "time_s": round((event.at_ns - began_ns) / 1e9, 1),
                "stream": event.stream,
                "state": event.state,
                "reason": redact(event.reason),
            }
            for event in list(context.events)[-_EVENTS:]
        ],
    }


def as_prometheus(sample: Sample) -> str:
    """Return what /metrics holds: Prometheus' text format, version 0.0.4, seconds as its unit."""
    return "".join(f"{line}\n" for line in _metrics(sample))


def _metrics(sample: Sample) -> Iterator[str]:
    figures = sample.figures
    yield from _metric("ready", "gauge", "Stages open, frames from every source.", figures.ready)
    yield from _metric("uptime_seconds", "gauge", "Since the start of the run.", figures.wall_s)
    yield from _metric("viewers", "gauge", "Live pictures being watched.", sample.viewers)
    streams = figures.streams
    for name, told, values in (
        ("frames_in_total", "Frames captured.", {n: s.frames_in for n, s in streams.items()}),
        (
            "frames_out_total",
            "Frames that left the last stage.",
            {n: s.frames_out for n, s in streams.items()},
        ),
        ("connections_total", "Connections made.", {n: s.epochs for n, s in streams.items()}),
    ):
        yield from _family(name, "counter", told, (({"stream": n}, v) for n, v in values.items()))
    yield from _family(
        "frames_dropped_total",
        "counter",
        "Frames lost, by reason.",
        (
            ({"stream": n, "reason": reason}, value)
            for n, s in streams.items()
            for reason, value in (
                ("full", s.dropped_full),
                ("stale", s.dropped_stale),
                ("corrupt", s.corrupt),
            )
        ),
    )
    yield from _family(
        "stream_state",
        "gauge",
        "1 for the state that the stream is in.",
        (
            ({"stream": n, "state": state}, s.state == state)
            for n, s in streams.items()
            for state in STATES
        ),
    )
    yield from _family(
        "last_age_seconds",
        "gauge",
        "Age of the last frame when a sink had taken it.",
        (
            ({"stream": n}, s.last_age_ms / 1e3)
            for n, s in streams.items()
            if s.last_age_ms is not None
        ),
    )
    ages = (({"stream": n}, s.age_ms) for n, s in streams.items())
    yield from _summary("age_seconds", "From capture until a sink had taken the frame.", ages)
    nodes = figures.nodes
    yield from _family(
        "stage_items_total",
        "counter",
        "Items handled by a source, stage or sink.",
        (({"stage": n, "role": x.role}, x.items) for n, x in nodes.items()),
    )
    yield from _family(
        "stage_busy_seconds_total",
        "counter",
        "Wall time spent inside.",
        (({"stage": n, "role": x.role}, x.busy_s) for n, x in nodes.items()),
    )
    service = (({"stage": n}, x.service_ms) for n, x in nodes.items())
    yield from _summary("stage_service_seconds", "Wall time per item inside.", service)
    yield from _family(
        "stage_counter_total",
        "counter",
        "What a stage counts: cut, skipped, replaced, unsent.",
        (
            ({"stage": n, "counter": counter}, value)
            for n, x in nodes.items()
            for counter, value in x.counters.items()
        ),
    )
    yield from _queues(figures.queues)


def _queues(queues: Mapping[str, QueueStats]) -> Iterator[str]:
    for name, kind, told in (
        ("depth", "gauge", "Items in the queue."),
        ("capacity", "gauge", "Items that fit."),
        ("peak_depth", "gauge", "The most items there were."),
        ("offered", "counter", "Items offered."),
        ("delivered", "counter", "Items taken out."),
        ("dropped", "counter", "Items that gave way to newer ones."),
        ("discarded", "counter", "Items thrown away by an abort."),
    ):
        values = (({"queue": n}, getattr(q, name)) for n, q in queues.items())
        total = "_total" if kind == "counter" else ""
        yield from _family(f"queue_{name}{total}", kind, told, values)


Samples = Iterable[tuple[Mapping[str, str], float]]


def _metric(name: str, kind: str, told: str, value: float) -> Iterator[str]:
    yield from _family(name, kind, told, [({}, value)])


def _family(name: str, kind: str, told: str, samples: Samples) -> Iterator[str]:
    yield f"# HELP rackfocus_{name} {told}"
    yield f"# TYPE rackfocus_{name} {kind}"
    for labels, value in samples:
        yield _line(name, labels, value)


def _summary(
    name: str, told: str, spreads: Iterable[tuple[Mapping[str, str], Spread]]
) -> Iterator[str]:
    yield f"# HELP rackfocus_{name} {told} Quantiles since the start, within 1 %."
    yield f"# TYPE rackfocus_{name} summary"
    for labels, spread in spreads:
        for quantile, value in (("0.5", spread.p50), ("0.95", spread.p95), ("0.99", spread.p99)):
            if value is not None:
                yield _line(name, {**labels, "quantile": quantile}, value / 1e3)
        yield _line(f"{name}_sum", labels, spread.total / 1e3)
        yield _line(f"{name}_count", labels, spread.count)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    shown = int(value) if isinstance(value, bool) else value
    return f"rackfocus_{name}{{{inside}}} {shown}" if inside else f"rackfocus_{name} {shown}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _spread(spread: Spread) -> dict[str, float | None]:
    return {
        "p50": _rounded(spread.p50),
        "p95": _rounded(spread.p95),
        "p99": _rounded(spread.p99),
        "max": _rounded(spread.max),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
