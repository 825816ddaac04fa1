"""The runner: order and counts, drain and abort from every state, failures, stuck stages, the
tee."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from pipeline.errors import StageError, StuckError, UsageError
from pipeline.frame import Frame, Inferred, Prepared
from pipeline.limits import Limits
from pipeline.queue import QueueStats
from pipeline.runner import Deadlines, Pipeline, live_threads
from pipeline.stage import RunContext
from pipeline.wiring import QueueOptions
from tests.helpers.fakes import LOST, FakeStage, ListSink, ScriptedSource, make_frame

THREADS = ("per_stage", "shared", "single")
"""shared: every other stage, the first one included, runs in the thread before it."""
DEADLINES = Deadlines(drain_s=0.12, abort_s=0.12, slow_call_s=0.08)


def make(sources, stages, sinks, *, live=False, threads="per_stage", capacity=4, **more):
    queued = {stage.name: False for stage in stages[::2]} if threads == "shared" else {}
    way = "single" if threads == "single" else "per_stage"
    options = QueueOptions(capacity=capacity, threads=way, queued=queued)
    return Pipeline(sources, stages, sinks, live=live, queues=options, **more)


def check_books(result):
    """Every queue's counters add up, and no thread of the run is alive."""
    for name, q in result.queues.items():
        assert isinstance(q, QueueStats)
        assert q.offered == q.delivered + q.dropped + q.discarded + q.depth, name
    assert live_threads() == []


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("capacity", [1, 4, 16])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_frame_arrives_in_order_and_everything_is_flushed_and_closed(
    threads, capacity, count
):
    source, stages, sink = ScriptedSource(count), [FakeStage("a"), FakeStage("b")], ListSink()
    result = make([source], stages, [sink], threads=threads, capacity=capacity).run()
    assert (result.exit_code, result.reason) == (0, "end of stream")
    assert sink.seqs == list(range(count))
    assert sink.calls == ["open", "flush", "close"]
    assert stages[0].calls == ["open", "flush", "close"]
    assert source.calls == ["open", "close"]
    assert result.streams["cam"].frames_in == result.streams["cam"].frames_out == count
    assert result.ages_ms["cam"].count == count
    assert [m.items for m in result.stages.values()] == [count] * 4
    check_books(result)


@pytest.mark.parametrize("threads", THREADS)
def test_what_a_stage_held_back_comes_out_at_the_end_before_the_end(threads):
    sink = ListSink()
    result = make(
        [ScriptedSource(20)],
        [FakeStage("lag", held_back=5), FakeStage("b")],
        [sink],
        threads=threads,
    ).run()
    assert sink.seqs == list(range(20))
    assert result.exit_code == 0


def test_batches_form_up_to_the_size_a_stage_asks_for():
    stage = FakeStage("batch", max_size=4, gate=threading.Event())
    sink = ListSink()
    pipeline = make([ScriptedSource(9)], [stage], [sink])
    threading.Timer(0.1, stage.gate.set).start()
    pipeline.run()
    assert sink.seqs == list(range(9))
    assert max(stage.batches) == 4


def test_several_sources_keep_their_order_each():
    sink = ListSink()
    sources = [ScriptedSource(30, name="a"), ScriptedSource(20, name="b")]
    result = make(sources, [FakeStage()], [sink]).run()
    for name, count in (("a", 30), ("b", 20)):
        assert [i.seq for i in sink.seen if i.stream == name] == list(range(count))
        assert result.streams[name].frames_out == count
    check_books(result)


class LightStage(FakeStage):
    light = True


@pytest.mark.parametrize(
    ("cores", "live", "sources", "queued", "expected"),
    [
        (2, False, 1, {}, ["prepare->infer", "nms->out"]),
        (64, False, 1, {}, ["source->prepare", "prepare->infer", "infer->nms", "nms->out"]),
        (2, True, 1, {}, ["source->prepare", "nms->out"]),
        (64, True, 1, {}, ["source->prepare", "infer->nms", "nms->out"]),
        (
            64,
            True,
            1,
            {"infer": True},
            ["source->prepare", "prepare->infer", "infer->nms", "nms->out"],
        ),
        (2, False, 2, {}, ["source->prepare", "prepare->infer", "nms->out"]),
        (2, False, 1, {"nms": True}, ["prepare->infer", "infer->nms", "nms->out"]),
        (64, False, 1, {"infer": False}, ["source->prepare", "infer->nms", "nms->out"]),
        (64, False, 1, dict.fromkeys(("prepare", "infer", "nms"), False), ["nms->out"]),
    ],
)
def test_a_queue_starts_a_thread_and_light_stages_share_one_where_cores_are_few(
    monkeypatch, cores, live, sources, queued, expected
):
    monkeypatch.setattr("pipeline.wiring.available_cores", lambda: cores)
    stages = [LightStage("prepare"), FakeStage("infer"), LightStage("nms")]
    result = Pipeline(
        [ScriptedSource(3, name=f"cam{i}") for i in range(sources)],
        stages,
        [sink := ListSink("out")],
        live=live,
        queues=QueueOptions(queued=queued),
    ).run()
    assert list(result.queues) == expected
    assert len(sink.seqs) + sum(q.dropped for q in result.queues.values()) == 3 * sources
    check_books(result)


