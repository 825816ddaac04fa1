"""The command line as a user meets it: in a process of its own, judged by exit code and texts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCENE = "synthetic:shapes?size=320x240&frames=20&seed=3"
# The chain without a model: what is tested here is the command, and no weights are needed.
BARE = """\
source: {source}
stages: [overlay]
sinks: [{sink}]
"""


@pytest.fixture
def cli(tmp_path):
    """Run `run.py` with arguments in an empty folder, without a screen."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["PYTHONWARNINGS"] = "ignore"

    def run(*arguments, timeout=40):
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    run.environment = environment
    return run


@pytest.fixture
def inside(capsys, monkeypatch, tmp_path):
    """The same in this process, to be quick; `cli` shows that a process of its own does as much."""
    import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def call(*arguments):
        code = run.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, told.out, told.err)

    return call


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def bare(folder, source=SCENE, sink="out.jsonl"):
    return write(folder, BARE.format(source=f"'{source}'", sink=f"'{sink}'"))


def test_a_run_ends_in_outputs_a_report_and_zero(cli, tmp_path):
    bare(tmp_path)
    done = cli("run", "-c", "run.yaml", "-o", "a.jsonl", "-o", "null", "--report", "r.json")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 20
    assert not (tmp_path / "out.jsonl").exists(), "-o replaces the file's sinks"
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == 1
    assert report["exit"]["code"] == 0
    assert report["streams"]["shapes"]["frames_out"] == 20
    assert report["config"]["stages"][0]["kind"] == "overlay"
    assert "offline (from the source): shapes; no model" in done.stderr
    assert "shapes: 20 frames in, 20 out, dropped 0" in done.stdout
    assert "a.jsonl: 20 frames" in done.stdout
    assert "report: r.json" in done.stdout


