"""What every sink promises, run against each of them by one line in its tests."""

from __future__ import annotations

import numpy as np

from pipeline.frame import Frame
from pipeline.stage import RunContext, Sink


def check_sink(factory, frames, infos):
    """Check the sink contract.

    Args:
        factory: Makes a fresh sink; must allow its outputs to be replaced.
        frames: At least three frames of known streams.
        infos: `StreamInfo` of those streams.
    """
    sink = factory()
    assert isinstance(sink, Sink)
    assert sink.name
    assert sink.accepts is Frame
    assert sink.produces is Frame
    assert sink.on_full in {None, "block", "drop_oldest", "drop_newest"}
    assert sum(info.frames for info in sink.outputs()) == 0

    # Close without a frame, twice, and without flush.
    context = _opened(sink, infos)
    sink.close()
    sink.close()

    # A whole life: nothing comes out, nothing that went in is changed, all frames are counted.
    before = [frame.image.copy() for frame in frames]
    ids = [(frame.id, frame.time) for frame in frames]
    context = _opened(sink, infos)
    for frame in frames[:-1]:
        assert list(sink.process([frame])) == []
    assert list(sink.process(frames[-1:])) == []
    assert list(sink.flush()) == []
    assert sum(info.frames for info in sink.outputs()) == len(frames)
    sink.close()
    sink.close()
    assert sum(info.frames for info in sink.outputs()) == len(frames)
    assert all(np.array_equal(frame.image, was) for frame, was in zip(frames, before, strict=True))
    assert [(frame.id, frame.time) for frame in frames] == ids
    assert all(isinstance(line, str) for line in context.notes)

    # Again, cut short: what was written is still accounted for.
    _opened(sink, infos)
    sink.process(frames[:2])
    sink.close()
    assert sum(info.frames for info in sink.outputs()) == 2

    # Frames whose arrays nobody may write: sinks share them with each other.
    for frame in frames:
        frame.image.flags.writeable = False
    _opened(sink, infos)
    sink.process(frames)
    sink.flush()
    sink.close()


def _opened(sink, infos):
    context = RunContext()
    sink.open(context)
    context.streams.update({info.name: info for info in infos})
    return context
