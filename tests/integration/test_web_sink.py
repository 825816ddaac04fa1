"""The web sink over real sockets: pictures, figures, who is let in, and viewers who misbehave."""

from __future__ import annotations

import gc
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from fractions import Fraction

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import run
from pipeline.errors import UsageError
from pipeline.frame import Frame
from pipeline.runner import Pipeline, live_threads
from pipeline.stage import RunContext, StreamEvent, StreamInfo
from pipeline.url import Url
from stages.sinks.null import NullSink, NullSinkConfig
from stages.sinks.web import WebSink, WebSinkConfig
from stages.sources.synthetic import SyntheticConfig, SyntheticSource
from tests.contracts.check_sink import check_sink
from tests.helpers.fakes import ScriptedSource, make_frame
from tests.helpers.servers import free_port

TOKEN = "correct horse"


def web(**options):
    return WebSink(WebSinkConfig(**{"port": 0, **options}), "web")


def scene(name="shapes", **options):
    options = {"size_wh": "160x120", "fps": "30", "count": 3, "paced": True, **options}
    return SyntheticSource(SyntheticConfig(**options), name)


def port_of(sink):
    return int(re.search(r":(\d+)/", sink.outputs()[0].uri)[1])


def wait_until(true, timeout_s=10.0):
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@contextmanager
def running(*sources, sink, context=None, live=True):
    """A run in a thread, with the sink's port; the result is in the yielded dict afterwards."""
    pipeline = Pipeline(sources, [], [sink], live=live, context=context)
    found = {}
    thread = threading.Thread(target=lambda: found.update(result=pipeline.run()))
    thread.start()
    try:
        wait_until(lambda: sink.outputs())
        yield port_of(sink), found
    finally:
        pipeline.request_stop()
        thread.join(15)
        assert not thread.is_alive()
    assert live_threads() == []


def get(port, path, *, method="GET", **headers):
    """Return (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


class Viewer:
    """Reads a stream of pictures, or does not."""

    def __init__(self, port, stream="shapes", *, buffer_bytes=None):
        self.socket = socket.socket()
        if buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(
            f"GET /stream/{stream}.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        self.status = None

    def head(self):
        self.status = int(self.file.readline().split()[1])
        return http.client.parse_headers(self.file)

    def picture(self):
        """Return the next picture as BGR; the stream's head is read before the first."""
        if self.status is None:
            kind = self.head()["Content-Type"]
            assert self.status == 200
            self.boundary = kind.partition("boundary=")[2]
            assert self.file.readline() == f"--{self.boundary}\r\n".encode()
        size = int(http.client.parse_headers(self.file)["Content-Length"])
        data = self.file.read(size)
        assert self.file.readline() == b"\r\n"
        assert self.file.readline() == f"--{self.boundary}\r\n".encode()
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    def close(self):
        self.file.close()
        self.socket.close()


@pytest.fixture
def watch():
    """Makes viewers that are gone after the test."""
    made = []

    def connect(port, *arguments, **options):
        made.append(Viewer(port, *arguments, **options))
        return made[-1]

    yield connect
    for viewer in made:
        viewer.close()


