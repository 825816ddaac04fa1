"""The queue's conservation law under random timing, sizes, policies and stops."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.queue import BoundedQueue, QueueState


@dataclass
class Item:
    producer: int
    value: int
    nbytes: int


@settings(max_examples=40, deadline=None)
@given(
    policy=st.sampled_from(["block", "drop_oldest", "drop_newest"]),
    capacity=st.integers(1, 5),
    max_bytes=st.integers(1, 30),
    producers=st.integers(1, 3),
    one_each=st.booleans(),
    abort_after=st.one_of(st.none(), st.floats(0, 0.01)),
    seed=st.integers(0, 2**32),
)
def test_every_item_offered_is_delivered_dropped_discarded_or_still_there(
    policy, capacity, max_bytes, producers, one_each, abort_after, seed
):
    queue = BoundedQueue(
        "a->b",
        capacity=capacity,
        max_bytes=max_bytes,
        policy=policy,
        producers=producers,
        one_per=(lambda item: item.producer) if one_each else None,
    )
    accepted, dropped = [], []
    broken = []
    done = threading.Event()

    def produce(number):
        rng = random.Random(seed + number)
        for value in range(40):
            offer = queue.put(Item(number, value, rng.randint(1, 12)))
            dropped.extend(offer.dropped)
            accepted.append(offer.accepted)
            if offer.aborted:
                return
            if rng.random() < 0.1:
                time.sleep(rng.random() * 1e-3)
        queue.end()

    def watch():
        while not done.is_set():
            s = queue.stats()
            if s.offered != s.delivered + s.dropped + s.discarded + s.depth:
                broken.append(s)
            if s.depth > capacity:
                broken.append(s)

    threads = [threading.Thread(target=produce, args=(n,), daemon=True) for n in range(producers)]
    watcher = threading.Thread(target=watch, daemon=True)
    timer = threading.Timer(abort_after, queue.abort) if abort_after is not None else None
    for thread in [*threads, watcher, *([timer] if timer else [])]:
        thread.start()
    got = []
    while not isinstance(batch := queue.get(3, 0.0005), QueueState):
        got.extend(batch)
    for thread in [*threads, *([timer] if timer else [])]:
        thread.join(10)
        assert not thread.is_alive()
    done.set()
    watcher.join(10)
    assert not broken
    stats = queue.stats()
    assert stats.delivered == len(got)
    assert stats.dropped == len(dropped)
    assert stats.offered == len(accepted)
    assert stats.offered == stats.delivered + stats.dropped + stats.discarded + stats.depth
    if timer is None:
        assert stats.discarded == stats.depth == 0
    if policy == "block" and not one_each:
        assert stats.dropped == 0
    for number in range(producers):
        mine = [item.value for item in got if item.producer == number]
        assert mine == sorted(set(mine))
