"""What a run measures: histograms of fixed size, and counters per stage and stream.

Memory does not grow with the run. Each object has one writing thread; others may read it at any
time and may see a sample counted in one place and not yet in another.
"""

from __future__ import annotations

import math
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_GROWTH = 1.02
"""Ratio of neighbouring bucket edges: a percentile is right within 1 %, half a bucket."""
_SMALLEST = 1e-3
"""Lower edge of the first bucket; with milliseconds, one microsecond."""
_BUCKETS = 1 + math.ceil(math.log(1e10) / math.log(_GROWTH))
"""Enough for 1e-3 to 1e7: milliseconds from a microsecond to almost three hours."""
_LOG_GROWTH = math.log(_GROWTH)


class Histogram:
    """Percentiles of non-negative numbers in constant memory (9 KB), with geometric buckets."""

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BUCKETS))
        self.count = 0
        self.total = 0.0
        self.max = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Record `value` as seen `times` times."""
        if value <= _SMALLEST:
            bucket = 0
        else:
            bucket = min(int(math.log(value / _SMALLEST) / _LOG_GROWTH) + 1, _BUCKETS - 1)
        self._counts[bucket] += times
        self.count += times
        self.total += value * times
        self.max = max(self.max, value)

    def merge(self, other: Histogram) -> None:
        """Add all samples of `other`."""
        for bucket, times in enumerate(other._counts):
            self._counts[bucket] += times
        self.count += other.count
        self.total += other.total
        self.max = max(self.max, other.max)

    def percentile(self, percent: float) -> float | None:
        """Return the value that `percent` of the samples do not exceed, within 1 %; None if
        empty."""
        if not self.count:
            return None
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for bucket, times in enumerate(self._counts):
            seen += times
            if seen >= rank:
                middle = 0.0 if bucket == 0 else _SMALLEST * _GROWTH ** (bucket - 0.5)
                return min(middle, self.max)
        return self.max

    def summary(self, *percents: float) -> dict[str, float | None]:
        """Return {"p50": ...} for each of `percents`, rounded to a microsecond's thousandth."""
        found = {f"p{percent:g}": self.percentile(percent) for percent in percents}
        return {name: None if v is None else round(v, 4) for name, v in found.items()}


@dataclass(slots=True)
class StageMetrics:
    """What one source, stage or sink did."""

    items: int = 0
    """Items handled (a source: frames read)."""
    service_ms: Histogram = field(default_factory=Histogram)
    """Wall time per item inside `process` (a source: `read`)."""
    busy_ns: int = 0
    cpu_ns: int = 0
    """CPU time of the calling thread only; what libraries do in threads of their own is not in
    it."""


@dataclass(slots=True)
class StreamMetrics:
    """What became of one stream's frames."""

    frames_in: int = 0
    frames_out: int = 0
    """Frames that left the last stage."""
    dropped_full: int = 0
    dropped_stale: int = 0
    epochs: int = 0
    first_pts_s: float | None = None
    last_age_ms: float | None = None


def peak_rss_mb() -> float | None:
    """Return the largest resident memory this process has had, in 1e6 bytes; None on Windows."""
    with suppress(OSError, StopIteration, ValueError):
        # On Linux getrusage also counts the process that started this one, up to its exec.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def available_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