def test_a_first_stage_without_a_queue_cannot_serve_several_sources():
    sources = [ScriptedSource(name="a"), ScriptedSource(name="b")]
    with pytest.raises(UsageError, match=r"stage 'first' cannot do without a queue.*queue: false"):
        make(sources, [FakeStage("first")], [ListSink()], threads="shared")


# --- the failure table: who fails in what, and what the caller and the others see ---------------

SOURCE_ROWS = [
    # operation, frames that still arrive, sink finalised
    ("open", 0, False),
    ("read", 3, True),
    ("close", 10, True),
]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("operation", "arrive", "finalised"), SOURCE_ROWS)
def test_a_failing_source_is_named_and_what_it_gave_is_finished(
    threads, operation, arrive, finalised
):
    source, sink = ScriptedSource(10, fail=operation), ListSink()
    result = make([source], [FakeStage()], [sink], threads=threads).run()
    assert result.exit_code == 1
    assert isinstance(result.failures[0], StageError)
    assert (result.failures[0].stage, result.failures[0].operation) == ("cam", operation)
    assert f"scripted failure in {operation}" in result.reason
    assert sink.seqs == list(range(arrive))
    assert ("flush" in sink.calls) is finalised
    assert sink.calls[-1] == "close"
    check_books(result)


STAGE_ROWS = [
    ("open", 0, False),
    ("process", 3, True),
    ("flush", 10, True),
    ("close", 10, True),
]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(("operation", "arrive", "finalised"), STAGE_ROWS)
def test_a_failing_stage_is_named_and_what_went_before_is_finished(
    threads, position, operation, arrive, finalised
):
    stages = [FakeStage(f"s{i}", fail=operation if i == position else None) for i in range(3)]
    source, sink = ScriptedSource(10), ListSink()
    result = make([source], stages, [sink], threads=threads).run()
    first = result.failures[0]
    assert isinstance(first, StageError)
    assert (first.stage, first.operation) == (f"s{position}", operation)
    assert isinstance(first.__cause__, ValueError)
    assert result.exit_code == 1
    assert str(first.frame_id) == ("cam/0/3" if operation == "process" else "None")
    assert sink.seqs == list(range(arrive))
    assert ("flush" in sink.calls) is finalised
    if operation == "process":
        assert "flush" not in stages[position].calls
    # Whoever was opened is closed, once; whoever was not is left alone.
    for stage in stages:
        if stage.fail == "open":
            assert "close" not in stage.calls
        elif "open" in stage.calls:
            assert stage.calls.count("close") == 1
    check_books(result)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("operation", ["process", "flush", "close"])
def test_a_failing_sink_does_not_touch_the_other_outputs(threads, operation):
    bad, good = ListSink("bad", fail=operation), ListSink("good")
    result = make([ScriptedSource(10)], [FakeStage()], [bad, good], threads=threads).run()
    assert result.exit_code == 1
    assert (result.failures[0].stage, result.failures[0].operation) == ("bad", operation)
    assert good.seqs == list(range(10))
    assert good.calls == ["open", "flush", "close"]
    assert bad.calls[-1] == "close"
    check_books(result)


@pytest.mark.parametrize("threads", THREADS)
def test_a_sink_that_cannot_open_ends_the_run_before_any_source_is_opened(threads):
    source, good = ScriptedSource(10), ListSink("good")
    result = make([source], [], [good, ListSink("bad", fail="open")], threads=threads).run()
    assert result.failures[0].operation == "open"
    assert source.calls == []
    assert good.seqs == []
    assert "flush" not in good.calls
    check_books(result)


