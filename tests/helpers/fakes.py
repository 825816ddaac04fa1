"""Small real stages for the engine's tests: scripted sources, stages that fail where told, sinks
that remember."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np

from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import Batching, End, Lost, OutputInfo, Sink, Source, Stage, StreamInfo, Timeout
from pipeline.url import Url

RATE = Fraction(1, 25)


class FakeClock:
    """Time that stands still until it is told to move."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def sleep(self, seconds):
        self.ns += int(seconds * 1e9)


def make_frame(seq=0, stream="cam", *, epoch=0, size=(4, 4), pts=..., captured_ns=0, **more):
    image = np.full((size[1], size[0], 3), seq % 256, np.uint8)
    time = FrameTime(captured_ns, seq if pts is ... else pts, RATE, 1)
    return Frame(FrameId(stream, epoch, seq), time, image, **more)


class ScriptedSource(Source):
    """Yields `count` frames, then `ending`. Raises in the operation named by `fail`."""

    def __init__(
        self, count=10, *, name="cam", live=False, ending=None, fail=None, at=3, hold=None
    ):
        self.name = name
        self.live = live
        self.counters = {}
        self.count = count
        self.ending = ending or End()
        self.fail = fail
        self.at = at
        self.hold = hold
        """An Event: after `count` frames the source waits for it (or an interrupt) for ever."""
        self.interrupted = threading.Event()
        self.calls = []

    def open(self, context):
        self.calls.append("open")
        self.clock = context.clock
        self.seq = 0
        if self.fail == "open":
            raise OSError("scripted failure in open")
        return StreamInfo(self.name, Url("fake:"), self.live, (4, 4), RATE, rate_hz=Fraction(25))

    def read(self, timeout_s):
        if self.fail == "read" and self.seq == self.at:
            raise OSError("scripted failure in read")
        if self.seq >= self.count:
            if self.hold is not None and not self.hold.is_set():
                self.interrupted.wait(timeout_s)
                return Timeout()
            return self.ending
        self.seq += 1
        return make_frame(self.seq - 1, self.name, captured_ns=self.clock.now_ns())

    def interrupt(self):
        self.interrupted.set()

    def close(self):
        self.calls.append("close")
        if self.fail == "close":
            raise OSError("scripted failure in close")


class FakeStage(Stage):
    """Passes frames on. `fail` names the operation that raises; `gate` holds `process` until it is
    set."""

    accepts = produces = Frame

    def __init__(self, name="work", *, fail=None, at=3, gate=None, max_size=1, held_back=0):
        self.name = name
        self.counters = {}
        self.batching = Batching(max_size)
        self.fail = fail
        self.at = at
        self.gate = gate
        self.held_back = held_back
        self.entered = threading.Event()
        self.calls = []
        self.batches = []
        self.kept = []

    def _enter(self, operation):
        self.calls.append(operation)
        if self.fail == operation:
            raise ValueError(f"scripted failure in {operation}")

    def open(self, context):
        self._enter("open")

    def process(self, items):
        self.entered.set()
        self.batches.append(len(items))
        if self.gate is not None:
            self.gate.wait()
        if self.fail == "process" and any(item.id.seq == self.at for item in items):
            raise ValueError("scripted failure in process")
        self.kept.extend(items)
        out, self.kept = (
            self.kept[: len(self.kept) - self.held_back],
            self.kept[len(self.kept) - self.held_back :],
        )
        return out

    def flush(self):
        self._enter("flush")
        out, self.kept = self.kept, []
        return out

    def close(self):
        self._enter("close")


class ListSink(Sink):
    """Remembers the ids of its frames."""

    def __init__(self, name="out", *, fail=None, at=3, gate=None, on_full=None):
        self.name = name
        self.counters = {}
        self.on_full = on_full
        self.fail = fail
        self.at = at
        self.gate = gate
        self.entered = threading.Event()
        self.calls = []
        self.seen = []

    def open(self, context):
        self.calls.append("open")
        if self.fail == "open":
            raise OSError("scripted failure in open")

    def process(self, items):
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        for frame in items:
            if self.fail == "process" and frame.id.seq == self.at:
                raise OSError("scripted failure in process")
            self.seen.append(frame.id)
        return ()

    def flush(self):
        self.calls.append("flush")
        if self.fail == "flush":
            raise OSError("scripted failure in flush")
        return ()

    def close(self):
        self.calls.append("close")
        if self.fail == "close":
            raise OSError("scripted failure in close")

    def outputs(self):
        return [OutputInfo(f"list:{self.name}", len(self.seen))]

    @property
    def seqs(self):
        return [frame_id.seq for frame_id in self.seen]


LOST = Lost("the wire was cut")
