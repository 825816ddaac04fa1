"""The network source on real servers: RTSP that dies, freezes, changes; HTTP, HLS, MJPEG, RTMP."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import subprocess
import threading
import time

import av
import cv2
import pytest

from pipeline.errors import RefusedError, SourceError
from pipeline.frame import Frame
from pipeline.stage import End, Lost, RunContext, Timeout
from pipeline.url import Url
from stages.endpoints import connectable
from stages.sources.connection import ffmpeg_options
from stages.sources.network import NetworkConfig, NetworkSource
from stages.sources.reconnecting import ReconnectConfig, Reconnecting
from tests.contracts.check_source import check_source, read_all
from tests.helpers.media import make_video, numbered, read_number
from tests.helpers.servers import (
    RtspServer,
    folder_handler,
    free_port,
    has_rtsp_server,
    http_server,
    mjpeg_handler,
)

needs_rtsp = pytest.mark.skipif(
    not has_rtsp_server(), reason="needs GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0)"
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    first = make_video(folder / "a.mp4", frames=50, size=(320, 240), audio=False, gop=10)
    other = make_video(folder / "b.mp4", frames=50, size=(192, 128), audio=False, gop=10)
    return first, other


@pytest.fixture
def rtsp(clips):
    servers = []

    def start(*login, clip=clips[0]):
        servers.append(RtspServer(clip, *login))
        return servers[-1]

    yield start
    for server in servers:
        if server.process is not None:
            server.thaw()
        server.kill()


def network(url, **options):
    return NetworkSource(NetworkConfig(url=url, **options), "cam")


def healing(url, *, read_timeout_s=1.0, **reconnect):
    options = {"initial_s": 0.1, "max_s": 0.5, "stall_s": 1.0} | reconnect
    return Reconnecting(
        network(url, read_timeout_s=read_timeout_s, open_timeout_s=5), ReconnectConfig(**options)
    )


def frames_until(source, done, *, patience_s=15):
    """Read until `done(frames)`; return the frames."""
    frames, began = [], time.monotonic()
    while not done(frames):
        assert time.monotonic() - began < patience_s, f"waited in vain after {len(frames)} frames"
        result = source.read(0.2)
        if isinstance(result, Frame):
            frames.append(result)
        else:
            assert isinstance(result, Timeout), result
    return frames


def epoch(number):
    return lambda frames: len([f for f in frames if f.id.epoch == number]) >= 5


@needs_rtsp
def test_rtsp_keeps_the_contract_of_a_source(rtsp):
    server = rtsp()
    check_source(lambda: network(server.url), limit=8)


@needs_rtsp
def test_rtsp_pictures_come_at_their_pace_and_carry_their_numbers(rtsp):
    source = network(rtsp().url)
    info = source.open(RunContext())
    assert (info.live, info.size_wh) == (True, (320, 240))
    began = time.monotonic()
    frames, _ = read_all(source, limit=40)
    took_s = time.monotonic() - began
    source.close()
    assert 1.2 < took_s < 5, "40 frames at 25 fps"
    numbers = [read_number(f.image) for f in frames]
    steps = [(b - a) % 50 for a, b in itertools.pairwise(numbers)]
    assert min(steps) > 0
    assert sum(steps) <= 45, "a busy machine may miss a picture, not many"
    stamps = [f.time.pts * f.time.time_base for f in frames]
    assert all(b > a for a, b in itertools.pairwise(stamps))
    assert float(stamps[-1] - stamps[0]) == pytest.approx(39 / 25, abs=0.3)


@needs_rtsp
def test_a_reader_that_does_not_come_gets_the_newest_pictures_and_the_gap_is_counted(rtsp):
    source = network(rtsp().url)
    source.open(RunContext())
    frames, _ = read_all(source, limit=2)
    time.sleep(1.0)
    later, _ = read_all(source, limit=2)
    source.close()
    missing = later[0].id.seq - frames[-1].id.seq - 1
    assert 5 < missing < 60
    assert source.counters["skipped"] == missing
    age_ms = (time.monotonic_ns() - later[-1].time.captured_ns) / 1e6
    assert age_ms < 500


@needs_rtsp
def test_killed_and_started_again_with_another_size_the_stream_goes_on(rtsp, clips):
    server = rtsp()
    source, context = healing(server.url), RunContext()
    source.open(context)
    first = frames_until(source, epoch(0))
    server.kill()
    waiting = threading.Timer(0.7, server.start, kwargs={"clip": clips[1]})
    waiting.start()
    second = frames_until(source, epoch(1))
    waiting.join()
    source.close()
    assert {f.size_wh for f in first} == {(320, 240)}
    anew = [f for f in second if f.id.epoch == 1]
    assert {f.size_wh for f in anew} == {(192, 128)}
    assert [f.discontinuity for f in anew] == [True] + [False] * (len(anew) - 1)
    told = [event.state for event in context.events]
    assert told[0] == "backing off"
    assert "running" in told


@needs_rtsp
def test_a_frozen_server_is_noticed_and_left_and_found_again(rtsp):
    server = rtsp()
    source, context = healing(server.url), RunContext()
    source.open(context)
    frames_until(source, epoch(0))
    server.freeze()
    began = time.monotonic()
    while not context.events:
        assert not isinstance(source.read(0.2), Lost | End)
        assert time.monotonic() - began < 5
    assert context.events[0].state == "stalled"
    server.thaw()
    frames_until(source, epoch(1))
    source.close()


@needs_rtsp
def test_rtsp_over_udp(rtsp):
    source = network(rtsp().url, transport="udp")
    source.open(RunContext())
    frames, _ = read_all(source, limit=15)
    source.close()
    numbers = [read_number(f.image) for f in frames]
    assert all(0 < (b - a) % 50 < 10 for a, b in itertools.pairwise(numbers))


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "tcp"])
def test_a_server_that_sends_garbage_is_an_error_and_no_crash(scheme):
    def babble():
        with contextlib.suppress(OSError):
            while True:
                caller, _ = server.accept()
                with caller:
                    caller.sendall(random.Random(1).randbytes(200_000))

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        source = network(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x", open_timeout_s=1)
        with pytest.raises(SourceError):
            source.open(RunContext())
        source.close()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(2)


def test_a_clock_that_jumps_back_is_a_discontinuity_and_times_go_on(clips, tmp_path):
    parts = []
    for number in range(2):
        part = tmp_path / f"{number}.ts"
        with av.open(str(clips[0])) as clip, av.open(str(part), "w", format="mpegts") as out:
            stream = out.add_stream_from_template(clip.streams.video[0])
            for packet in clip.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        parts.append(part.read_bytes())
    (tmp_path / "twice.ts").write_bytes(b"".join(parts))
    with http_server(folder_handler(tmp_path)) as base:
        # Read as a recording, so that no picture gives way; the clock is the same.
        source = network(f"{base}/twice.ts", live=False)
        source.open(RunContext())
        frames, _ = read_all(source)
        source.close()
    stamps = [f.time.pts for f in frames]
    assert all(b > a for a, b in itertools.pairwise(stamps))
    numbers = [read_number(f.image) for f in frames]
    assert numbers[:50] == list(range(50))
    assert numbers[-1] == 49
    assert len(numbers) > 90
    jumps = [k for k, f in enumerate(frames) if f.discontinuity]
    assert len(jumps) == 1
    assert numbers[jumps[0]] < numbers[jumps[0] - 1]


@needs_rtsp
def test_stop_ends_every_state_at_once(rtsp):
    server = rtsp()
    source = healing(server.url)
    source.open(RunContext())
    frames_until(source, epoch(0))
    server.freeze()
    assert _interrupted_within(source, source.read) < 1
    source.close()
    server.thaw()
    server.kill()
    # Nobody listens: it backs off again and again.
    source = healing(server.url)
    with pytest.raises(SourceError, match="stopped"):
        _interrupted_within(source, lambda _: source.open(RunContext()))


def test_a_server_that_accepts_and_says_nothing_does_not_hold_up_a_stop():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"rtsp://127.0.0.1:{mute.getsockname()[1]}/x"
        # A short deadline, so that the thread inside FFmpeg ends with the test.
        source = network(url, open_timeout_s=0.5)
        began = time.monotonic()
        with pytest.raises(SourceError, match="stopped"):
            _interrupted_within(source, lambda _: source.open(RunContext()), after_s=0.1)
        assert time.monotonic() - began < 3
        source.close()
        with pytest.raises(SourceError, match="within the deadline"):
            source.open(RunContext())


def _interrupted_within(source, action, after_s=0.3):
    """Interrupt `action` from another thread; return how long it then took to return, seconds."""
    at = []

    def interrupt():
        time.sleep(after_s)
        at.append(time.monotonic())
        source.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        action(30)
        return time.monotonic() - at[0]
    finally:
        thread.join()


@needs_rtsp
@pytest.mark.parametrize("password", ["s3cret!", "p@ss:w/rd?x#y", "ünï cødé '\"", "%41%zz"])
def test_a_wrong_password_is_one_clear_error_that_does_not_show_it(
    rtsp, password, tmp_path, capfd, monkeypatch
):
    import run

    monkeypatch.chdir(tmp_path)
    server = rtsp("viewer", "right")
    url = server.url.replace("//", f"//viewer:{password}@")
    code = run.main(["run", url, "-o", "out.jsonl", "--report", "r.json", "--verbose",
                     "--model", "shapes", "--device", "cpu"])  # fmt: skip
    assert code == 1
    told = "".join(capfd.readouterr()) + (tmp_path / "r.json").read_text()
    assert password not in told
    assert json.dumps(password)[1:-1] not in told
    assert "***@" in told


@needs_rtsp
def test_the_right_password_is_not_shown_either(rtsp, tmp_path, capfd, monkeypatch):
    import run

    monkeypatch.chdir(tmp_path)
    server = rtsp("viewer", "open-sesame")
    url = server.url.replace("//", "//viewer:open-sesame@")
    code = run.main(["run", url, "-o", "out.jsonl", "-o", "out.mp4", "--report", "r.json",
                     "--model", "shapes", "--device", "cpu", "--max-frames", "5"])  # fmt: skip
    assert code == 0
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(written) == 3
    told = "".join(capfd.readouterr()).encode()
    assert not any(b"sesame" in text for text in (told, *written))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["mode"] == "live"
    assert report["streams"]["127.0.0.1"]["frames_in"] == 5


def test_a_recording_over_http_is_offline_and_whole(clips, tmp_path):
    with http_server(folder_handler(clips[0].parent)) as base:
        source = network(f"{base}/a.mp4")
        info = source.open(RunContext())
        assert info.live is source.live is False
        frames, outcome = read_all(source)
        source.close()
    assert isinstance(outcome, End)
    assert [read_number(f.image) for f in frames] == list(range(50))
    assert [float(f.time.media_s) for f in frames] == pytest.approx([k / 25 for k in range(50)])


def test_a_recorded_hls_playlist_is_offline_and_every_segment_comes_in_order(clips, tmp_path):
    with av.open(str(clips[0])) as source, av.open(
        str(tmp_path / "list.m3u8"), "w", format="hls",
        options={"hls_time": "0.5", "hls_playlist_type": "vod", "hls_list_size": "0"},
    ) as out:  # fmt: skip
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert len(list(tmp_path.glob("*.ts"))) > 2
    with http_server(folder_handler(tmp_path)) as base:
        source = network(f"{base}/list.m3u8")
        source.open(RunContext())
        frames, outcome = read_all(source)
        assert source.live is False
        source.close()
    assert isinstance(outcome, End)
    assert [read_number(f.image) for f in frames] == list(range(50))


def test_mjpeg_over_http_is_live_and_ends_as_a_loss():
    pictures = [cv2.imencode(".jpg", numbered(k, (160, 120)))[1].tobytes() for k in range(30)]
    with http_server(mjpeg_handler(pictures)) as base:
        source = network(f"{base}/video", read_timeout_s=1)
        assert source.live is True
        source.open(RunContext())
        frames, outcome = read_all(source)
        source.close()
    assert isinstance(outcome, Lost)
    numbers = [read_number(f.image) for f in frames]
    assert numbers == sorted(numbers)
    assert numbers[-1] >= 28


@pytest.mark.needs_ffmpeg
def test_rtmp_is_read_from_a_server(clips):
    url = f"rtmp://127.0.0.1:{free_port()}/app/stream"

    command = [
        "ffmpeg",
        "-v",
        "quiet",
        "-re",
        "-stream_loop",
        "2",
        "-i",
        str(clips[0]),
        "-c",
        "copy",
        "-f",
        "flv",
    ]
    server = subprocess.Popen([*command, "-listen", "1", url])
    time.sleep(0.5)
    source = network(url, open_timeout_s=5)
    info = source.open(RunContext())
    frames, _ = read_all(source, limit=20)
    source.close()
    server.wait(10)
    assert info.live
    assert info.size_wh == (320, 240)
    numbers = [read_number(f.image) for f in frames]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("status", "refused", "words"),
    [
        (401, True, "user and password"),
        (403, True, "user and password"),
        (404, True, "path"),
        (500, False, "5XX"),
    ],
)
def test_what_a_web_server_answers_is_said(status, refused, words):
    import http.server

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(status)

        def log_message(self, *_):
            pass

    with http_server(Refusing) as base:
        source = network(f"{base.replace('//', '//u:sesame@')}/x", live=True)
        with pytest.raises(SourceError, match=words) as caught:
            source.open(RunContext())
        source.close()
    assert isinstance(caught.value, RefusedError) is refused
    assert "sesame" not in str(caught.value)


def test_what_is_no_video_is_said(tmp_path):
    (tmp_path / "page.txt").write_text("<html>hello</html>" * 100)
    with http_server(folder_handler(tmp_path)) as base:
        source = network(f"{base}/page.txt", live=True)
        with pytest.raises(SourceError, match="video"):
            source.open(RunContext())
        source.close()


def test_nobody_listening_is_said():
    source = network(f"rtsp://127.0.0.1:{free_port()}/x")
    with pytest.raises(SourceError, match=r"refused.*running") as caught:
        source.open(RunContext())
    source.close()
    assert not isinstance(caught.value, RefusedError)


def test_an_address_of_another_kind_is_refused_without_showing_its_password():
    with pytest.raises(ValueError, match="no address of a kind known") as caught:
        NetworkConfig(url="gopher://u:sesame@host/x")
    assert "sesame" not in str(caught.value)
    config = NetworkConfig(url="rtsp://u:sesame@host/x")
    assert "sesame" not in config.model_dump_json() + repr(config)


@pytest.mark.parametrize(
    ("options", "live", "expected"),
    [
        ({}, True, {"rtsp_transport": "tcp", "fflags": "nobuffer", "max_delay": "0"}),
        ({"transport": "udp", "latency": "balanced"}, True, {"max_delay": "200000"}),
        ({"latency": "smooth"}, True, {"max_delay": "1000000"}),
    ],
)
def test_presets_become_options_of_ffmpeg(options, live, expected):
    config = NetworkConfig(url=Url("rtsp://h/x"), **options)
    assert ffmpeg_options(config, live=live).items() >= expected.items()


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("rtsp://cam/live", "rtsp://cam/live"),
        ("rtsp://cam:8554/live@2x", "rtsp://cam:8554/live@2x"),
        ("rtsp://u:plain@cam/live", "rtsp://u:plain@cam/live"),
        ("rtsp://u:done%40it@cam/live", "rtsp://u:done%40it@cam/live"),
        ("rtsp://u:a@b/c?d#e@cam/live", "rtsp://u:a%40b%2Fc%3Fd%23e@cam/live"),
        ("rtsp://u:50%@cam/live", "rtsp://u:50%25@cam/live"),
        ("rtsp://u:two words@[::1]:554/x", "rtsp://u:two%20words@[::1]:554/x"),
        ("http://[fe80::1]:80/a@b", "http://[fe80::1]:80/a@b"),
    ],
)
def test_passwords_may_be_typed_as_they_are(given, passed):
    assert connectable(Url(given)) == passed


@needs_rtsp
def test_a_password_with_every_odd_character_opens_the_stream(rtsp):
    password = "p@s/s?w#o%r d&"
    server = rtsp("viewer", password)
    source = network(server.url.replace("//", f"//viewer:{password}@"))
    assert source.open(RunContext()).size_wh == (320, 240)
    source.close()


def test_a_wrong_address_in_a_file_is_shown_without_its_password(tmp_path, capfd, monkeypatch):
    import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        "source: {kind: network, url: 'gopher://u:sesame@host/x'}\nsinks: ['null']\n"
    )
    assert run.main(["check", "a.yaml"]) == 2
    told = "".join(capfd.readouterr())
    assert "sesame" not in told
    assert "a.yaml:1" in told
