"""The one clock of a run: monotonic nanoseconds, replaceable in tests.

Intervals and frame ages come from here, never from the wall clock. Safe from any thread.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the engine asks of time."""

    def now_ns(self) -> int:
        """Return monotonic nanoseconds; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        ...


class MonotonicClock:
    """The real clock: `time.monotonic_ns`."""

    def now_ns(self) -> int:
        """Return `time.monotonic_ns()`."""
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)
