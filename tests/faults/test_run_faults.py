"""What goes wrong in practice, through the command line: one clear message, the right exit code,
no traceback, no hang, and nothing lost that was written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers.media import make_video
from tests.helpers.onnx_models import channel_means

GPU = Path("/dev/nvidia0").exists()
SCENE = "synthetic:shapes?size=320x240&fps=30"


def run(*arguments, timeout=50, **more):
    command = [sys.executable, str(ROOT / "run.py"), "run", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT, **more
    )


def start(*arguments):
    command = [sys.executable, str(ROOT / "run.py"), "run", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def clear_error(done, *texts, codes=(1, 2)):
    """One message that holds every one of `texts`; no traceback."""
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr


def playable(path):
    """Return the presentation times, in seconds, of the frames that can be decoded."""
    found = []
    with av.open(str(path)) as container:
        try:
            for frame in container.decode(video=0):
                found.append(frame.pts * frame.time_base)
        except av.FFmpegError:
            pass  # the cut packet at the end of a killed file
    return found


@pytest.fixture
def plain(tmp_path):
    """A config without a model: errors of sources and sinks alone."""
    path = tmp_path / "plain.yaml"
    path.write_text("stages: [overlay]\n")
    return path


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4", frames=50, rate=Fraction(25), audio=True)


# --- input ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(plain, tmp_path):
    done = run(tmp_path / "nothing.mp4", "-c", plain, "-o", tmp_path / "out.mp4")
    clear_error(done, "nothing.mp4", "no such file", codes=(2,))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("content", [b"", b"hello, I am no video\n" * 50], ids=["empty", "text"])
def test_what_is_no_video_is_refused_and_leaves_no_output(content, plain, tmp_path):
    (tmp_path / "fake.mp4").write_bytes(content)
    done = run(
        tmp_path / "fake.mp4", "-c", plain, "-o", tmp_path / "o.mp4", "-o", tmp_path / "o.jsonl"
    )
    clear_error(done, "fake.mp4")
    assert not (tmp_path / "o.mp4").exists()
    assert not (tmp_path / "o.jsonl").exists()


def test_a_truncated_file_is_processed_as_far_as_it_goes_and_the_loss_is_reported(plain, tmp_path):
    whole = make_video(tmp_path / "whole.mkv", frames=100, rate=Fraction(25), audio=False)
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    done = run(tmp_path / "cut.mkv", "-c", plain, "-o", out, "--report", report)
    clear_error(done, "cut.mkv", codes=(1,))
    told = json.loads(report.read_text())
    frames = told["streams"]["cut"]["frames_out"]
    assert 20 < frames < 100
    assert len(playable(out)) == frames
    assert told["failures"]


@pytest.mark.assets
def test_the_damaged_clip_gives_all_readable_frames(plain, assets, tmp_path):
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    clip = assets / "video" / "decord_corrupted.mp4"
    done = run(clip, "-c", plain, "-o", out, "--report", report)
    told = json.loads(report.read_text())
    (stream,) = told["streams"].values()
    assert stream["frames_out"] == len(playable(out)) >= 48
    assert stream["dropped"]["corrupt"] or told["failures"] or told["notes"]
    assert "Traceback" not in done.stderr


# --- models ---------------------------------------------------------------------------------------


def test_a_text_file_named_onnx_is_no_model(clip, tmp_path):
    (tmp_path / "model.onnx").write_text("not a model")
    done = run(clip, "--model", tmp_path / "model.onnx", "-o", tmp_path / "o.mp4")
    clear_error(done, "model.onnx", codes=(2,))
    assert not (tmp_path / "o.mp4").exists()


def test_a_graph_that_is_not_recognised_lists_the_choices_and_what_was_seen(clip, tmp_path):
    channel_means(tmp_path / "odd.onnx")
    done = run(clip, "--model", tmp_path / "odd.onnx", "-o", tmp_path / "o.mp4")
    clear_error(done, "odd.onnx", "yolox", "yolov8", "ssd", "outputs:", codes=(2,))


def test_a_wrong_number_of_class_names_says_both_numbers(clip, tmp_path):
    done = run(
        clip, "--model", "shapes", "--set", "infer.class_names=[a, b]", "-o", tmp_path / "o.mp4"
    )
    clear_error(done, "2", "4", "class", codes=(2,))


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_cuda_asked_for_where_there_is_none_is_an_error_with_the_remedy(clip, tmp_path):
    done = run(clip, "--model", "shapes", "--device", "cuda", "-o", tmp_path / "o.mp4")
    clear_error(done, "cuda", "driver", "cpu", codes=(2,))
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_a_fallback_that_was_allowed_stands_in_the_report(clip, tmp_path):
    report = tmp_path / "r.json"
    done = run(
        clip, "--model", "shapes", "--device", "cuda", "--set", "infer.allow_fallback=true",
        "-o", "null", "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    backend = json.loads(report.read_text())["backend"]
    assert (backend["requested"], backend["device"], backend["fallback"]) == ("cuda", "cpu", True)


# --- outputs --------------------------------------------------------------------------------------


def test_a_missing_output_directory_is_found_before_anything_runs(clip, plain, tmp_path):
    done = run(clip, "-c", plain, "-o", tmp_path / "no" / "out.mp4")
    clear_error(done, "no", "out.mp4", codes=(2,))


def test_the_input_is_never_overwritten(clip, plain, tmp_path):
    before = clip.read_bytes()
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    for output in (clip, link, tmp_path / "." / "clip.mp4"):
        done = run(clip, "-c", plain, "-o", output, "--overwrite")
        clear_error(done, "input", codes=(2,))
    assert clip.read_bytes() == before


def test_an_existing_output_is_kept_unless_told_otherwise(clip, plain, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    clear_error(run(clip, "-c", plain, "-o", out), "out.mp4", "--overwrite", codes=(2,))
    assert out.read_bytes() == b"precious"
    assert run(clip, "-c", plain, "-o", out, "--overwrite").returncode == 0
    assert len(playable(out)) == 50


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 1 MB, where the tests may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_a_clear_error_and_the_other_outputs_are_complete(
    plain, small_disk, tmp_path
):
    report = tmp_path / "report.json"
    done = run(
        "synthetic:shapes?size=1280x720&frames=120", "-c", plain, "--report", report,
        "-o", small_disk / "out.mp4", "-o", tmp_path / "out.jsonl",
        "--set", "video.quality=10",
    )  # fmt: skip
    clear_error(done, "disk is full", "out.mp4", codes=(1,))
    kept = playable(small_disk / "out.mp4")
    assert len(kept) > 5
    assert np.all(np.diff([float(t) for t in kept]) > 0)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 120
    failure = json.loads(report.read_text())["failures"][0]
    assert "disk is full" in failure["message"]


# --- stopping -------------------------------------------------------------------------------------


def wait_for_frames(process, jsonl, count):
    """Wait until the run has written `count` lines."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.communicate()}")
        if jsonl.exists() and jsonl.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail("no frames within 30 s")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "term", "hangup"]
)
def test_a_stop_completes_every_output_and_exits_130(number, plain, tmp_path):
    out, lines, report = tmp_path / "out.mp4", tmp_path / "out.jsonl", tmp_path / "r.json"
    process = start(SCENE, "-c", plain, "-o", out, "-o", lines, "--report", report)
    wait_for_frames(process, lines, 30)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    told = json.loads(report.read_text())
    frames = told["streams"]["shapes"]["frames_in"]
    assert told["exit"] == {"code": 130, "reason": "stopped by the user"}
    assert len(playable(out)) == frames == len(lines.read_text().splitlines())
    assert out.read_bytes()[4:8] == b"ftyp"
    assert out.read_bytes().index(b"moov") < out.read_bytes().index(b"mdat")