def samples_of(text):
    """{(name, labels): value} of a Prometheus text."""
    return {
        (sample.name.removeprefix("rackfocus_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def same_moment(port):
    """/stats.json and /metrics of one sample."""
    for _ in range(20):
        before = json.loads(get(port, "/stats.json")[2])
        metrics = get(port, "/metrics")
        if json.loads(get(port, "/stats.json")[2]) == before:
            return before, metrics
    raise AssertionError("the samples do not stand still")


def test_it_keeps_the_contract_of_sinks():
    info = StreamInfo("cam", Url("x:"), True, (4, 4), Fraction(1, 25))
    check_sink(web, [make_frame(k) for k in range(4)], [info])
    assert live_threads() == []


def test_the_picture_moves_and_arrives_as_it_was(watch):
    sink = web(quality=95)
    with running(scene(), sink=sink) as (port, _):
        viewer = watch(port)
        first = viewer.picture()
        wait_until(lambda: get(port, "/picture/shapes.jpg")[0] == 200)
        later = [viewer.picture() for _ in range(5)][-1]
        status, headers, body = get(port, "/picture/shapes.jpg")
        still = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert first.shape == later.shape == still.shape == (120, 160, 3)
    assert (np.abs(first.astype(int) - later) > 40).any()


def test_pictures_are_encoded_once_for_all_and_only_for_someone(watch):
    sink = web(max_width=80)
    sink.open(RunContext())
    try:
        port = port_of(sink)
        for number in range(50):
            sink.process([make_frame(number, size=(160, 120))])
        assert sink.counters["encoded"] == 0
        for _ in range(3):
            body = get(port, "/picture/cam.jpg")[2]
        picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (60, 80, 3)
        assert np.abs(picture.astype(int) - 49).max() <= 2, "not the newest frame"
        assert sink.counters["encoded"] == 1
        viewers = [watch(port, "cam") for _ in range(3)]
        for number in (100, 150):
            for viewer in viewers:
                viewer.picture()
            sink.process([make_frame(number, size=(160, 120))])
        assert {int(viewer.picture().mean().round()) for viewer in viewers} == {150}
        assert sink.counters["encoded"] == 3
    finally:
        sink.close()


def test_the_page_s_figures_are_those_of_the_metrics():
    sink = web()
    sources = scene("front"), scene('odd "na\\me', seed=2)
    with running(*sources, sink=sink) as (port, found):
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        time.sleep(0.5)
        stats, (status, headers, text) = same_moment(port)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    got = samples_of(text.decode())
    assert stats["mode"] == "live"
    assert set(stats["streams"]) == {source.name for source in sources}
    for name, stream in stats["streams"].items():
        label = ("stream", name)
        assert stream["frames_in"] > 5
        assert stream["state"] == "running"
        assert got["frames_in_total", (label,)] == stream["frames_in"]
        assert got["frames_out_total", (label,)] == stream["frames_out"]
        assert got["connections_total", (label,)] == stream["epochs"] == 1
        assert got["stream_state", (("state", "running"), label)] == 1
        assert got["stream_state", (("state", "stalled"), label)] == 0
        for reason, lost in stream["dropped"].items():
            assert got["frames_dropped_total", (("reason", reason), label)] == lost
        for quantile, shown in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")):
            seconds = got["age_seconds", (("quantile", quantile), label)]
            assert seconds * 1e3 == pytest.approx(stream["age_ms"][shown], abs=1e-3)
        assert got["age_seconds_count", (label,)] > 0
    for name, stage in stats["stages"].items():
        labels = (("role", stage["role"]), ("stage", name))
        assert got["stage_items_total", labels] == stage["items"]
        for counter, value in stage["counters"].items():
            labels = (("counter", counter), ("stage", name))
            assert got["stage_counter_total", labels] == value
    assert list(stats["queues"]) == ["source->web"]
    for key in ("depth", "capacity", "peak_depth"):
        assert (
            got[f"queue_{key}", (("queue", "source->web"),)] == stats["queues"]["source->web"][key]
        )
    delivered = got["queue_delivered_total", (("queue", "source->web"),)]
    assert delivered == stats["queues"]["source->web"]["delivered"]
    # What was shown while it ran is on the way to what the report says.
    for name, stream in found["result"].streams.items():
        assert stats["streams"][name]["frames_in"] <= stream.frames_in


def test_rates_and_shares_are_those_of_the_last_seconds():
    from stages.sinks.webfigures import Sampler

    sink, clock = web(), [0.0]
    context = RunContext()
    with running(scene(), sink=sink, context=context) as (port, _):
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        sampler = Sampler(context, lambda: 0, lambda: clock[0])
        first = sampler.sample()
        assert sampler.sample() is first, "figures are gathered for everyone who asks"
        time.sleep(1.0)
        clock[0] += 1.0
        second = sampler.sample()
    frames = (
        second.figures.streams["shapes"].frames_out - first.figures.streams["shapes"].frames_out
    )
    seconds = second.figures.wall_s - first.figures.wall_s
    assert second.fps["shapes"] == pytest.approx(frames / seconds)
    assert 5 < second.rates_hz["web"] <= 35
    assert 0 <= second.busy["web"] < 0.5


def test_ten_viewers_of_whom_one_never_reads_hold_nothing_up(watch):
    # Frames that a paced source cannot deliver in time would be counted as skipped.
    sink = web(viewer_timeout_s=1.0, max_width=None, quality=100)
    source = scene(size_wh="640x480", fps="20")
    with running(source, sink=sink) as (port, found):
        deaf = watch(port, buffer_bytes=4096)
        viewers = [watch(port) for _ in range(9)]
        seen, done = [0] * 9, threading.Event()

        def read(k):
            while not done.is_set():
                viewers[k].picture()
                seen[k] += 1

        threads = [threading.Thread(target=read, args=(k,)) for k in range(9)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: sink.counters["dropped_viewers"] == 1)
            wait_until(lambda: json.loads(get(port, "/stats.json")[2])["viewers"] == 9)
            wait_until(lambda: min(seen) > 40)
        finally:
            done.set()
            for thread in threads:
                thread.join(15)
        deaf.socket.settimeout(5)
        with pytest.raises((ConnectionError, EOFError)):  # noqa: PT012 - it takes reads to notice
            while deaf.socket.recv(65536):
                pass
            raise EOFError
        for viewer in viewers:
            viewer.close()
        wait_until(lambda: json.loads(get(port, "/stats.json")[2])["viewers"] == 0)
    result = found["result"]
    assert result.exit_code == 130
    stream = result.streams["shapes"]
    seconds = result.wall_s
    assert 0.7 * 20 * seconds < stream.frames_out <= 20 * seconds + 2
    assert stream.frames_out == stream.frames_in - stream.dropped_full - stream.dropped_stale
    assert sink.outputs()[0].frames == stream.frames_out
    assert sink.counters["encoded"] <= stream.frames_out


def test_a_viewer_who_comes_late_or_slowly_gets_the_newest_picture(watch):
    sink = web(viewer_timeout_s=5)
    sink.open(RunContext())
    noise = np.random.default_rng(1)

    def big(number):
        image = noise.integers(0, 30, (700, 700, 3), np.uint8)
        image[:350] = number
        frame = make_frame(number)
        return Frame(frame.id, frame.time, image)

    try:
        for number in range(100):
            sink.process([big(number)])
            if number == 0:
                viewer = watch(port_of(sink), "cam", buffer_bytes=4096)
                viewer.picture()
            time.sleep(0.005)
        read = []
        while not read or read[-1] < 98:
            read.append(int(viewer.picture()[:300].mean().round()))
        assert read == sorted(read)
        # What was under way when it fell behind, and what was newest then: not all the pictures.
        assert len(read) < 20
    finally:
        sink.close()


def test_a_viewer_who_leaves_while_nothing_comes_gives_the_place_back(watch):
    sink = web(max_viewers=1)
    sink.open(RunContext())
    try:
        sink.process([make_frame(0, size=(64, 48))])
        first = watch(port_of(sink), "cam")
        first.picture()
        first.close()

        def served():
            viewer = watch(port_of(sink), "cam")
            viewer.head()
            return viewer.status == 200

        wait_until(served, 5)
    finally:
        sink.close()


def test_places_are_limited_and_given_back(watch):
    sink = web(max_viewers=2)
    with running(scene(), sink=sink) as (port, _):
        first, second = watch(port), watch(port)
        first.picture()
        second.picture()
        third = watch(port)
        third.head()
        assert third.status == 503
        assert b"max_viewers" in third.file.read()
        assert get(port, "/healthz")[0] == 200
        first.close()
        wait_until(lambda: json.loads(get(port, "/stats.json")[2])["viewers"] == 1)
        fourth = watch(port)
        fourth.picture()
    assert sink.counters["refused"] == 1


def test_the_token_is_asked_for_everywhere():
    sink = web(token=TOKEN)
    right = {"Authorization": f"Bearer {TOKEN}"}
    paths = ("/", "/stats.json", "/metrics", "/healthz", "/readyz", "/picture/shapes.jpg", "/no")
    with running(scene(), sink=sink) as (port, _):
        wait_until(lambda: get(port, "/readyz", **right)[0] == 200)
        for path in (*paths, "/stream/shapes.mjpg"):
            for wrong in (
                get(port, path),
                get(port, f"{path}?token=wrong"),
                get(port, f"{path}?token="),
                get(port, path, Authorization="Bearer wrong"),
                get(port, path, Authorization=f"Basic {TOKEN}"),
            ):
                assert wrong[0] == 401, path
                assert wrong[1]["WWW-Authenticate"] == "Bearer"
                assert TOKEN.encode() not in wrong[2]
        for path in paths:
            by_query = get(port, f"{path}?token={TOKEN.replace(' ', '%20')}")
            by_header = get(port, path, **right)
            assert by_query[0] == by_header[0] == (404 if path == "/no" else 200), path
            assert TOKEN.encode() not in by_query[2] + by_header[2]
    assert sink.counters["refused"] == 5 * 8


def test_the_token_stands_in_no_output(tmp_path, capsys):
    report = tmp_path / "report.json"
    config = tmp_path / "web.yaml"
    config.write_text(
        "source: synthetic:shapes?frames=3&size=160x120\nstages: []\n"
        f"sinks: [{{kind: web, port: 0, token: {TOKEN}}}]\n"
    )
    assert run.main(["run", "-c", str(config), "--report", str(report), "--verbose"]) == 0
    said = capsys.readouterr()
    assert "asks for the token" in said.err
    assert TOKEN not in said.out + said.err + report.read_text()
    (output,) = json.loads(report.read_text())["outputs"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", output["uri"])
    assert output["frames"] == 3
    assert output["uri"] in said.err


def test_a_token_that_cannot_be_one_is_refused_unseen(capsys):
    arguments = ["run", "synthetic:shapes", "-o", "web:0", "--set", "web.token=8675309"]
    assert run.main(arguments) == 2
    said = capsys.readouterr().err
    assert "8 characters" in said
    assert "8675309" not in said


def test_a_foreign_name_for_this_machine_is_refused_without_a_token():
    sink = web()
    with running(scene(), sink=sink) as (port, _):
        assert get(port, "/stats.json", Host="evil.example:80")[0] == 421
        for name in ("localhost", f"127.0.0.1:{port}", "LOCALHOST:1", f"[::1]:{port}"):
            assert get(port, "/stats.json", Host=name)[0] == 200
    with running(scene(), sink=web(token=TOKEN)) as (port, _):
        path = f"/healthz?token={TOKEN.replace(' ', '+')}"
        assert get(port, path, Host="cam.example")[0] == 200


def test_it_is_ready_when_every_source_has_given_a_frame():
    class Late(ScriptedSource):
        def read(self, timeout_s):
            if not gate.wait(timeout_s):
                from pipeline.stage import Timeout

                return Timeout()
            return super().read(timeout_s)

    gate, end = threading.Event(), threading.Event()
    late = Late(3, name="yard", live=True, hold=end)
    sink = web()
    with running(scene("front"), late, sink=sink) as (port, _):
        wait_until(lambda: get(port, "/picture/front.jpg")[0] == 200)
        waiting = b"waiting for the first frame of yard\n"
        wait_until(lambda: get(port, "/readyz")[::2] == (503, waiting))
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/picture/yard.jpg")[0] == 503
        assert samples_of(get(port, "/metrics")[2].decode())["ready", ()] == 0
        gate.set()
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        assert json.loads(get(port, "/stats.json")[2])["ready"] is True
        end.set()
        wait_until(
            lambda: json.loads(get(port, "/stats.json")[2])["streams"]["yard"]["state"] == "stopped"
        )


def test_credentials_are_in_no_answer():
    class Camera(ScriptedSource):
        def open(self, context):
            info = super().open(context)
            url = "rtsp://admin:hunter2@camera/1?token=abc123"
            context.event(StreamEvent(0, self.name, "backing off", f"{url} said no"))
            return StreamInfo(self.name, Url(url), True, info.size_wh, info.time_base)

    end = threading.Event()
    sink = web()
    with running(Camera(3, live=True, hold=end), sink=sink) as (port, _):
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        stats = json.loads(get(port, "/stats.json")[2])
        assert stats["streams"]["cam"]["state"] == "backing off"
        assert stats["events"][0]["reason"].endswith("said no")
        paths = ("/", "/stats.json", "/metrics", "/readyz", "/picture/no.jpg", "/stream/no.mjpg")
        said = b"".join(get(port, path)[2] for path in paths)
    assert b"hunter2" not in said
    assert b"abc123" not in said
    assert b"cam" in said


def test_the_page_needs_nothing_from_elsewhere():
    sink = web()
    with running(scene(), sink=sink) as (port, _):
        status, headers, body = get(port, "/")
        again = get(port, "/")[1]["Content-Security-Policy"]
        head = get(port, "/", method="HEAD")
    assert status == head[0] == 200
    assert head[2] == b""
    assert head[1]["Content-Length"] == str(len(body))
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert policy != again, "a nonce is used once"
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    page = body.decode()
    assert page.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"(https?:)?//[\w.]+\.\w", page)
    for name in ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Cache-Control"):
        assert headers[name]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /stream/nobody.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /stream/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /web.html HTTP/1.0\r\n\r\n", 404),
        (b"GET http://[bad HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / SMTP\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + 20_000 * b"x" + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", 200),
    ],
)
def test_what_is_no_proper_request_gets_a_proper_answer(request_, status, open_sink):
    with socket.create_connection(("127.0.0.1", port_of(open_sink)), timeout=10) as connection:
        connection.sendall(request_)
        assert int(connection.makefile("rb").readline().split()[1]) == status
    assert get(port_of(open_sink), "/healthz")[0] == 200
    assert open_sink.notes == []


@pytest.fixture
def open_sink():
    sink, context = web(), RunContext()
    sink.open(context)
    sink.notes = [note for note in context.notes if "failed" in note]
    yield sink
    sink.close()


def test_without_a_run_there_are_pictures_but_no_figures(open_sink):
    for path in ("/stats.json", "/metrics", "/readyz"):
        assert get(port_of(open_sink), path)[0] == 503


def test_it_closes_within_a_second_with_viewers_connected(watch):
    sink = web()
    sink.open(RunContext())
    sink.process([make_frame(0, size=(640, 480))])
    viewers = [watch(port_of(sink), "cam", buffer_bytes=4096) for _ in range(4)]
    viewers[0].picture()
    idle = socket.create_connection(("127.0.0.1", port_of(sink)))  # says nothing
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 1.0
    assert live_threads() == []
    assert sink.outputs()[0].frames == 1
    with pytest.raises(OSError):  # noqa: PT011 - refused
        socket.create_connection(("127.0.0.1", port_of(sink)), timeout=2).close()
    idle.close()


def test_connections_that_come_while_it_closes_are_closed_too():
    for _ in range(20):
        sink = web()
        sink.open(RunContext())
        callers = [socket.create_connection(("127.0.0.1", port_of(sink))) for _ in range(3)]
        sink.close()
        for caller in callers:
            caller.close()
    del sink
    gc.collect()  # an open socket would warn, and warnings are errors


def test_a_port_in_use_is_said_at_the_start(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = ["run", "synthetic:shapes?size=160x120", "-o", f"web:{port}"]
        assert run.main(arguments) == 2
    said = capsys.readouterr().err
    assert f"port {port}" in said
    assert "-o web:0" in said


def test_a_host_that_is_not_here_is_said_at_the_start():
    for host, text in (("203.0.113.7", "no such address"), ("no.such.host.invalid", "not known")):
        with pytest.raises(UsageError, match=text):
            web(host=host).open(RunContext())


def test_others_are_let_in_on_demand_and_that_is_said():
    context = RunContext()
    sink = web(host="0.0.0.0")
    sink.open(context)
    assert get(port_of(sink), "/healthz", Host="any.example")[0] == 200
    sink.close()
    assert any("token" in note for note in context.notes)
    assert WebSinkConfig().host == "127.0.0.1"


def test_beside_other_sinks_offline_every_frame_goes_through():
    sink = web()
    null = NullSink(NullSinkConfig(), "null")
    source = scene(paced=False, frames=40)
    result = Pipeline([source], [], [sink, null], live=False).run()
    assert result.exit_code == 0
    assert [output.frames for output in result.outputs] == [40, 40]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_moving_picture_and_the_figures(tmp_path):
    sink = web(port=free_port())
    with running(scene("front", size_wh="640x360"), sink=sink) as (port, _):
        wait_until(lambda: get(port, "/readyz")[0] == 200)

        def frames_in():
            samples = samples_of(get(port, "/metrics")[2].decode())
            return samples["frames_in_total", (("stream", "front"),)]

        before = frames_in()
        page = subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000"),
                f"http://127.0.0.1:{port}/",
            ],
            capture_output=True,
            text=True,
            timeout=50,
        ).stdout
        time.sleep(0.3)  # a sample may be a quarter of a second old
        after = frames_in()
        assert sink.counters["encoded"] > 0, "the picture was not asked for"
    assert re.search(r'id="status">running<', page)
    shown = re.search(r"<td>front</td><td>([\d,]+)</td>", page)
    assert before <= int(shown[1].replace(",", "")) <= after
