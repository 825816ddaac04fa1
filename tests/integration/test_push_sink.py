"""The push sink against real receivers: FFmpeg as an RTSP and RTMP server that records."""

from __future__ import annotations

import json
import subprocess
import time
from fractions import Fraction

import av
import pytest

from pipeline.errors import SinkError, UsageError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import RunContext, StreamInfo
from pipeline.url import Url
from stages.sinks.push import PushSink, PushSinkConfig
from tests.helpers.media import numbered, read_number
from tests.helpers.servers import free_port

BASE = Fraction(1, 1000)
pytestmark = pytest.mark.needs_ffmpeg


class Receiver:
    """FFmpeg, waiting for one sender, writing what comes into a file."""

    def __init__(self, url, path):
        listen = ["-rtsp_flags", "listen"] if url.startswith("rtsp") else ["-listen", "1"]
        command = ["ffmpeg", "-v", "quiet", "-y", *listen, "-i", url, "-c", "copy", str(path)]
        self.path = path
        self.process = subprocess.Popen(command)
        time.sleep(0.5)  # FFmpeg does not say when it listens

    def end(self):
        """Return [(number in the picture, seconds)] of what was recorded."""
        self.process.wait(15)
        with av.open(str(self.path)) as container:
            return [
                (read_number(picture.to_ndarray(format="bgr24")), picture.time)
                for picture in container.decode(video=0)
            ]

    def kill(self):
        self.process.kill()
        self.process.wait()


def frame(number, *, stream="cam", at_s=None, size=(192, 128)):
    at_s = number / 25 if at_s is None else at_s
    time_ = FrameTime(time.monotonic_ns(), round(at_s * 1000), BASE, 40)
    return Frame(FrameId(stream, 0, number), time_, numbered(number, size))


def open_sink(url, *, live=True, **options):
    sink = PushSink(PushSinkConfig(url=url, **options), "push")
    context = RunContext(live=live)
    context.streams["cam"] = StreamInfo("cam", Url("x:"), live, (192, 128), BASE, Fraction(25))
    sink.open(context)
    return sink, context


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp"])
def test_what_is_pushed_arrives_whole_with_its_size_and_times(scheme, tmp_path):
    url = f"{scheme}://127.0.0.1:{free_port()}/app/live"
    receiver = Receiver(url, tmp_path / "got.mkv")
    sink, context = open_sink(url)
    for number in range(30):
        sink.process([frame(number)])
        time.sleep(0.01)
    sink.flush()
    sink.close()
    got = receiver.end()
    assert [number for number, _ in got] == list(range(30))
    times = [at_s for _, at_s in got]
    # FFmpeg's RTSP server gives the first two pictures one time: it learns the clock only then.
    assert [b - times[1] for b in times[1:]] == pytest.approx([k / 25 for k in range(29)], abs=2e-3)
    assert sink.counters == {"unsent": 0, "reconnects": 0}
    assert sink.outputs()[0].frames == 30
    assert not context.events


def test_a_server_that_goes_and_comes_back_costs_frames_and_nothing_else(tmp_path):
    url = f"rtsp://127.0.0.1:{free_port()}/live"
    receiver = Receiver(url, tmp_path / "first.mkv")
    sink, context = open_sink(url)
    number = 0

    def push_for(seconds, until=lambda: False):
        nonlocal number
        began = time.monotonic()
        while time.monotonic() - began < seconds and not until():
            called = time.monotonic()
            sink.process([frame(number)])
            assert time.monotonic() - called < 4, "a frame waited for the server"
            number += 1
            time.sleep(0.02)

    push_for(0.5)
    receiver.kill()
    push_for(6, until=lambda: sink.counters["unsent"] > 3)
    assert sink.counters["unsent"] > 3
    again = Receiver(url, tmp_path / "second.mkv")
    push_for(12, until=lambda: sink.counters["reconnects"])
    push_for(0.5)
    sink.flush()
    sink.close()
    got = [seen for seen, _ in again.end()]
    assert sink.counters["reconnects"] == 1
    assert len(got) > 10
    assert got == list(range(got[0], number))
    states = [event.state for event in context.events]
    assert states[0] == "backing off"
    assert states[-1] == "running"


def test_nobody_there_is_a_failure_at_the_end_of_a_live_run():
    sink, _ = open_sink(f"rtsp://127.0.0.1:{free_port()}/live")
    for number in range(3):
        sink.process([frame(number)])
    assert sink.counters["unsent"] == 3
    with pytest.raises(SinkError, match=r"nothing was pushed: rtsp://.*refused"):
        sink.flush()
    sink.close()


def test_offline_it_waits_for_the_server_and_then_fails():
    sink, context = open_sink(f"rtsp://127.0.0.1:{free_port()}/live", live=False)
    waited = []

    class Hurried:
        def now_ns(self):
            return int(sum(waited) * 1e9)

        def sleep(self, seconds):
            waited.append(seconds + 0.01)

    sink._clock = Hurried()
    with pytest.raises(SinkError, match=r"refused.*tried for 30 s"):
        sink.process([frame(0)])
    assert sum(waited) >= 30
    assert sink.counters["unsent"] == 0
    assert len(context.events) > 3


def test_an_address_takes_one_stream():
    sink, _ = open_sink(f"rtsp://127.0.0.1:{free_port()}/live")
    sink.process([frame(0)])
    with pytest.raises(UsageError, match="takes one stream, but 'other' came beside 'cam'"):
        sink.process([frame(1, stream="other")])
    sink.close()


@pytest.mark.parametrize("address", ["http://host/x", "https://u:sesame@host/x"])
def test_what_cannot_be_pushed_to_is_said_at_the_start(address):
    with pytest.raises(UsageError, match="cannot be pushed to; expected rtsp://") as caught:
        open_sink(address)
    assert "sesame" not in str(caught.value)


def test_the_program_pushes_and_hides_the_password(tmp_path, monkeypatch, capfd):
    import run

    monkeypatch.chdir(tmp_path)
    port = free_port()
    receiver = Receiver(f"rtmp://127.0.0.1:{port}/app/live", tmp_path / "got.mkv")
    code = run.main([
        "run", "synthetic:shapes?size=192x128&frames=12", "--device", "cpu", "--report", "r.json",
        "-o", f"rtmp://me:sesame@127.0.0.1:{port}/app/live", "-o", "out.jsonl",
    ])  # fmt: skip
    told = "".join(capfd.readouterr())
    receiver.process.wait(15)
    assert code == 0, told
    report = (tmp_path / "r.json").read_text()
    assert "sesame" not in told + report
    pushed = next(o for o in json.loads(report)["outputs"] if o["uri"].startswith("rtmp"))
    assert pushed["frames"] == 12