def test_when_the_only_sink_dies_an_endless_source_is_stopped():
    source = ScriptedSource(10**9)
    result = make([source], [FakeStage()], [ListSink(fail="process")]).run()
    assert result.exit_code == 1
    assert source.calls[-1] == "close"
    check_books(result)


@pytest.mark.parametrize("threads", THREADS)
def test_a_source_that_breaks_off_is_a_failure_with_complete_outputs(threads):
    sink = ListSink()
    result = make([ScriptedSource(7, ending=LOST)], [FakeStage()], [sink], threads=threads).run()
    assert result.exit_code == 1
    assert "the wire was cut" in result.reason
    assert sink.seqs == list(range(7))
    assert "flush" in sink.calls


def test_one_broken_source_does_not_stop_the_other():
    sink = ListSink()
    result = make(
        [ScriptedSource(5, name="a", fail="open"), ScriptedSource(20, name="b")], [], [sink]
    ).run()
    assert result.exit_code == 1
    assert result.failures[0].stage == "a"
    assert sink.seqs == list(range(20))


def test_the_first_failure_wins_and_later_ones_are_attached():
    bad = FakeStage("s", fail="process", at=2)
    sink = ListSink(fail="close")
    result = make([ScriptedSource(10)], [bad], [sink]).run()
    assert [(f.stage, f.operation) for f in result.failures] == [("s", "process"), ("out", "close")]
    assert result.reason == str(result.failures[0])


# --- stopping
# --------------------------------------------------------------------------------------


def stop_when(event, pipeline, times=1):
    def wait():
        assert event.wait(10)
        for _ in range(times):
            pipeline.request_stop()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_stop_drains_every_accepted_frame_and_finalises():
    gate, hold = threading.Event(), threading.Event()
    stage, sink = FakeStage(gate=gate), ListSink()
    source = ScriptedSource(3, live=True, hold=hold)
    pipeline = make([source], [stage], [sink])
    thread = stop_when(stage.entered, pipeline)
    threading.Timer(0.08, gate.set).start()
    result = pipeline.run()
    thread.join()
    assert (result.exit_code, result.reason) == (130, "stopped by the user")
    assert sink.seqs == list(range(result.streams["cam"].frames_in))
    assert sink.calls == ["open", "flush", "close"]
    assert source.interrupted.is_set()
    check_books(result)


def test_a_second_stop_discards_and_closes_without_a_flush():
    gate = threading.Event()
    sink = ListSink(gate=gate)
    pipeline = make([ScriptedSource(10**9)], [FakeStage()], [sink], capacity=2)
    thread = stop_when(sink.entered, pipeline, times=2)
    threading.Timer(0.08, gate.set).start()
    result = pipeline.run()
    thread.join()
    assert (result.exit_code, result.reason) == (130, "aborted by the user")
    assert sink.calls == ["open", "close"]
    assert sum(q.discarded for q in result.queues.values()) > 0
    check_books(result)


def test_a_stop_before_the_sources_are_open_ends_the_run():
    sink = ListSink()
    pipeline = make([ScriptedSource(10**9)], [FakeStage()], [sink])
    pipeline.request_stop()
    result = pipeline.run()
    assert result.exit_code == 130
    check_books(result)


def test_a_stop_while_the_queues_are_full_still_delivers_what_was_accepted():
    gate = threading.Event()
    sink = ListSink(gate=gate)
    source = ScriptedSource(10**9)
    pipeline = make([source], [FakeStage()], [sink], capacity=1)
    thread = stop_when(sink.entered, pipeline)
    threading.Timer(0.1, gate.set).start()
    result = pipeline.run()
    thread.join()
    assert sink.seqs == list(range(result.streams["cam"].frames_in))
    check_books(result)


def test_a_sink_may_ask_for_the_stop():
    class Closing(ListSink):
        def process(self, items):
            self.wants_stop = True
            return super().process(items)

    result = make([ScriptedSource(10**9)], [], [Closing()]).run()
    assert result.exit_code == 130
    check_books(result)


@pytest.mark.parametrize("stops", [1, 2])
def test_a_stuck_stage_is_reported_by_name_and_stack_within_the_deadline(stops):
    gate = threading.Event()
    stage = FakeStage("deep", gate=gate)
    pipeline = make([ScriptedSource(10**9)], [stage], [ListSink()], deadlines=DEADLINES)
    thread = stop_when(stage.entered, pipeline, times=stops)
    result = pipeline.run()
    thread.join()
    stuck = next(f for f in result.failures if isinstance(f, StuckError))
    assert "deep" in str(stuck)
    assert "process" in str(stuck)
    assert "self.gate.wait()" in stuck.stack
    assert result.exit_code == 1
    gate.set()


