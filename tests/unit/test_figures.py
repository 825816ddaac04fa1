"""The figures of a run while it goes on, against what its result says afterwards."""

from __future__ import annotations

import pytest

from pipeline.runner import Pipeline
from pipeline.stage import RunContext, StreamEvent
from tests.helpers.fakes import ListSink, ScriptedSource


def test_the_last_figures_are_those_of_the_result():
    context = RunContext()
    sources = [ScriptedSource(7), ScriptedSource(3, name="yard")]
    assert context.figures is None
    result = Pipeline(sources, [], [ListSink()], live=False, context=context).run()
    figures = context.figures()
    assert figures.opened
    assert figures.ready
    assert not figures.live
    for name, stream in result.streams.items():
        shown = figures.streams[name]
        assert (shown.frames_in, shown.frames_out) == (stream.frames_in, stream.frames_out)
        assert shown.age_ms.count == result.ages_ms[name].count == stream.frames_out
        assert shown.age_ms.p99 == result.ages_ms[name].percentile(99)
        assert shown.last_age_ms == stream.last_age_ms
        assert shown.state == "stopped"
    assert figures.queues == result.queues
    assert {name: node.items for name, node in figures.nodes.items()} == {
        name: metrics.items for name, metrics in result.stages.items()
    }
    assert [node.role for node in figures.nodes.values()] == ["source", "source", "sink"]


@pytest.mark.parametrize("troubled", [False, True])
def test_a_stream_s_state_is_its_last_event_or_what_can_be_seen(troubled):
    context = RunContext()
    told = []

    class Source(ScriptedSource):
        def open(self, context):
            told.append(context.figures().streams["cam"].state)
            return super().open(context)

        def read(self, timeout_s):
            state = context.figures().streams["cam"]
            told.append((state.state, state.reason))
            if troubled:
                context.event(StreamEvent(0, "cam", "stalled", "no frame"))
                context.event(StreamEvent(0, "other", "running", ""))
            return super().read(timeout_s)

    pipeline = Pipeline([Source(2)], [], [ListSink()], live=True, context=context)
    pipeline.run()
    after = ("stalled", "no frame") if troubled else ("running", "")
    assert told == ["connecting", ("running", ""), after, after]
    assert context.figures().streams["cam"].state == "stopped"


def test_what_is_waited_for_is_named():
    context = RunContext()
    seen = []

    class Last(ScriptedSource):
        def open(self, context):
            seen.append(context.figures())
            return super().open(context)

    Pipeline([Last(1)], [], [ListSink()], live=False, context=context).run()
    assert seen[0].opened
    assert not seen[0].ready
    assert seen[0].waiting_for == ["cam"]
