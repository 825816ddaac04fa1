"""What must not happen to the engine: a thread that dies unheard, a stop that is lost on the way,
an output that nobody finalises, a failure without a name."""

from __future__ import annotations

import threading

import pytest

from pipeline.errors import StageError, StuckError
from pipeline.limits import Limits
from pipeline.runner import Deadlines, Pipeline, live_threads
from pipeline.stage import RunContext, Timeout
from pipeline.wiring import QueueOptions
from tests.helpers.fakes import FakeStage, ListSink, ScriptedSource

THREADS = ("per_stage", "shared", "single")
QUICK = Deadlines(drain_s=0.4, abort_s=0.4, slow_call_s=0.2)


def make(sources, stages, sinks, *, live=False, threads="per_stage", **more):
    queued = {stage.name: False for stage in stages[::2]} if threads == "shared" else {}
    way = "single" if threads == "single" else "per_stage"
    options = QueueOptions(2, threads=way, queued=queued)
    return Pipeline(sources, stages, sinks, live=live, queues=options, **more)


class Exiting(FakeStage):
    """Raises what is no `Exception`, as `sys.exit` in a library and a Rust extension's panic do."""

    def __init__(self, name, operation, error):
        super().__init__(name)
        self.operation = operation
        self.error = error

    def _enter(self, operation):
        super()._enter(operation)
        if operation == self.operation:
            raise self.error

    def process(self, items):
        if self.operation == "process" and items[0].id.seq == 3:
            raise self.error
        return super().process(items)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("operation", ["open", "process", "flush", "close"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), BaseException("panic")], ids=repr
)
def test_whatever_a_stage_raises_ends_the_run_with_its_name(threads, operation, error):
    stages = [FakeStage("a"), Exiting("bad", operation, error), FakeStage("b")]
    sink = ListSink()
    result = make([ScriptedSource(50)], stages, [sink], threads=threads).run()
    assert result.exit_code == 1
    first = result.failures[0]
    assert isinstance(first, StageError)
    assert (first.stage, first.operation) == ("bad", operation)
    assert type(error).__name__ in result.reason
    assert sink.calls[-1:] in (["close"], [])
    assert ("flush" in sink.calls) is (operation != "open")
    assert live_threads() == []


@pytest.mark.parametrize("stops", [1, 2])
def test_a_source_whose_interrupt_fails_does_not_keep_the_others_from_stopping(stops):
    class Stubborn(ScriptedSource):
        def interrupt(self):
            raise OSError("the camera's socket is gone")

    hold = threading.Event()
    bad, good = Stubborn(5, name="a", live=True, hold=hold), ScriptedSource(5, name="b", hold=hold)
    sink = ListSink()
    pipeline = make([bad, good], [FakeStage()], [sink])

    def stop():
        sink.entered.wait(5)
        for _ in range(stops):
            pipeline.request_stop()

    thread = threading.Thread(target=stop)
    thread.start()
    result = pipeline.run()
    thread.join()
    assert good.interrupted.is_set()
    assert (result.failures[0].stage, result.failures[0].operation) == ("a", "interrupt")
    assert len(result.failures) == 1
    assert "close" in sink.calls
    assert live_threads() == []


@pytest.mark.parametrize("threads", THREADS)
def test_a_sink_that_cannot_tell_what_it_wrote_is_a_failure_beside_the_others_figures(threads):
    class Dumb(ListSink):
        def outputs(self):
            raise ZeroDivisionError("no frames")

    result = make(
        [ScriptedSource(5)], [FakeStage()], [Dumb("bad"), ListSink("good")], threads=threads
    ).run()
    assert [output.uri for output in result.outputs] == ["list:good"]
    assert (result.failures[0].stage, result.failures[0].operation) == ("bad", "outputs")
    assert result.exit_code == 1


def test_when_the_progress_display_fails_the_threads_have_ended_before_the_caller_hears():
    hold = threading.Event()

    class Slow(ListSink):
        def close(self):
            threading.Event().wait(0.2)  # an encoder takes its time to close a file
            super().close()

    sink = Slow()

    def tick(snapshot):
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        make([ScriptedSource(5, live=True, hold=hold)], [FakeStage()], [sink]).run(tick, 0.05)
    assert sink.calls[-1] == "close"
    assert live_threads() == []


def test_a_thread_that_cannot_be_started_leaves_none_behind(monkeypatch):
    start, count = threading.Thread.start, []

    def failing(self):
        count.append(self)
        if len(count) == 3:
            raise RuntimeError("can't start new thread")
        start(self)

    pipeline = make([ScriptedSource(5)], [FakeStage()], [ListSink()])
    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start"):
        pipeline.run()
    assert live_threads() == []


def test_a_stage_that_failed_while_another_was_flushed_is_not_called_again():
    later = FakeStage("later", fail="process", at=9)
    first = FakeStage("first", held_back=2)
    middle = FakeStage("middle", held_back=0)
    sink = ListSink()
    result = make([ScriptedSource(10)], [first, middle, later], [sink], threads="single").run()
    assert [(f.stage, f.operation) for f in result.failures] == [("later", "process")]
    assert "flush" not in later.calls
    assert "flush" in sink.calls
    assert sink.seqs == list(range(9))


