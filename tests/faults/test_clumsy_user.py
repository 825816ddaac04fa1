"""What people type by mistake, or against the grain: nothing of theirs is lost, no secret is shown,
and each mistake ends in one clear message and the right exit code."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.helpers.media import make_video

SCENE = "synthetic:shapes?size=96x96&frames=5&fps=10"
POSIX = pytest.mark.skipif(os.name != "posix", reason="devices, pipes and signals of POSIX")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line in this process, inside an empty folder that has a `plain.yaml`."""
    import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])
    (tmp_path / "plain.yaml").write_text("stages: [overlay]\n")

    def call(*arguments):
        code = run.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert "Traceback" not in told.err or "--verbose" in arguments
        return subprocess.CompletedProcess(arguments, code, told.out, told.err)

    return call


def command(*arguments):
    return [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]


# --- names and places -----------------------------------------------------------------------------


def test_after_two_dashes_everything_is_a_source(cli, tmp_path):
    make_video(tmp_path / "-clip.mp4", frames=2, audio=False)
    done = cli("run", "-c", "plain.yaml", "-o", "null", "--", "-clip.mp4")
    assert done.returncode == 0, done.stderr
    assert "clip: 2 frames in, 2 out" in done.stdout


@pytest.mark.parametrize(
    "name", ["sp ace ü 漢.mp4", "100%d.mp4", "{stream}.mp4", "a[1].mp4", 'it\'s "q".mp4']
)
def test_odd_names_of_files_are_names(cli, tmp_path, name):
    make_video(tmp_path / name, frames=2, audio=False)
    done = cli("run", name, "-c", "plain.yaml", "-o", f"out {name}", "--report", f"{name}.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert report["outputs"][0]["frames"] == 2


@POSIX
def test_a_name_that_is_no_text_is_refused_in_words(tmp_path):
    name = os.fsdecode(b"\xff.mp4")
    make_video(tmp_path / "clip.mp4", frames=2, audio=False).rename(tmp_path / name)
    (tmp_path / "plain.yaml").write_text("stages: [overlay]\n")
    done = subprocess.run(
        command("run", name, "-c", "plain.yaml", "-o", "null", "--report", "r.json"),
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"error: 'path' of source 'file' is '\\udcff.mp4'" in done.stderr


def test_two_outputs_that_meet_in_one_file_are_refused(cli, tmp_path):
    done = cli("run", SCENE, "-c", "plain.yaml", "-o", "a-{stream}.mp4", "-o", "a-shapes.mp4")
    assert done.returncode == 2
    assert "both write a-shapes.mp4" in done.stderr
    assert not (tmp_path / "a-shapes.mp4").exists()


@POSIX
def test_a_report_into_a_pipe_or_through_a_link_leaves_both_what_they_are(cli, tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.json", tmp_path / "target.json"
    os.mkfifo(pipe)
    link.symlink_to(target)
    target.write_text("old")
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    try:
        done = cli("run", SCENE, "-c", "plain.yaml", "-o", "null", "--report", pipe)
        told, _ = reader.communicate(timeout=20)
    finally:
        reader.kill()
    assert done.returncode == 0, done.stderr
    assert json.loads(told)["exit"]["code"] == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode), "a device may not be replaced by a file"
    assert cli("run", SCENE, "-c", "plain.yaml", "-o", "null", "--report", link).returncode == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["exit"]["code"] == 0
    assert not list(tmp_path.glob("*.part"))


def test_a_report_does_not_replace_what_is_no_report(cli, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"precious")
    done = cli("run", SCENE, "-c", "plain.yaml", "-o", "null", "--report", "film.mp4")
    assert done.returncode == 2
    assert "film.mp4 exists already" in done.stderr
    assert (tmp_path / "film.mp4").read_bytes() == b"precious"


def test_pictures_of_several_sizes_in_one_video_are_mentioned(cli, tmp_path):
    import cv2
    import numpy as np

    (tmp_path / "mix").mkdir()
    for name, size in (("a", (64, 48)), ("b", (640, 480)), ("c", (32, 32))):
        cv2.imwrite(str(tmp_path / "mix" / f"{name}.png"), np.zeros((*size[::-1], 3), np.uint8))
    done = cli("run", "mix", "-c", "plain.yaml", "-o", "out.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("640x480") == 1
    assert "scaled to the first one's, 64x48" in done.stderr


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("infer.threads=100000", "'threads' of stage 'infer' is 100000: it should be less than"),
        ("infer.kind=nms", "a kind is given in the file"),
        ("queues.capacity=0", "'queues.capacity' of the configuration is 0"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_loaded(cli, text, message):
    done = cli("run", SCENE, "-o", "null", "--set", text)
    assert done.returncode == 2
    assert message in done.stderr


def test_yaml_nested_without_end_is_a_wrong_file(cli, tmp_path):
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 3000 + "]" * 3000)
    done = cli("check", "deep.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: deep.yaml:")
    assert "nested too deeply" in done.stderr


# --- secrets --------------------------------------------------------------------------------------

SECRET = "rtsp://me:hunter2@host/x?token=hunter3"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", SECRET, "-o", "null"),
        ("run", "rtsp//me:hunter2@host/x", "-o", "null"),
        ("run", "rtsp:/me:hunter2@host/x", "-o", "null"),
        ("run", "rtsp://me:hu nter2@host/x", "-o", "null"),
        ("run", SCENE, "-o", SECRET.replace("rtsp", "http")),
        ("run", SCENE, "-o", f"{SECRET}.mp4".replace("rtsp", "http")),
        ("run", SCENE, "-o", "null", "--report", SECRET),
        ("run", SCENE, "-o", "null", "--model", SECRET),
        ("run", SCENE, "-o", "null", "--device", SECRET),
        ("run", SCENE, "-o", "null", f"--{SECRET}"),
        ("run", SCENE, "-o", "null", "--set", f"file.path={SECRET}"),
        ("run", SCENE, "-o", "null", "--set", f"{SECRET}=1"),
        ("run", "-c", SECRET),
        ("check", SECRET),
        ("list", SECRET),
        (SECRET,),
    ],
    ids=lambda a: " ".join(a)[:40],
)
@pytest.mark.parametrize("more", [(), ("--verbose",)], ids=["plain", "verbose"])
def test_no_password_is_shown(cli, arguments, more):
    done = cli(*arguments, *more)
    assert done.returncode == 2
    for word in ("hunter2", "hunter3", "nter2"):
        assert word not in done.stdout + done.stderr


@POSIX
def test_a_failure_in_the_run_shows_no_password_in_any_traceback_and_no_report(cli, tmp_path):
    # A folder that is called like an address: what any library may say of it passes by here.
    (tmp_path / "rtsp:" / "me:hunter2@host").mkdir(parents=True)
    make_video(tmp_path / "rtsp:" / "me:hunter2@host" / "a.mp4", frames=2, audio=False)
    (tmp_path / "run.yaml").write_text(
        "source: {kind: file, path: 'rtsp://me:hunter2@host/a.mp4', name: cam}\n"
        "stages: [overlay]\n"
        "sinks: [{kind: video, path: 'rtsp://me:hunter2@host/b.mp4'}]\n"
        "report: r.json\n"
    )
    done = cli("run", "-c", "run.yaml", "--verbose")
    assert done.returncode in (1, 2)
    assert "hunter2" not in done.stdout + done.stderr
    if (tmp_path / "r.json").exists():
        assert "hunter2" not in (tmp_path / "r.json").read_text()


# --- screens, pipes, signals ----------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("closed", ["| true", ">&-", "2>&-", ">&- 2>&-", "2>&1 | true"])
def test_a_reader_that_is_not_there_costs_no_output(tmp_path, closed):
    (tmp_path / "plain.yaml").write_text("stages: [overlay]\n")
    line = f"'{sys.executable}' '{ROOT / 'run.py'}' run '{SCENE}' -c plain.yaml -o o.jsonl -o o.mp4"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {closed}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "o.mp4").stat().st_size > 500


