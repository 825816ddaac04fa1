"""BoundedQueue: order, bounds, policies, end and abort as states, and its conservation law."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from pipeline.queue import BoundedQueue, QueueState


@dataclass
class Item:
    value: int
    nbytes: int = 1


def make(policy="block", capacity=3, max_bytes=1000, producers=1):
    return BoundedQueue(
        "a->b", capacity=capacity, max_bytes=max_bytes, policy=policy, producers=producers
    )


def conserved(queue):
    s = queue.stats()
    return s.offered == s.delivered + s.dropped + s.discarded + s.depth


def values(got):
    return [item.value for item in got]


def test_items_come_out_in_order_and_end_comes_behind_them():
    queue = make()
    for value in range(3):
        queue.put(Item(value))
    queue.end()
    assert values(queue.get(2)) == [0, 1]
    assert values(queue.get(2)) == [2]
    assert queue.get() is QueueState.ENDED
    assert conserved(queue)


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [
        # A burst without a consumer pins which end is dropped.
        ("drop_oldest", [7, 8, 9], list(range(7))),
        ("drop_newest", [0, 1, 2], list(range(3, 10))),
    ],
)
def test_a_burst_without_a_consumer_drops_the_right_end(policy, kept, dropped):
    queue = make(policy)
    lost = [item.value for value in range(10) for item in queue.put(Item(value)).dropped]
    assert lost == dropped
    assert values(queue.get(10)) == kept
    assert queue.stats().dropped == 7
    assert queue.stats().peak_depth == 3
    assert conserved(queue)


def test_the_bound_on_bytes_holds_before_the_bound_on_count():
    queue = make("drop_oldest", capacity=100, max_bytes=10)
    for value in range(5):
        queue.put(Item(value, nbytes=4))
    assert values(queue.get(100)) == [3, 4]
    assert queue.stats().peak_bytes == 8


def test_an_item_larger_than_the_bound_is_taken_when_the_queue_is_empty():
    queue = make(max_bytes=10)
    assert queue.put(Item(1, nbytes=50)).accepted
    queue2 = make("drop_oldest", max_bytes=10)
    queue2.put(Item(1))
    assert values(queue2.put(Item(2, nbytes=50)).dropped) == [1]
    assert values(queue2.get(5)) == [2]


def test_a_full_queue_blocks_its_producer_until_there_is_room():
    queue = make(capacity=1)
    queue.put(Item(0))
    done = threading.Event()

    def produce():
        queue.put(Item(1))
        done.set()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    assert not done.wait(0.05)
    assert values(queue.get()) == [0]
    assert done.wait(5)
    thread.join()
    assert values(queue.get()) == [1]
    assert queue.stats().producer_wait_s > 0


def test_abort_wakes_a_blocked_producer_and_discards():
    queue = make(capacity=1)
    queue.put(Item(0))
    offers = []
    thread = threading.Thread(target=lambda: offers.append(queue.put(Item(1))), daemon=True)
    thread.start()
    queue.abort()
    thread.join(5)
    assert not thread.is_alive()
    assert offers[0].aborted
    assert not offers[0].accepted
    assert queue.get() is QueueState.ABORTED
    assert queue.stats().discarded == 2
    assert conserved(queue)


def test_abort_wakes_a_waiting_consumer():
    queue = make()
    got = []
    thread = threading.Thread(target=lambda: got.append(queue.get()), daemon=True)
    thread.start()
    queue.abort()
    thread.join(5)
    assert got == [QueueState.ABORTED]


def test_abort_discards_what_an_ended_queue_still_holds():
    queue = make()
    queue.put(Item(0))
    queue.end()
    queue.abort()
    assert queue.get() is QueueState.ABORTED
    assert conserved(queue)


def test_the_last_of_several_producers_ends_the_queue():
    queue = make(producers=2)
    queue.end()
    assert queue.state is QueueState.OPEN
    queue.put(Item(1))
    queue.end()
    assert values(queue.get()) == [1]
    assert queue.get() is QueueState.ENDED


def test_putting_into_an_ended_queue_is_a_fault_of_the_caller():
    queue = make()
    queue.end()
    with pytest.raises(RuntimeError, match="has ended"):
        queue.put(Item(0))


def test_a_batch_waits_for_company_but_not_longer_than_told():
    queue = make()
    queue.put(Item(0))
    assert values(queue.get(3, max_wait_s=0.01)) == [0]
    queue.put(Item(1))
    thread = threading.Thread(target=lambda: queue.put(Item(2)), daemon=True)
    thread.start()
    assert values(queue.get(2, max_wait_s=5)) == [1, 2]
    thread.join()


def test_a_batch_larger_than_the_queue_does_not_wait_for_ever():
    queue = make(capacity=2)
    queue.put(Item(0))
    queue.put(Item(1))
    assert values(queue.get(8, max_wait_s=30)) == [0, 1]


@pytest.mark.parametrize("bad", [{"capacity": 0}, {"max_bytes": 0}, {"producers": 0}])
def test_bounds_below_one_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        make(**bad)


def test_one_per_key_keeps_each_keys_newest_item_in_its_place_in_the_line():
    queue = BoundedQueue(
        "a->b", capacity=2, max_bytes=100, policy="drop_oldest", one_per=lambda item: item.key
    )

    @dataclass
    class Keyed:
        key: str
        value: int
        nbytes: int = 1

    offers = [queue.put(Keyed(*pair)) for pair in (("a", 1), ("b", 1), ("a", 2), ("a", 3))]
    assert [[d.value for d in offer.dropped] for offer in offers] == [[], [], [1], [2]]
    got = queue.get(5)
    assert [(item.key, item.value) for item in got] == [("a", 3), ("b", 1)]
    stats = queue.stats()
    assert (stats.offered, stats.delivered, stats.dropped, stats.depth) == (4, 2, 2, 0)
