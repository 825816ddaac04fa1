"""The run report: what a run did with every frame, as documented, versioned JSON.

The models below are the format; `docs/report.schema.json` is generated from them. A change that
breaks a reader raises `SCHEMA`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import StageError
from pipeline.metrics import Histogram
from pipeline.runner import RunResult
from pipeline.url import redact

SCHEMA = 1
_PACKAGES = (
    "rackfocus",
    "av",
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "opencv-python",
    "openvino",
    "torch",
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Exit(_Section):
    """How the run ended."""

    code: int = Field(description="0 done, 1 failed, 2 usage or config, 130 stopped by the user")
    reason: str


class Percentiles(_Section):
    """Milliseconds, right within 1 %; null where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class Dropped(_Section):
    """Frames lost, by reason."""

    full: int = Field(description="the first queue of a live run was full")
    stale: int = Field(description="older than the age budget of a live run")
    corrupt: int = Field(description="could not be decoded")


class Event(_Section):
    """A live stream was lost, or came back."""

    time_s: float = Field(description="since the start of the run")
    state: str = Field(description="connecting, running, stalled, backing off or stopped")
    reason: str


class Stream(_Section):
    """One source's frames. Complete runs: frames_in == frames_out + dropped.full +
    dropped.stale."""

    frames_in: int = Field(description="frames captured; corrupt ones are not in it")
    frames_out: int = Field(description="frames that left the last stage")
    dropped: Dropped
    epochs: int = Field(description="connections; 1 for a file")
    age_ms: Percentiles = Field(description="from capture until a sink had taken the frame")
    events: list[Event] = Field(description="of a live stream; empty while nothing goes wrong")


class StageReport(_Section):
    """One source, stage or sink."""

    items: int
    service_ms: Percentiles = Field(description="wall time per item inside the stage")
    busy_share: float = Field(description="share of the run's wall time spent inside the stage")
    cpu_s: float = Field(description="CPU seconds of the stage's own thread; library threads not")
    counters: dict[str, int]


class Queue(_Section):
    """One queue; offered == delivered + dropped + discarded + depth."""

    capacity: int
    depth: int
    peak_depth: int
    peak_bytes: int
    offered: int
    delivered: int
    dropped: int
    discarded: int
    producer_wait_s: float
    consumer_wait_s: float


class Throughput(_Section):
    """The run as a whole."""

    fps: float = Field(description="frames out of the last stage per second of wall time")
    wall_s: float = Field(description="from the start of the threads, model warm-up included")
    cpu_s: float = Field(description="CPU seconds of the whole process")
    peak_rss_mb: float | None = Field(description="1e6 bytes; null on Windows")
    bottleneck: str | None = Field(description="the stage that was busy for the largest share")


class Output(_Section):
    """One thing that was written."""

    uri: str
    frames: int
    duration_s: float | None
    bytes: int | None
    details: dict[str, object]


class Failure(_Section):
    """One failure; the first one ended the run."""

    message: str
    stage: str | None
    operation: str | None
    frame: str | None


class Report(_Section):
    """The whole report."""

    schema_: int = Field(alias="schema", description="version of this format")
    mode: Literal["offline", "live"]
    exit: Exit
    streams: dict[str, Stream]
    stages: dict[str, StageReport]
    queues: dict[str, Queue]
    throughput: Throughput
    model: dict[str, object] | None
    backend: dict[str, object] | None
    detections_sha256: str | None = Field(
        description="over the JSONL lines, coordinates to 0.01 px, scores to 0.0001; of several "
        "streams over the lines `NAME HASH`, sorted by name, since their frames interleave"
    )
    outputs: list[Output]
    notes: list[str]
    config: dict[str, object]
    versions: dict[str, str]
    failures: list[Failure]


def build_report(
    result: RunResult,
    *,
    config: Mapping[str, object],
    model: Mapping[str, object] | None = None,
    backend: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return the report of a finished run as JSON-able values; no string in it has credentials."""
    busy = {
        name: metrics.busy_ns / 1e9 / result.wall_s if result.wall_s else 0.0
        for name, metrics in result.stages.items()
    }
    # A live source spends its time waiting for the camera: it is never what slows the run.
    candidates = {
        name: share
        for name, share in busy.items()
        if share > 0 and not (result.live and name in result.streams)
    }
    frames_out = sum(stream.frames_out for stream in result.streams.values())
    report = Report(
        schema=SCHEMA,
        mode="live" if result.live else "offline",
        exit=Exit(code=result.exit_code, reason=result.reason),
        streams={
            name: Stream(
                frames_in=stream.frames_in,
                frames_out=stream.frames_out,
                dropped=Dropped(
                    full=stream.dropped_full,
                    stale=stream.dropped_stale,
                    corrupt=result.counters.get(name, {}).get("corrupt", 0),
                ),
                epochs=stream.epochs,
                age_ms=_percentiles(result.ages_ms[name]),
                events=[
                    Event(
                        time_s=round((event.at_ns - result.started_ns) / 1e9, 3),
                        state=event.state,
                        reason=event.reason,
                    )
                    for event in result.context.events
                    if event.stream == name
                ],
            )
            for name, stream in result.streams.items()
        },
        stages={
            name: StageReport(
                items=metrics.items,
                service_ms=_percentiles(metrics.service_ms),
                busy_share=round(busy[name], 4),
                cpu_s=round(metrics.cpu_ns / 1e9, 3),
                counters=result.counters.get(name, {}),
            )
            for name, metrics in result.stages.items()
        },
        queues={
            name: Queue(
                **asdict(q)
                | {
                    "producer_wait_s": round(q.producer_wait_s, 3),
                    "consumer_wait_s": round(q.consumer_wait_s, 3),
                }
            )
            for name, q in result.queues.items()
        },
        throughput=Throughput(
            fps=round(frames_out / result.wall_s, 2) if result.wall_s else 0.0,
            wall_s=round(result.wall_s, 3),
            cpu_s=round(result.cpu_s, 3),
            peak_rss_mb=None if result.peak_rss_mb is None else round(result.peak_rss_mb, 1),
            bottleneck=max(candidates, key=lambda name: candidates[name], default=None),
        ),
        model=None if model is None else dict(model),
        backend=None if backend is None else dict(backend),
        detections_sha256=None if result.tap is None else result.tap.hexdigest(),
        outputs=[
            Output(
                uri=output.uri,
                frames=output.frames,
                duration_s=None if output.duration_s is None else round(output.duration_s, 6),
                bytes=output.bytes,
                details=dict(output.details),
            )
            for output in result.outputs
        ],
        notes=result.context.notes,
        config=dict(config),
        versions=_versions(),
        failures=[
            Failure(
                message=str(failure),
                stage=failure.stage if isinstance(failure, StageError) else None,
                operation=failure.operation if isinstance(failure, StageError) else None,
                frame=str(failure.frame_id)
                if isinstance(failure, StageError) and failure.frame_id
                else None,
            )
            for failure in result.failures
        ],
    )
    dumped = report.model_dump(mode="json", by_alias=True)
    return {key: _clean(value) for key, value in dumped.items()}


def _percentiles(histogram: Histogram) -> Percentiles:
    return Percentiles(
        **histogram.summary(50, 95, 99), max=round(histogram.max, 4) if histogram.count else None
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _clean(value: object) -> object:
    """Redact every string inside: config, notes and messages may quote an address."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {redact(str(key)): _clean(item) for key, item in value.items()}
    return value


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(Report.model_json_schema(), indent=2) + "\n")