def test_a_flush_may_take_longer_than_other_calls_while_draining():
    gate = threading.Event()

    class Remuxing(ListSink):
        def flush(self):
            gate.wait(10)
            return super().flush()

    sink = Remuxing()
    pipeline = make([ScriptedSource(10**9)], [], [sink], deadlines=DEADLINES)
    thread = stop_when(sink.entered, pipeline)
    threading.Timer(3 * DEADLINES.drain_s, gate.set).start()
    result = pipeline.run()
    thread.join()
    assert (result.exit_code, result.failures) == (130, [])
    assert sink.calls == ["open", "flush", "close"]


def test_a_slow_call_is_noted_while_the_run_goes_on():
    gate = threading.Event()
    stage, context = FakeStage("deep", gate=gate), RunContext()
    threading.Timer(0.25, gate.set).start()
    result = make(
        [ScriptedSource(3)], [stage], [ListSink()], deadlines=DEADLINES, context=context
    ).run()
    assert result.exit_code == 0
    assert any("deep has been in process" in note for note in context.notes)


# --- live
# ------------------------------------------------------------------------------------------


class Paced(ScriptedSource):
    """Gives the next frame when `taken` was released for the one before."""

    def __init__(self, count):
        super().__init__(count, live=True)
        self.taken = threading.Semaphore(1)

    def read(self, timeout_s):
        assert self.taken.acquire(timeout=10)
        return super().read(timeout_s)


class Acknowledging(ListSink):
    """Releases a Paced source's next frame for each frame it has taken."""

    def __init__(self, source, **more):
        super().__init__("quick", **more)
        self.source = source

    def process(self, items):
        super().process(items)
        self.source.taken.release()
        return ()


def test_a_live_run_drops_in_the_first_queue_only_and_keeps_the_freshest():
    gate = threading.Event()
    stages, sink = [FakeStage("a"), FakeStage("b", gate=gate)], ListSink(on_full="block")

    class Burst(ScriptedSource):
        def read(self, timeout_s):
            if self.seq == self.count:  # all 100 were offered while the second stage stood still
                gate.set()
            self.interrupted.wait(0.0005)  # lets the stages run between two frames
            return super().read(timeout_s)

    result = make([Burst(100, live=True)], stages, [sink], live=True).run()
    stream = result.streams["cam"]
    assert stream.frames_in == 100
    assert stream.dropped_full >= 90
    assert stream.frames_in == stream.frames_out + stream.dropped_full
    assert sink.seqs[-1] == 99, "the freshest frame must survive"
    assert sink.seqs == sorted(set(sink.seqs))
    drops = [q.dropped for q in result.queues.values()]
    assert drops == [stream.dropped_full, 0, 0]
    check_books(result)


def test_live_streams_share_a_slow_stage_evenly_whatever_their_rates():
    class Slow(FakeStage):
        def process(self, items):
            time.sleep(0.004)
            return super().process(items)

    class Camera(ScriptedSource):
        def read(self, timeout_s):
            time.sleep(self.pause_s)
            return super().read(timeout_s)

    cameras = [Camera(10**6, name=name, live=True) for name in ("slow", "fast", "faster")]
    for camera, pause_s in zip(cameras, (0.006, 0.002, 0.0005), strict=True):
        camera.pause_s = pause_s
    sink = ListSink(on_full="block")
    limits = Limits(duration_s=1.0)
    result = make(cameras, [Slow("slow stage")], [sink], live=True, limits=limits).run()
    shares = [result.streams[c.name].frames_out for c in cameras]
    assert min(shares) > 0.8 * sum(shares) / 3
    for stream in result.streams.values():
        assert stream.frames_in == stream.frames_out + stream.dropped_full + stream.dropped_stale
    check_books(result)


def test_frames_too_old_for_a_live_run_are_dropped_before_work_goes_into_them():
    class Late(ScriptedSource):
        def read(self, timeout_s):
            frame = super().read(timeout_s)
            if isinstance(frame, Frame) and frame.id.seq % 2:
                late = replace(frame.time, captured_ns=frame.time.captured_ns - 600_000_000)
                frame = replace(frame, time=late)
            time.sleep(0.002)
            return frame

    stage, sink = FakeStage("a"), ListSink(on_full="block")
    result = make([Late(20, live=True)], [stage], [sink], live=True).run()
    stream = result.streams["cam"]
    assert stream.dropped_stale + stream.dropped_full >= 10
    assert stream.dropped_stale >= 5
    assert all(seq % 2 == 0 for seq in sink.seqs)
    assert stream.frames_in == stream.frames_out + stream.dropped_full + stream.dropped_stale
    options = QueueOptions(max_age_s=None)
    result = Pipeline([Late(20, live=True)], [stage], [sink], live=True, queues=options).run()
    assert result.streams["cam"].dropped_stale == 0


