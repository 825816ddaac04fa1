"""What every `Source` must keep, whatever it reads. Call `check_source` in one test a source."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np

from pipeline.frame import Frame
from pipeline.stage import End, Lost, RunContext, StreamInfo, Timeout

PATIENCE_S = 10.0


def read_all(source, *, limit=10_000, timeout_s=1.0):
    """Return (frames, outcome): everything up to `End` or `Lost`, or the first `limit` frames."""
    frames = []
    patience = time.monotonic() + PATIENCE_S
    while len(frames) < limit:
        result = source.read(timeout_s)
        if isinstance(result, Frame):
            frames.append(result)
        elif isinstance(result, Timeout):
            assert time.monotonic() < patience, f"only timeouts after {len(frames)} frames"
        else:
            assert isinstance(result, End | Lost)
            return frames, result
    return frames, None


def check_source(make_source, *, limit=30):
    """Check the contract of `pipeline.stage.Source`.

    Args:
        make_source: builds a fresh source without arguments.
        limit: frames to read in each round, at least 2 of which the source must have.
    """
    source = make_source()
    source.close()  # never opened: nothing to do, and no error

    context = RunContext()
    info = source.open(context)
    _check_info(source, info)
    first, _ = read_all(source, limit=limit)
    _check_frames(source, info, first)
    source.close()
    source.close()

    # The same instance once more: a fresh start, with nothing left over.
    again = source.open(RunContext())
    assert again.size_wh == info.size_wh
    assert again.time_base == info.time_base
    second, _ = read_all(source, limit=limit)
    _check_frames(source, again, second)
    if not source.live:
        assert [f.time.pts for f in second] == [f.time.pts for f in first]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    # Interrupted: a read comes back soon; closing afterwards works and wakes it up for a new round.
    source.interrupt()
    began = time.monotonic()
    source.read(PATIENCE_S)
    assert time.monotonic() - began < 1.0, "read ignored interrupt()"
    source.close()
    source.open(RunContext())
    frames, _ = read_all(source, limit=1)
    assert frames, "a source that was interrupted and closed must open again"
    source.close()

    _check_interrupt_from_another_thread(make_source())


def _check_info(source, info):
    assert isinstance(info, StreamInfo)
    assert info.name == source.name
    assert info.live is source.live
    assert info.time_base > 0
    assert min(info.size_wh) > 0
    assert info.rate_hz is None or info.rate_hz > 0


def _check_frames(source, info, frames):
    assert len(frames) >= 2, f"the contract needs two frames at least, got {len(frames)}"
    seqs = [f.id.seq for f in frames]
    assert seqs[0] >= 0
    if source.live:
        assert seqs == sorted(set(seqs)), "ids must increase; gaps are counted drops"
    else:
        assert seqs == list(range(len(frames))), "ids must be consecutive from 0"
    assert {f.id.stream for f in frames} == {source.name}
    assert {f.id.epoch for f in frames} == {0}
    assert frames[0].size_wh == info.size_wh
    stamps = [f.time.pts for f in frames if f.time.pts is not None]
    assert all(b > a for a, b in itertools.pairwise(stamps)), "pts must increase"
    assert {f.time.time_base for f in frames} == {info.time_base}
    captured = [f.time.captured_ns for f in frames]
    assert captured == sorted(captured)
    for frame in frames:
        assert frame.image.flags.c_contiguous
        assert frame.detections is None
    # Frames live on in queues: a source must not write into one that it has given out.
    assert not np.shares_memory(frames[0].image, frames[1].image)


def _check_interrupt_from_another_thread(source):
    source.open(RunContext())
    done = threading.Event()

    def work():
        # Not until the end: a source that never ends must be stopped by the interrupt.
        while not done.is_set() and isinstance(source.read(PATIENCE_S), Frame):
            pass
        done.set()

    reader = threading.Thread(target=work, name="contract-reader")
    reader.start()
    source.interrupt()
    time.sleep(0)
    began = time.monotonic()
    if not done.wait(1.0):
        done.set()  # an offline source may keep giving frames: it is never blocked
    reader.join(2.0)
    assert not reader.is_alive(), "a blocked read outlived interrupt() by more than a second"
    assert time.monotonic() - began < 3.0
    source.close()
