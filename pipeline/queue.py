"""The bounded queue between two threads: by count and bytes, with end and abort as states.

An end or an abort is never an item, so it cannot be dropped, cannot overtake a frame, and needs no
room: a full queue cannot hold up a stop. Everything happens under one lock; any thread may call
any method. At every moment `offered == delivered + dropped + discarded + depth`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Literal, Protocol, TypeVar

from pipeline.clock import Clock, MonotonicClock

Policy = Literal["block", "drop_oldest", "drop_newest"]


class Sized(Protocol):
    """What a queue asks of its items."""

    @property
    def nbytes(self) -> int:
        """Bytes the item keeps alive."""
        ...


T = TypeVar("T", bound=Sized)


class QueueState(Enum):
    """What a queue is, and what `get` returns when there will be no more items."""

    OPEN = "open"
    ENDED = "ended"
    """Every producer has ended; what is left is still delivered, in order."""
    ABORTED = "aborted"
    """Stopped at once; what was left has been discarded."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The counters of a queue, taken together under its lock."""

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


@dataclass(frozen=True, slots=True)
class Offer(Generic[T]):
    """What became of an offered item."""

    accepted: bool
    """The item is in the queue (it may still be dropped by a later one)."""
    aborted: bool
    """The queue takes nothing any more: the producer should stop."""
    dropped: Sequence[T] = ()
    """Items dropped by this offer: older ones, or the offered item itself."""