def test_a_file_in_a_live_run_comes_at_its_own_pace():
    sink = ListSink()
    result = make([ScriptedSource(6)], [FakeStage()], [sink], live=True).run()
    assert result.wall_s >= 5 / 25, "six frames at 25 a second"
    assert sink.seqs == list(range(6))
    # From when it was read they would be 0, 40, ... 200 ms; a busy machine delays single frames.
    assert result.ages_ms["cam"].percentile(50) < 50, "age counts from when the frame was due"


def test_a_stop_does_not_wait_for_the_next_frame_of_a_paced_file():
    source = ScriptedSource(10**6)
    sink = ListSink()
    pipeline = make([source], [], [sink], live=True, deadlines=DEADLINES)
    source.read = lambda timeout_s: make_frame(source.seq, pts=source.seq * 10**6)
    thread = stop_when(sink.entered, pipeline)
    result = pipeline.run()
    thread.join()
    assert result.exit_code == 130
    assert result.wall_s < 5


def test_a_slow_sink_of_a_live_run_does_not_hold_up_the_other():
    gate = threading.Event()
    source = Paced(30)
    quick, slow = Acknowledging(source), ListSink("slow", gate=gate)

    class Closing(FakeStage):
        def flush(self):
            gate.set()  # the stream has ended before the slow sink got anywhere
            return super().flush()

    result = make([source], [Closing()], [quick, slow], live=True).run()
    assert quick.seqs == list(range(30))
    assert len(slow.seqs) <= 6
    assert slow.seqs[-1] == 29
    assert result.exit_code == 0
    check_books(result)


# --- limits, ticks, wrong pipelines
# -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "count"),
    [(Limits(max_frames=7), 7), (Limits(duration_s=0.4), 10), (Limits(duration_s=99.0), 30)],
)
def test_a_limit_ends_the_run_in_good_order(limits, count):
    sink = ListSink()
    result = make([ScriptedSource(30)], [FakeStage()], [sink], limits=limits).run()
    assert result.exit_code == 0
    assert sink.seqs == list(range(count))
    assert "flush" in sink.calls


def test_progress_is_reported_while_it_runs():
    gate = threading.Event()
    threading.Timer(0.15, gate.set).start()
    seen = []
    make([ScriptedSource(5)], [FakeStage(gate=gate)], [ListSink()]).run(seen.append, tick_s=0.02)
    assert seen
    assert seen[0].streams["cam"].frames_in > 0
    assert seen[0].streams["cam"].frames_out == 0


def typed(name, takes, gives):
    stage = FakeStage(name)
    stage.accepts, stage.produces = takes, gives
    return stage


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        (
            [typed("infer", Prepared, Inferred)],
            "'infer' accepts Prepared, but the source produces Frame",
        ),
        (
            [typed("preprocess", Frame, Prepared), typed("nms", Inferred, Frame)],
            "stage 'nms' accepts Inferred, but 'preprocess' produces Prepared",
        ),
        ([typed("preprocess", Frame, Prepared)], "sinks accept Frame, but 'preprocess' produces"),
        ([FakeStage("x"), FakeStage("x")], "used twice: x"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_it_starts(stages, text):
    with pytest.raises(UsageError, match=text):
        make([ScriptedSource(1)], stages, [ListSink()])


def test_a_pipeline_without_ends_or_with_two_sources_in_one_thread_is_refused():
    with pytest.raises(UsageError, match="at least one source and one sink"):
        make([ScriptedSource(1)], [], [])
    with pytest.raises(UsageError, match="single takes one source"):
        make(
            [ScriptedSource(name="a"), ScriptedSource(name="b")], [], [ListSink()], threads="single"
        )


def test_the_tap_sees_every_frame_that_leaves_the_chain():
    class Tap:
        def __init__(self):
            self.seqs = []

        def add(self, frame):
            self.seqs.append(frame.id.seq)

    tap = Tap()
    make([ScriptedSource(9)], [FakeStage("s", held_back=2)], [ListSink()], tap=tap).run()
    assert tap.seqs == list(range(9))
