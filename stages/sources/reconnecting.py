"""Keeps a live source alive: connects again when it is lost, and says so.

Works around any live source. Each connection is an epoch of its own; its first frame is marked as a
discontinuity. No pictures are made up for the time between. One thread calls open, read and close;
any may call interrupt.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Final

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import RackfocusError, RefusedError, SourceError
from pipeline.frame import U8, Frame, FrameId
from pipeline.stage import (
    Lost,
    ReadResult,
    RunContext,
    Source,
    StreamEvent,
    StreamInfo,
    Timeout,
)

_JITTER: Final = 0.5
"""Share of the pause that is left to chance, so that a hundred cameras do not come back at once."""
# Rows and columns that are compared to tell a repeated picture: noise reaches some of them.
_SPARSE: Final = 16


class ReconnectConfig(Config):
    """What is done when a live stream is lost."""

    enabled: bool = Field(default=True, description="connect again; without it the stream ends")
    max_attempts: int | None = Field(
        None, ge=1, description="give up after so many failures in a row; by default never"
    )
    start_s: float | None = Field(
        30.0,
        gt=0,
        description="give up where the first connection has not come about after so long; "
        "null: wait for ever, for cameras that are switched on later",
    )
    initial_s: float = Field(0.2, gt=0, le=600, description="first pause, doubled each time")
    max_s: float = Field(10.0, gt=0, le=3600, description="longest pause")
    stall_s: float = Field(
        5.0, gt=0, le=3600, description="a stream that gives no frame for so long is lost"
    )
    frozen_s: float = Field(
        30.0,
        gt=0,
        le=86400,
        description="a stream that repeats one picture, to the last bit, for so long is lost; "
        "where it is still the same after connecting again, it is taken for a still picture",
    )


class State(Enum):
    """Where a reconnecting source is."""

    CONNECTING = "connecting"
    RUNNING = "running"
    STALLED = "stalled"
    BACKING_OFF = "backing off"
    STOPPED = "stopped"


class Reconnecting(Source):
    """A live source that comes back.

    Until its first picture an error that another try cannot mend (`RefusedError`) is raised; after
    that every loss is followed by another try, since servers restart with wrong answers.

    Args:
        source: live; opened, closed and opened again by this one.
        config: pauses and limits.
        chance: returns 0..1, for the jitter.
    """

    live = True

    def __init__(
        self,
        source: Source,
        config: ReconnectConfig,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = source.name
        self.counters = {}
        self._source = source
        self._config = config
        self._chance = chance
        self._stop = threading.Event()
        self._state = State.STOPPED
        self._past: dict[str, int] = {}

    @property
    def state(self) -> State:
        """What it is doing. Any thread."""
        return self._state

    def open(self, context: RunContext) -> StreamInfo:
        """Connect, as often as it takes.

        Raises:
            RefusedError: another try cannot help.
            SourceError: interrupted, or too many attempts.
        """
        self._context = context
        self._clock = context.clock
        self._epoch = -1
        self._past = {}
        self._failures = self._doublings = 0
        self._news: list[StreamEvent] = []
        self._troubled = False
        self._still: U8 | None = None
        self._accepted_still = False
        began_ns = self._clock.now_ns()
        while True:
            info = self._connect(first=True)
            if info is not None:
                return info
            if self._stop.is_set():
                raise SourceError(f"{self.name}: stopped while it was being opened")
            if self._gave_up or self._too_late(began_ns):
                raise SourceError(self._gave_up_text())
            self._stop.wait(max(0.0, (self._due_ns - self._clock.now_ns()) / 1e9))

    def read(self, timeout_s: float) -> ReadResult:
        """Return the next frame; `Timeout` while the source is away; `Lost` once it is given up."""
        if self._stop.is_set():
            return Timeout()
        if self._state is State.BACKING_OFF:
            if self._gave_up:
                return Lost(self._gave_up_text())
            left_s = (self._due_ns - self._clock.now_ns()) / 1e9
            if left_s > 0:
                self._stop.wait(min(left_s, timeout_s))
                return Timeout()
            if self._connect(first=False) is None:
                return Timeout()
        try:
            result = self._source.read(timeout_s)
        except RackfocusError as error:
            return self._lost(str(error))
        self._count()
        if isinstance(result, Frame):
            return self._running(result)
        if isinstance(result, Timeout):
            silent_s = (self._clock.now_ns() - self._heard_ns) / 1e9
            if silent_s >= self._config.stall_s and not self._stop.is_set():
                self._change(State.STALLED, f"no frame for {silent_s:.1f} s")
                return self._lost(f"no frame for {silent_s:.1f} s")
            return result
        return self._lost(result.reason)

    def interrupt(self) -> None:
        """End a waiting `open` or `read` at once. Any thread."""
        self._stop.set()
        self._source.interrupt()

    def close(self) -> None:
        """Leave the stream. Idempotent."""
        self._source.close()
        if self._state is not State.STOPPED:
            self._change(State.STOPPED, "closed")
        self._stop.clear()

    def _connect(self, *, first: bool) -> StreamInfo | None:
        """Try once; None where it failed and another try may follow."""
        self._change(State.CONNECTING, f"attempt {self._failures + 1}")
        self._source.close()
        if self._stop.is_set():
            return None
        try:
            info = self._source.open(self._context)
        except RackfocusError as error:
            if first and isinstance(error, RefusedError):
                raise
            if not self._stop.is_set():
                self._back_off(str(error))
            return None
        self._epoch += 1
        self._fresh = True
        self._connected_ns = self._heard_ns = self._moved_ns = self._clock.now_ns()
        width, height = info.size_wh
        self._change(State.RUNNING, f"{width}x{height}")
        return info

    def _running(self, frame: Frame) -> ReadResult:
        now = self._clock.now_ns()
        self._heard_ns = now
        self._failures = 0
        if now - self._connected_ns > self._config.max_s * 1e9:
            # Not at the first frame: a server that dies after each would be asked all the time.
            self._doublings = 0
        sparse = frame.image[::_SPARSE, ::_SPARSE]
        if self._still is None or not _same(sparse, self._still):
            self._still = sparse.copy()
            self._moved_ns = now
            self._accepted_still = False
        elif (now - self._moved_ns) / 1e9 >= self._config.frozen_s and not self._accepted_still:
            # Once: where the picture is the same after the next connection, nothing is broken.
            self._accepted_still = True
            self._change(State.STALLED, f"the same picture for {self._config.frozen_s:g} s")
            return self._lost("the picture does not change")
        anew = self._fresh and self._epoch > 0
        self._fresh = False
        meta = frame.meta
        if self._news:
            events = tuple({"state": e.state, "reason": e.reason} for e in self._news)
            meta, self._news = {**meta, "events": events}, []
        return replace(
            frame,
            id=FrameId(self.name, self._epoch, frame.id.seq),
            discontinuity=frame.discontinuity or anew,
            meta=meta,
        )

    def _lost(self, reason: str) -> ReadResult:
        if self._stop.is_set():
            return Timeout()
        self._keep_counts()
        if not self._config.enabled:
            return Lost(reason)
        self._back_off(reason)
        return Timeout()

    def _back_off(self, reason: str) -> None:
        self._failures += 1
        doubled = self._config.initial_s * 2.0 ** min(self._doublings, 32)
        pause_s = min(self._config.max_s, doubled) * (1 - _JITTER * self._chance())
        self._doublings += 1
        self._due_ns = self._clock.now_ns() + int(pause_s * 1e9)
        self._change(State.BACKING_OFF, f"{reason}; next try in {pause_s:.1f} s")
        self._reason = reason

    @property
    def _gave_up(self) -> bool:
        most = self._config.max_attempts
        return most is not None and self._failures >= most

    def _too_late(self, began_ns: int) -> bool:
        start_s = self._config.start_s
        return start_s is not None and self._due_ns - began_ns > start_s * 1e9

    def _gave_up_text(self) -> str:
        return f"given up after {self._failures} attempts in a row: {self._reason}"

    def _change(self, state: State, reason: str) -> None:
        self._state = state
        # A start and an end as they should be are no news.
        if not self._troubled and state not in (State.STALLED, State.BACKING_OFF):
            return
        self._troubled = True
        event = StreamEvent(self._clock.now_ns(), self.name, state.value, reason)
        self._context.event(event)
        self._news = [*self._news[-99:], event]

    def _count(self) -> None:
        now = self._source.counters
        self.counters = {k: self._past.get(k, 0) + now.get(k, 0) for k in self._past | now}

    def _keep_counts(self) -> None:
        self._count()
        self._past = dict(self.counters)


def _same(one: U8, other: U8) -> bool:
    return one.shape == other.shape and bool((one == other).all())