class BoundedQueue(Generic[T]):
    """A first-in first-out queue for any number of producers and one consumer.

    Args:
        name: for reports and errors, "producer->consumer".
        capacity: the most items it holds.
        max_bytes: the most bytes it holds; one larger item is taken when the queue is empty, since
            refusing it would stop the run.
        policy: what an offer to a full queue does: wait, drop from the front, or drop itself.
        producers: how many `end()` calls end it.
        one_per: with it at most one item of each key is held: a newer one takes the older one's
            place in the line, so that no key can push another's items out or back.
    """

    def __init__(
        self,
        name: str,
        *,
        capacity: int,
        max_bytes: int,
        policy: Policy = "block",
        producers: int = 1,
        one_per: Callable[[T], Hashable] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if capacity < 1 or max_bytes < 1 or producers < 1:
            raise ValueError(
                f"queue {name!r} needs capacity, max_bytes and producers of at least 1, "
                f"got {capacity}, {max_bytes} and {producers}"
            )
        self.name = name
        self.policy = policy
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._producers = producers
        self._one_per = one_per
        self._clock = clock or MonotonicClock()
        self._items: deque[T] = deque()
        self._bytes = 0
        self._state = QueueState.OPEN
        lock = threading.Lock()
        self._not_empty = threading.Condition(lock)
        self._not_full = threading.Condition(lock)
        self._peak_depth = self._peak_bytes = 0
        self._offered = self._delivered = self._dropped = self._discarded = 0
        self._producer_wait_ns = self._consumer_wait_ns = 0

    def put(self, item: T) -> Offer[T]:
        """Offer an item; under `block`, wait until there is room or the queue is aborted.

        Raises:
            RuntimeError: every producer has already ended the queue.
        """
        size = item.nbytes
        with self._not_full:
            if self._state is QueueState.ENDED:
                raise RuntimeError(f"queue {self.name!r} has ended: nothing can be put into it")
            if (at := self._twin(item)) is not None and self._state is QueueState.OPEN:
                self._offered += 1
                return self._replace(at, item)
            if self.policy == "block" and not self._fits(size):
                started = self._clock.now_ns()
                while not self._fits(size) and self._state is QueueState.OPEN:
                    self._not_full.wait()
                self._producer_wait_ns += self._clock.now_ns() - started
            self._offered += 1
            if self._state is QueueState.ABORTED:
                self._discarded += 1
                return Offer(accepted=False, aborted=True)
            dropped: list[T] = []
            if not self._fits(size):
                if self.policy == "drop_newest":
                    self._dropped += 1
                    return Offer(accepted=False, aborted=False, dropped=(item,))
                while self._items and not self._fits(size):
                    dropped.append(self._pop())
                self._dropped += len(dropped)
            self._items.append(item)
            self._bytes += size
            self._peak_depth = max(self._peak_depth, len(self._items))
            self._peak_bytes = max(self._peak_bytes, self._bytes)
            self._not_empty.notify()
            return Offer(accepted=True, aborted=False, dropped=dropped)

    def get(self, max_size: int = 1, max_wait_s: float = 0.0) -> list[T] | QueueState:
        """Wait for items and take up to `max_size` of them, oldest first.

        Once one is there, waits at most `max_wait_s` for the batch to fill.

        Returns:
            1 to `max_size` items, or `ENDED` / `ABORTED` when there will be no more.
        """
        with self._not_empty:
            if not self._items and self._state is QueueState.OPEN:
                started = self._clock.now_ns()
                while not self._items and self._state is QueueState.OPEN:
                    self._not_empty.wait()
                self._consumer_wait_ns += self._clock.now_ns() - started
            if max_wait_s > 0:
                self._wait_for_batch(max_size, max_wait_s)
            if not self._items:
                return self._state
            taken = [self._pop() for _ in range(min(max_size, len(self._items)))]
            self._delivered += len(taken)
            self._not_full.notify_all()
            return taken

    def end(self) -> None:
        """Say that one producer has no more items. The last one ends the queue, behind its
        items."""
        with self._not_empty:
            self._producers -= 1
            if self._producers <= 0 and self._state is QueueState.OPEN:
                self._state = QueueState.ENDED
                self._not_empty.notify_all()

    def abort(self) -> None:
        """Discard what is in the queue and wake everyone. Idempotent, never waits."""
        with self._not_empty:
            self._state = QueueState.ABORTED
            self._discarded += len(self._items)
            self._items.clear()
            self._bytes = 0
            self._not_empty.notify_all()
            self._not_full.notify_all()

    @property
    def state(self) -> QueueState:
        """Whether it is open, ended or aborted."""
        return self._state

    def stats(self) -> QueueStats:
        """Return all counters of one moment."""
        with self._not_empty:
            return QueueStats(
                capacity=self._capacity,
                depth=len(self._items),
                peak_depth=self._peak_depth,
                peak_bytes=self._peak_bytes,
                offered=self._offered,
                delivered=self._delivered,
                dropped=self._dropped,
                discarded=self._discarded,
                producer_wait_s=self._producer_wait_ns / 1e9,
                consumer_wait_s=self._consumer_wait_ns / 1e9,
            )

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._capacity and self._bytes + size <= self._max_bytes

    def _twin(self, item: T) -> int | None:
        """Return where the held item of the same key is; None where there is none."""
        if self._one_per is None:
            return None
        key = self._one_per(item)
        return next((k for k, held in enumerate(self._items) if self._one_per(held) == key), None)

    def _replace(self, at: int, item: T) -> Offer[T]:
        old, self._items[at] = self._items[at], item
        self._bytes += item.nbytes - old.nbytes
        self._peak_bytes = max(self._peak_bytes, self._bytes)
        self._dropped += 1
        return Offer(accepted=True, aborted=False, dropped=(old,))

    def _pop(self) -> T:
        item = self._items.popleft()
        self._bytes -= item.nbytes
        return item

    def _wait_for_batch(self, max_size: int, max_wait_s: float) -> None:
        deadline = self._clock.now_ns() + int(max_wait_s * 1e9)
        # A batch larger than the queue could never fill while a producer waits for room.
        wanted = min(max_size, self._capacity)
        while len(self._items) < wanted and self._state is QueueState.OPEN:
            left_s = (deadline - self._clock.now_ns()) / 1e9
            if left_s <= 0:
                return
            self._not_empty.wait(left_s)
