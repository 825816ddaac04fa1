"""`doctor` on real files, real servers and dead ones, judged by what a user reads."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler

import cv2
import pytest

from pipeline.runner import Deadlines
from tests.helpers.media import make_video, numbered
from tests.helpers.servers import (
    RtspServer,
    free_port,
    has_rtsp_server,
    http_server,
    mjpeg_handler,
)


@pytest.fixture(autouse=True)
def _short_work(monkeypatch):
    """Half a second of work tells as much here as three."""
    monkeypatch.setattr("stages.diagnosis._WORK_S", 0.5)


@pytest.fixture
def doctor(capsys, monkeypatch, tmp_path):
    """Run `doctor` in this process; return (exit code, its lines by their first words, stderr)."""
    import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])

    def call(*arguments):
        code = run.main(["doctor", *map(str, arguments)])
        told = capsys.readouterr()
        lines = {}
        for line in told.out.splitlines():
            name, _, finding = line.partition("  ")
            lines.setdefault(name, finding.strip())
        lines["all"] = told.out
        return code, lines, told.err

    return call


def test_the_machine(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path))
    code, said, _ = doctor("--device", "cpu")
    assert code == 0
    assert said["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert re.match(r"\d+", said["cores"])
    assert "GB" in said["memory"]
    assert said["av"].startswith("av ")
    assert "h264 (libx264)" in said["encodes"]
    assert "h264" in said["decodes"]
    assert "no program is needed" in said["FFmpeg"]
    assert said["runs on"].startswith("onnx on cpu (CPUExecutionProvider)")
    assert "asked for cpu" in said["because"]
    assert said["home"].startswith(f"{tmp_path}, writable")
    assert said["cameras"]


def test_a_device_that_is_not_there_is_said_after_the_rest(doctor):
    code, said, err = doctor("--device", "cuda:63")
    assert code == 2
    assert "cores" in said
    assert "cuda" in err


def test_a_file(doctor, tmp_path):
    clip = make_video(tmp_path / "a.mp4", frames=50, rate=Fraction(30000, 1001), rotation=90,
                      size=(240, 320), color={"colorspace": 1, "color_range": 1})  # fmt: skip
    code, said, _ = doctor(clip, "--device", "cpu")
    assert code == 0
    assert said["mode"].startswith("offline: every frame is processed, 50 frames announced")
    assert said["codec"] == "h264 (yuv420p) in mov,mp4,m4a,3gp,3g2,mj2"
    assert said["size"].startswith("240x320, turned by 90 degrees counter-clockwise")
    assert said["rate"] == "29.97 fps measured over 50 frames, 29.97 announced"
    assert said["times"] == "constant"
    assert said["colour"].startswith("BT.709, limited range")
    assert said["sound"] == "aac"
    assert "stand-in" in said["model"]
    for stage in ("a (decoding)", "preprocess", "infer", "nms", "overlay"):
        assert re.match(r"\d+\.\d\d ms a frame", said[stage]), stage
    assert re.match(r"about \d+ frames a second without outputs; the slowest", said["expect"])
    assert "nothing needs to be changed" in said["all"]


def test_a_variable_rate(doctor, tmp_path):
    steps = [round(k * 40 + 18 * (k % 3)) for k in range(40)]
    clip = make_video(tmp_path / "v.mkv", pts=steps, time_base=Fraction(1, 1000), frames=40)
    _, said, _ = doctor(clip, "--device", "cpu")
    assert said["times"].startswith("variable: steps of 4.0 to 58.0 ms")


def test_a_header_that_announces_a_wrong_rate(doctor, tmp_path):
    clip = make_video(tmp_path / "w.mkv", frames=40, audio=False)
    slow = make_video(
        tmp_path / "s.mkv", frames=40, audio=False, time_base=Fraction(1, 1000),
        pts=[100 * k for k in range(40)], b_frames=0,
    )  # fmt: skip
    _, said, _ = doctor(clip, "--device", "cpu")
    assert said["rate"].endswith("25.00 announced")
    _, said, _ = doctor(slow, "--device", "cpu")
    assert said["rate"].startswith("10.00 fps measured over 40 frames, but 25.00 announced")


def test_a_file_that_is_broken_on_purpose(doctor, tmp_path):
    clip = make_video(tmp_path / "a.mp4", frames=60, audio=False)
    code, said, _ = doctor(f"chaos:{clip}?drop=0.2&resize=160x120@20&lose=@40", "--device", "cpu")
    assert code == 1
    assert "cut at frame 40 on purpose" in said["problem"]
    assert "then 160x120: it changes on the way" in said["size"]
    assert re.search(r"\d+ more were not delivered", said["rate"])
    assert "see to this first" in said["all"]


@pytest.mark.skipif(not has_rtsp_server(), reason="needs GStreamer's RTSP server")
def test_a_live_stream_whose_delay_is_constant(doctor, tmp_path):
    clip = make_video(tmp_path / "live.mp4", frames=50, gop=5, b_frames=0, audio=False)
    server = RtspServer(clip)
    try:
        code, said, _ = doctor(server.url, "--device", "cpu", "--duration", 2.8)
    finally:
        server.kill()
    assert code == 0
    assert said["mode"].startswith("live")
    assert said["codec"] == "h264 (yuv420p) in rtsp"
    assert said["rate"].startswith(("25.0", "24.9"))
    assert said["delay"].startswith("constant")
    assert "of processor time a frame" in said["decoding"]
    assert "frames a second" in said["so"]


def paced_handler(data, *, seconds):
    """Return a handler that sends bytes without saying how many, over so many seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for at in range(0, len(data), 188 * 4):
                    self.wfile.write(data[at : at + 188 * 4])
                    early = seconds * at / len(data) - (time.monotonic() - began)
                    if early > 0:
                        time.sleep(early)

        def log_message(self, *_):
            pass

    return Handler