@POSIX
def test_a_failed_run_says_so_also_to_a_reader_that_has_seen_enough(tmp_path):
    (tmp_path / "plain.yaml").write_text("stages: [overlay]\n")
    (tmp_path / "000002.png").mkdir()
    line = f"'{sys.executable}' '{ROOT / 'run.py'}' run '{SCENE}' -c plain.yaml -o %06d.png"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} | true"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: images.process failed" in done.stderr


def test_a_screen_without_letters_shows_escapes(tmp_path):
    (tmp_path / "plain.yaml").write_text("stages: [overlay]\n")
    done = subprocess.run(
        command("run", SCENE, "-c", "plain.yaml", "-o", "漢.jsonl"),
        cwd=tmp_path, capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\\u6f22.jsonl: 5 frames" in done.stdout


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
@pytest.mark.parametrize("delay_s", [0.25, 0.4, 0.6, 0.9])
def test_a_stop_at_any_moment_is_clean(tmp_path, number, delay_s):
    process = subprocess.Popen(
        command("run", "synthetic:shapes?size=160x120&fps=30", "-o", "o.jsonl", "-o", "o.mp4"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay_s)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    lines = tmp_path / "o.jsonl"
    if not lines.exists():  # stopped before the source was opened: nothing is left behind
        assert list(tmp_path.iterdir()) == []
    for line in lines.read_text().splitlines() if lines.exists() else ():
        json.loads(line)