def test_a_live_run_ends_after_its_duration_though_its_camera_has_gone_silent():
    class Silent(ScriptedSource):
        def read(self, timeout_s):
            if self.seq < 2:
                return super().read(timeout_s)
            self.interrupted.wait(0.02)
            return Timeout()

    pipeline = make(
        [Silent(live=True)], [FakeStage()], [ListSink()], live=True, limits=Limits(duration_s=0.1)
    )
    guard = threading.Timer(5, pipeline.request_stop)
    guard.start()
    result = pipeline.run()
    guard.cancel()
    assert (result.exit_code, result.reason) == (0, "end of stream")


def test_when_no_source_opens_no_output_is_finalised():
    sources = [ScriptedSource(5, name=name, fail="open") for name in "abc"]
    sink = ListSink()
    result = make(sources, [FakeStage()], [sink]).run()
    assert {failure.stage for failure in result.failures} == {"a", "b", "c"}
    assert result.exit_code == 1
    assert "flush" not in sink.calls


def test_one_source_that_cannot_be_read_leaves_the_others_complete():
    sources = [ScriptedSource(40, name="a"), ScriptedSource(10, name="b", fail="read", at=2)]
    sink = ListSink()
    result = make(sources, [FakeStage()], [sink]).run()
    assert [i.seq for i in sink.seen if i.stream == "a"] == list(range(40))
    assert [i.seq for i in sink.seen if i.stream == "b"] == [0, 1]
    assert (result.failures[0].stage, result.failures[0].operation) == ("b", "read")


@pytest.mark.parametrize("threads", THREADS)
def test_a_run_that_gets_nowhere_outside_any_call_is_a_failure_too(threads):
    gate = threading.Event()

    class Tap:
        def add(self, frame):
            gate.wait()

        def hexdigest(self):
            return ""

    pipeline = make(
        [ScriptedSource(9)],
        [FakeStage()],
        [ListSink()],
        threads=threads,
        tap=Tap(),
        deadlines=QUICK,
    )
    result = pipeline.run(lambda snapshot: pipeline.request_stop(), 0.1)
    gate.set()
    assert any(isinstance(f, StuckError) for f in result.failures)
    assert result.exit_code == 1


def test_a_note_that_nobody_can_read_is_kept_for_the_report():
    from pipeline.console import Console

    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError("nobody reads")

        def flush(self):
            raise BrokenPipeError("nobody reads")

    console = Console(err=Closed(), out=Closed())
    context = RunContext(on_note=console.note)

    class Noting(FakeStage):
        def process(self, items):
            context.note(f"frame {items[0].id.seq} is dark")
            return super().process(items)

    result = make([ScriptedSource(3)], [Noting()], [ListSink()], context=context).run()
    assert result.exit_code == 0, result.reason
    assert len(context.notes) == 3


class Gated(FakeStage):
    """Stays in one operation until it is let go, and says when it is there."""

    def __init__(self, operation):
        super().__init__("gated", held_back=1)
        self.operation = operation
        self.there, self.go = threading.Event(), threading.Event()

    def _enter(self, operation):
        super()._enter(operation)
        if operation == self.operation:
            self.there.set()
            assert self.go.wait(10)

    def process(self, items):
        if self.operation == "process":
            self.there.set()
            assert self.go.wait(10)
        return super().process(items)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("operation", ["open", "process", "flush", "close"])
@pytest.mark.parametrize("stops", [1, 2, 3])
def test_a_stop_works_from_every_state(threads, operation, stops):
    stage, sink, source = Gated(operation), ListSink(), ScriptedSource(20)
    pipeline = make([source], [FakeStage("a"), stage, FakeStage("b")], [sink], threads=threads)

    def stop():
        assert stage.there.wait(10)
        for _ in range(stops):
            pipeline.request_stop()
            threading.Event().wait(0.06)  # longer than the runner's look at the requests
        stage.go.set()

    thread = threading.Thread(target=stop)
    thread.start()
    result = pipeline.run()
    thread.join()
    assert result.exit_code == 130, result.reason
    assert not result.failures
    assert stage.calls[-1] == sink.calls[-1] == "close"
    assert live_threads() == []
    for name, q in result.queues.items():
        assert q.offered == q.delivered + q.dropped + q.discarded + q.depth, name
    if stops == 1:  # a drain loses nothing that was read, an abort flushes nothing
        assert sink.seqs == list(range(result.streams["cam"].frames_in))
    elif operation in ("open", "process"):
        assert "flush" not in stage.calls


@pytest.mark.parametrize("stages", [0, 1])
def test_frames_that_only_a_slow_output_lost_are_told(stages):
    from pipeline.console import essence
    from pipeline.report import build_report

    gate = threading.Event()

    class Burst(ScriptedSource):
        def read(self, timeout_s):
            if self.seq == self.count:
                gate.set()
            self.interrupted.wait(0.002)
            return super().read(timeout_s)

    result = make(
        [Burst(40, live=True)], [FakeStage()] * stages, [ListSink("slow", gate=gate)], live=True
    ).run()
    name = next(name for name in result.queues if name.endswith("->slow"))
    lost = result.queues[name].dropped
    assert lost > 10
    text = "\n".join(essence(build_report(result, config={})))
    assert f"{name}: {lost} frames dropped" in text