@pytest.mark.parametrize(("speed", "word"), [(0.6, "grows"), (2.0, "shrinks")])
def test_a_sender_with_another_speed(doctor, tmp_path, speed, word):
    clip = make_video(
        tmp_path / "a.ts", frames=200, gop=5, b_frames=0, audio=False, size=(160, 120),
        codec_options={"crf": "30"},
    )  # fmt: skip
    with http_server(paced_handler(clip.read_bytes(), seconds=8 / speed)) as base:
        code, said, _ = doctor(
            f"{base}/live", "--device", "cpu", "--duration", 2.6, "--set", "network.live=true"
        )
    assert code == 0, said["all"]
    assert said["rate"].startswith("25.0")
    assert "arrive at" in said["rate"]
    assert said["delay"].startswith(f"{word} by ")
    assert ("before the frames get here" in said["all"]) == (word == "grows")


def test_a_stream_without_times_of_its_own(doctor):
    pictures = [cv2.imencode(".jpg", numbered(k, (160, 120)))[1].tobytes() for k in range(200)]
    with http_server(mjpeg_handler(pictures, pause_s=0.05)) as base:
        code, said, _ = doctor(f"{base}/video", "--device", "cpu", "--duration", 2)
    assert code == 0
    assert said["delay"].startswith("cannot be seen from here")
    assert "mjpeg" in said["codec"]
    measured = float(said["rate"].partition(" ")[0])
    assert 10 < measured < 22, "the rate is that of arrival, not the 25 that FFmpeg counts with"


def test_nobody_there_is_one_clear_message(doctor):
    began = time.monotonic()
    code, said, err = doctor(f"rtsp://u:sesame@127.0.0.1:{free_port()}/x")
    assert code == 1
    assert time.monotonic() - began < 5
    assert said["all"] == ""
    assert len(err.splitlines()) == 1
    assert "is the server running" in err
    assert "sesame" not in err


def test_a_server_that_never_answers_ends_in_time(doctor):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        began = time.monotonic()
        code, _, err = doctor(url, "--set", "network.open_timeout_s=0.7")
    assert code == 1
    assert time.monotonic() - began < 6
    assert "nothing came within the deadline" in err or "no picture within" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["no-such.mp4"], ["synthetic:shapes", "--duration", "0"], ["a", "b"], ["--devise", "cpu"],
     ["synthetic:shapes", "--model", "no-such.onnx"]],
)  # fmt: skip
def test_bad_usage(doctor, arguments):
    code, said, err = doctor(*arguments)
    assert code == 2
    assert said["all"] == ""
    assert err.startswith("error: ")


def test_it_is_stopped_by_ctrl_c(doctor):
    def press():
        patience = time.monotonic() + 20
        while time.monotonic() < patience:
            if any(thread.name == "rackfocus source shapes" for thread in threading.enumerate()):
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    presser = threading.Thread(target=press)
    presser.start()
    began = time.monotonic()
    code, said, _ = doctor("synthetic:shapes?paced=true", "--duration", "60", "--device", "cpu")
    presser.join()
    assert code == 130
    assert time.monotonic() - began < 20
    assert said["mode"].startswith("live"), "what was seen until then is said"
    assert "infer" not in said, "it went on measuring"


def test_a_file_that_blocks_for_ever_is_given_up(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr("stages.diagnosis._PATIENCE_S", 0.2)
    monkeypatch.setattr("stages.diagnosis._DEADLINES", Deadlines(0.3, 0.3, 0.3))
    os.mkfifo(tmp_path / "pipe.mp4")
    try:
        code, said, err = doctor(tmp_path / "pipe.mp4", "--duration", 0.2)
    finally:
        # Whoever waits to read it is let go, as often as it tries.
        while any(thread.name == "rackfocus source pipe" for thread in threading.enumerate()):
            with contextlib.suppress(OSError):
                os.close(os.open(tmp_path / "pipe.mp4", os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.02)
    assert code == 1
    assert "no picture within" in err
    assert said["all"] == ""
