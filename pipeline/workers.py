"""The two kinds of threads of a run: one reads a source, the other consumes a queue.

See `segment` for what they have in common and for the promises about failures.
"""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

from pipeline.errors import SourceError, StageError
from pipeline.frame import Frame, Item
from pipeline.limits import Limits, StreamLimit
from pipeline.metrics import StageMetrics, StreamMetrics
from pipeline.queue import BoundedQueue, QueueState
from pipeline.segment import RunState, Worker
from pipeline.stage import End, Lost, ReadResult, Source

READ_TIMEOUT_S = 0.5
"""How long a live source may wait for a frame before the thread looks whether it should stop."""


class QueueWorker(Worker):
    """Takes items from a queue through its chain: stages, or one sink.

    Args:
        max_age_s: drop frames that are older than this when they are taken; None for no limit.
    """

    def __init__(
        self,
        name: str,
        queue: BoundedQueue[Item],
        state: RunState,
        *,
        max_age_s: float | None = None,
    ) -> None:
        super().__init__(name, state)
        self.queue = queue
        self._max_age_ns = None if max_age_s is None else int(max_age_s * 1e9)

    def run(self) -> None:
        """Open, consume until the end, an abort or a failure, finish in order, close."""
        try:
            if self.open_chain():
                self._consume()
        finally:
            self.chain.close()

    def _consume(self) -> None:
        while True:
            got = self.queue.get(self.chain.max_size, self.chain.max_wait_s)
            if got is QueueState.ENDED:
                self.chain.finish()
                return
            if isinstance(got, QueueState):
                self.chain.abort()
                return
            try:
                if fresh := self._fresh(got):
                    self.chain.process(fresh)
            except StageError as error:
                self.state.fail(error)
                self.queue.abort()  # upstream stops at its next offer
                self.chain.finish()
                return
            if not self.chain.alive:
                self.queue.abort()
                self.chain.abort()
                return

    def _fresh(self, items: list[Item]) -> list[Item]:
        if self._max_age_ns is None:
            return items
        oldest_ns = self.state.clock.now_ns() - self._max_age_ns
        fresh = []
        for item in items:
            # Only in front of the first stage, where everything is still a frame.
            if isinstance(item, Frame) and item.time.captured_ns < oldest_ns:
                self.state.streams[item.id.stream].dropped_stale += 1
            else:
                fresh.append(item)
        return fresh


class SourceWorker(Worker):
    """Reads one source through the stages that have no queue before them."""

    def __init__(self, source: Source, state: RunState, limits: Limits) -> None:
        super().__init__(f"source {source.name}", state)
        self.source = source
        self.metrics = StageMetrics()
        self._limit = StreamLimit(limits, live=source.live)
        self._started: tuple[int, Fraction] | None = None
        self.stream = state.streams.setdefault(source.name, StreamMetrics())

    def run(self) -> None:
        """Open stages, wait for the others, open the source, read to the end, finish, close."""
        try:
            if not self.open_chain():
                return
            self.state.wait_until_open()
            self._read_all()
            self.state.ended.add(self.source.name)
            if self.state.aborted.is_set():
                self.chain.abort()
            else:
                self.chain.finish()
        finally:
            self.chain.close()

    def _read_all(self) -> None:
        if self.state.stopping:
            return
        try:
            info = self.call(self.source.name, "open", lambda: self.source.open(self.state.context))
        except StageError as error:
            # A source that was interrupted while it connected did as it was told.
            if not self.state.stopping:
                self.state.fail(error)
                if self.state.refuse():
                    # Nothing will come: finishing would leave empty outputs behind.
                    self.state.abort()
            return
        self.state.context.streams[self.source.name] = info
        self.stream.epochs = 1
        try:
            self._read_frames()
        except StageError as error:
            if not (self.state.stopping and error.operation == "read"):
                self.state.fail(error)
        finally:
            try:
                self.call(self.source.name, "close", self.source.close)
            except StageError as error:
                self.state.fail(error)

    def _read_frames(self) -> None:
        while not self.state.stopping and self.chain.alive:
            result = self._read()
            if isinstance(result, Frame):
                if self._limit.reached_before(result):
                    return
                result = self._paced(result)
                self.stream.frames_in += 1
                self.stream.epochs = max(self.stream.epochs, result.id.epoch + 1)
                self.chain.process([result])
                if self._limit.reached_after(result):
                    return
            elif isinstance(result, Lost):
                self.state.fail(StageError(self.source.name, "read", SourceError(result.reason)))
                return
            elif isinstance(result, End) or self._limit.expired(self.state.clock.now_ns()):
                return

    def _paced(self, frame: Frame) -> Frame:
        """Hold back a finite source's frame in a live run until its media time has come.

        A file that is to be treated as a camera comes at a camera's pace; read as fast as the disk
        gives it, nearly all of it would be dropped.
        """
        media_s = frame.time.media_s
        if self.source.live or not self.state.context.live or media_s is None:
            return frame
        clock = self.state.clock
        if self._started is None:
            self._started = clock.now_ns(), media_s
        started_ns, first_s = self._started
        early_s = float(media_s - first_s) - (clock.now_ns() - started_ns) / 1e9
        if early_s > 0:
            self.state.draining.wait(early_s)
        return replace(frame, time=replace(frame.time, captured_ns=clock.now_ns()))

    def _read(self) -> ReadResult:
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        result = self.call(self.source.name, "read", lambda: self.source.read(READ_TIMEOUT_S))
        if isinstance(result, Frame):
            wall = time.perf_counter_ns() - wall
            self.metrics.cpu_ns += time.thread_time_ns() - cpu
            self.metrics.busy_ns += wall
            self.metrics.items += 1
            self.metrics.service_ms.add(wall / 1e6)
        return result