def test_limits_and_quiet(inside, tmp_path):
    bare(tmp_path)
    done = inside("run", "-c", "run.yaml", "--max-frames", 5, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


def test_duration_counts_media_time(inside, tmp_path):
    bare(tmp_path)
    done = inside("run", "-c", "run.yaml", "--duration", 0.4)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 12  # 30 fps


def test_sources_may_stand_anywhere(inside, tmp_path):
    bare(tmp_path)
    arguments = ["run", SCENE, "-c", "run.yaml", "--max-frames", 3, f"{SCENE}&count=2"]
    done = inside(*arguments)
    assert done.returncode == 0, done.stderr
    assert "shapes: 3 frames in" in done.stdout
    assert "shapes-2: 3 frames in" in done.stdout


def test_the_built_in_model_runs_the_scene(inside, tmp_path):
    arguments = ["--report", "r.json", "--device", "cpu", "--set", "nms.score_threshold=0.3"]
    done = inside("run", SCENE, "-o", "out.mp4", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["model"]["name"]
    assert report["backend"]["device"] == "cpu"
    assert re.fullmatch(r"[0-9a-f]{64}", report["detections_sha256"])
    assert (tmp_path / "out.mp4").stat().st_size > 1000


@pytest.mark.assets
def test_a_real_clip_through_a_real_detector(cli, tmp_path, assets):
    clip = assets / "video" / "imageio_realshort.mp4"
    model = assets / "models" / "yolox_nano_iinfer.onnx"
    done = cli("run", clip, "--model", model, "-o", "out.mp4", "--report", "r.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["streams"]["imageio_realshort"]["frames_out"] == 36
    assert report["model"]["decoder"] == "yolox"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run"], "no source: give a video file"),
        (["run", "--max-frmaes", "3"], "unknown argument '--max-frmaes'; did you mean '--max-fr"),
        (["run", SCENE], "no output, and no screen for a window: add -o SINK"),
        (["run", SCENE, "-o", "null", "--duration", "0"], "--duration: 'duration_s'"),
        (["run", SCENE, "-o", "null", "--max-frames", "x"], "--max-frames: 'max_frames'"),
        (["run", SCENE, "-o", "null", "--device", "gpu"], "--device: 'device'"),
        (["run", SCENE, "-o", "null", "--live", "--offline"], "not allowed with argument"),
        (["run", SCENE, "-o", "null", "--set", "nms"], "expected KEY=VALUE"),
        (["run", SCENE, "-o", "none/out.mp4"], "the folder none does not exist"),
        (["run", SCENE, "-o", "a.mov", "--set", "video.codec=vp9"], ".mov files cannot hold vp9"),
        (["run", SCENE, "-o", "out.txt"], "extension '.txt' is not known"),
        (["run", SCENE, "-o", "a.jsonl", "-o", "./a.jsonl"], "both write"),
        (["run", SCENE, "-o", "a.jsonl", "--report", "a.jsonl"], "both write"),
        (["run", SCENE, "-o", "null", "--report", "none/r.json"], "the folder none does not"),
        (["run", SCENE, SCENE, "-o", "a.mp4"], "put {stream} into the path"),
        (["run", "nothing.mp4", "-o", "null"], "no model: add --model"),
        (["run", "no.mp4", "-o", "null", "--model", "shapes"], "source 'no.mp4': no such file"),
        (["run", "*.png", "-o", "null", "--model", "shapes"], "no file fits the pattern"),
        (["run", SCENE, "-o", "null", "--model", "gone.onnx"], "gone.onnx"),
        (["run", "rtps://me:hunter2@host/1", "-o", "null"], "did you mean 'rtsps'?"),
        (["run", "-c", "gone.yaml"], "gone.yaml: no such configuration file"),
        (["check", "gone.yaml"], "gone.yaml: no such configuration file"),
        (["check"], "required: FILE.yaml"),
        (["list", "sink"], "did you mean 'sinks'?"),
    ],
)
def test_what_cannot_work_ends_in_one_clear_message_and_2(
    inside, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.setattr("sys.platform", "linux")
    done = inside(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


def test_an_input_is_never_overwritten(inside, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"not really a video")
    bare(tmp_path, source="clip.mp4", sink="clip.mp4")
    done = inside("run", "-c", "run.yaml", "--overwrite")
    assert done.returncode == 2
    assert "is the input 'clip'; writing would destroy it" in done.stderr
    os.link(clip, tmp_path / "same.mp4")
    done = inside("run", "-c", "run.yaml", "-o", "same.mp4", "--overwrite")
    assert done.returncode == 2
    assert clip.read_bytes() == b"not really a video"


def test_an_output_that_exists_needs_overwrite_and_a_report_does_not(inside, tmp_path):
    bare(tmp_path)
    (tmp_path / "out.jsonl").write_text("precious\n")
    (tmp_path / "r.json").write_text("old\n")
    done = inside("run", "-c", "run.yaml", "--report", "r.json")
    assert done.returncode == 2
    assert "run.yaml:3: sink 'jsonl': out.jsonl exists already" in done.stderr
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"
    done = inside("run", "-c", "run.yaml", "--report", "r.json", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["exit"]["code"] == 0


def test_a_run_that_fails_ends_in_1_and_still_has_a_report(cli, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"this is no video at all" * 50)
    bare(tmp_path, source="bad.mp4")
    done = cli("run", "-c", "run.yaml", "--report", "r.json")
    assert done.returncode in (1, 2)
    assert "error: " in done.stderr
    assert "bad.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["exit"]["code"] == done.returncode
    assert report["failures"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_with_complete_outputs(cli, tmp_path, number):
    bare(tmp_path, source="synthetic:shapes?size=320x240&paced=true")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "run", "-c", "run.yaml", "--report", "r.json"],
        cwd=tmp_path,
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out = tmp_path / "out.jsonl"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (out.exists() and out.stat().st_size):
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, err
    lines = out.read_text().splitlines()
    assert [json.loads(line)["stream"] for line in lines] == ["shapes"] * len(lines)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["exit"] == {"code": 130, "reason": "stopped by the user"}
    assert report["mode"] == "live"


def test_check_says_ok_or_everything_that_is_wrong(inside, tmp_path):
    path = bare(tmp_path)
    done = inside("check", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok: ")
    done = inside("check", path, "--set", "overlay.thicknes=3", "--set", "mode=fast")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "did you mean 'thickness'" in done.stderr


def test_list_names_kinds_options_and_defaults(inside):
    everything = inside("list")
    assert everything.returncode == 0, everything.stderr
    for word in ("webcam", "overlay", "jsonl", "synthetic.yaml"):
        assert word in everything.stdout
    stages = inside("list", "stages")
    assert "score_threshold: number" in stages.stdout


def test_list_survives_a_reader_that_has_seen_enough(tmp_path):
    command = f"'{sys.executable}' '{ROOT / 'run.py'}' list stages | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == "stages:\n"
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_answers_at_once(cli, arguments):
    took = []
    for _ in range(3):
        started = time.perf_counter()
        done = cli(*arguments)
        took.append(time.perf_counter() - started)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: run.py")
    # The best of three: the machine may be busy with other work.
    assert min(took) < 0.5


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_check_accepts_every_example(inside, path):
    done = inside("check", path)
    assert done.returncode == 0, done.stderr
