"""What every stage must do, whatever it does: one call checks a kind against the contract."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from pipeline.frame import Frame
from pipeline.stage import RunContext


def check_stage(make_stage, make_items, *, one_to_one=True):
    """Check one kind of stage.

    Args:
        make_stage: returns a new stage, not yet open.
        make_items: returns a fresh list of at least 3 items that the stage accepts, with
            increasing seq.
        one_to_one: the stage gives one item for each; otherwise what comes out must be in order.
    """
    _close_without_open(make_stage)
    _repeated_close(make_stage)
    _types_are_declared(make_stage, make_items)
    first = _run(make_stage(), make_items, one_to_one)
    stage = make_stage()
    _run(stage, make_items, one_to_one)
    again = _run(stage, make_items, one_to_one)
    assert len(first) == len(again), "open-close-open changes how much comes out"
    for one, other in zip(first, again, strict=True):
        _same(one, other)
    _failure_leaves_it_closable(make_stage, make_items)


def _close_without_open(make_stage):
    stage = make_stage()
    stage.close()
    stage.close()


def _repeated_close(make_stage):
    stage = make_stage()
    stage.open(RunContext())
    stage.close()
    stage.close()


def _types_are_declared(make_stage, make_items):
    stage = make_stage()
    assert stage.name
    assert isinstance(stage.counters, dict)
    assert isinstance(make_items()[0], stage.accepts)


def _run(stage, make_items, one_to_one):
    items = make_items()
    before = [_snapshot(item) for item in items]
    stage.open(RunContext())
    out = []
    size = stage.batching.max_size
    for start in range(0, len(items), size):
        out.extend(stage.process(items[start : start + size]))
    out.extend(stage.flush())
    stage.close()
    for item, snapshot in zip(items, before, strict=True):
        for now, then in zip(_arrays(item), snapshot, strict=True):
            assert np.array_equal(now, then), f"{stage.name} changed an array of its input"
    ids = [item.id for item in out]
    assert ids == sorted(ids), f"{stage.name} changed the order"
    assert all(isinstance(item, stage.produces) for item in out)
    times = {item.id: _frame(item).time for item in items}
    for item in out:
        assert _frame(item).time == times[item.id], f"{stage.name} changed a frame's time"
    if one_to_one:
        assert ids == [item.id for item in items], f"{stage.name} lost or doubled a frame"
    return out


def _failure_leaves_it_closable(make_stage, make_items):
    stage = make_stage()
    stage.open(RunContext())
    with pytest.raises(Exception, match=r".*"):
        stage.process([object()])
    stage.close()
    stage.close()
    assert _run(stage, make_items, False), f"{stage.name} does not work again after a failure"


def _frame(item):
    return item if isinstance(item, Frame) else item.frame


def _arrays(item):
    frame = _frame(item)
    arrays = [frame.image]
    if frame.detections is not None:
        arrays += [frame.detections.xyxy, frame.detections.score, frame.detections.class_id]
    if hasattr(item, "tensor"):
        arrays.append(item.tensor)
    if hasattr(item, "outputs"):
        arrays += list(item.outputs.values())
    return arrays


def _snapshot(item):
    return copy.deepcopy(_arrays(item))


def _same(one, other):
    assert one.id == other.id
    for a, b in zip(_arrays(one), _arrays(other), strict=True):
        assert np.array_equal(a, b), f"{one.id}: the second run gives other numbers"
    first, second = _frame(one).detections, _frame(other).detections
    assert (first is None) == (second is None)