def test_a_second_ctrl_c_aborts_and_leaves_what_was_written(plain, tmp_path):
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    process = start(SCENE, "-c", plain, "-o", out, "-o", lines)
    wait_for_frames(process, lines, 60)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 130, errors
    assert len(playable(out)) > 20


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_after_kill_9_the_output_plays_up_to_two_seconds_before(extension, plain, tmp_path):
    out, lines = tmp_path / f"out.{extension}", tmp_path / "out.jsonl"
    # Paced: what is two seconds of media is then two seconds of a camera's time too.
    process = start(f"{SCENE}&paced=true", "--offline", "-c", plain, "-o", out, "-o", lines)
    wait_for_frames(process, lines, 60 + random.randrange(90))
    process.kill()
    process.communicate()
    last = json.loads(lines.read_text().splitlines()[-2])["time_s"]
    kept = playable(out)
    assert float(kept[-1]) >= last - 2
    assert len(kept) == round(float(kept[-1]) * 30) + 1


def test_a_sink_that_fails_mid_run_lets_the_others_complete(plain, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "000020.png").mkdir()  # where the 21st picture should go
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    done = run(
        f"{SCENE}&frames=60", "-c", plain, "-o", pictures / "%06d.png", "-o", out,
        "--report", report,
    )  # fmt: skip
    clear_error(done, "000020.png", codes=(1,))
    assert len(playable(out)) == 60
    told = json.loads(report.read_text())
    assert told["failures"][0]["stage"] == "images"
    assert len([p for p in pictures.iterdir() if p.is_file()]) == 20
    shutil.rmtree(pictures)
