"""Every kind of slip in a configuration file is caught before the run, with line and remedy."""

from __future__ import annotations

import pytest

import run

# The file is right; each fault changes one line of it.
RIGHT = """\
source:
  kind: synthetic
  seed: 3
  size_wh: 320x240
stages:
  - overlay:
      boxes: true
      thickness: 2
  - kind: overlay
    name: second
    show: [frame]
sinks:
  - kind: jsonl
    path: out.jsonl
queues:
  capacity: 4
mode: offline
max_frames: 3
"""

FAULTS = [
    # old text, new text, line of the complaint, what it must say
    ("source:", "sorce:", 1, "unknown key 'sorce' in the configuration; did you mean 'source'?"),
    ("kind: synthetic", "kind: sinthetic", 2, "did you mean 'synthetic'?"),
    ("kind: synthetic", "knd: synthetic", 1, "no 'kind'"),
    ("seed: 3", "sede: 3", 3, "unknown key 'sede' in source 'synthetic'; did you mean 'seed'?"),
    ("seed: 3", "seed: three", 3, "'seed' of source 'synthetic' is 'three'"),
    ("seed: 3", "seed: -1", 3, "greater than or equal to 0"),
    ("seed: 3", "seed: 3\n  seed: 4", 4, "key 'seed' is written twice (first on line 3)"),
    ("size_wh: 320x240", "size_wh: 320by240", 4, "WIDTHxHEIGHT"),
    ("size_wh: 320x240", "size_wh: [320]", 4, "size_wh"),
    ("stages:", "stage:", 5, "unknown key 'stage' in the configuration; did you mean 'stages'?"),
    ("- overlay:", "- ovrlay:", 6, "unknown stage kind 'ovrlay'; did you mean 'overlay'?"),
    ("- overlay:", "- jsonl:", 6, "unknown stage kind 'jsonl'"),
    ("boxes: true", "boxs: true", 7, "unknown key 'boxs' in stage 'overlay'; did you mean 'boxes'"),
    ("boxes: true", "boxes: maybe", 7, "'boxes' of stage 'overlay' is 'maybe'"),
    ("boxes: true", "boxes:", 7, "'boxes' of stage 'overlay' is None"),
    ("thickness: 2", "thickness: 0", 8, "'thickness' of stage 'overlay' is 0"),
    ("thickness: 2", "thickness: thick", 8, "'auto'"),
    ("      thickness: 2", "     thickness: 2", 8, "not valid YAML"),
    ("    name: second", "    nmae: second", 10, "unknown key 'nmae' in stage 'overlay'; did you"),
    ("    name: second", "    name: a/b", 9, "expected letters, digits"),
    ("show: [frame]", "show: [frmae]", 11, "'show.0' of stage 'second' is 'frmae'"),
    ("show: [frame]", "show: [frame", 12, "not valid YAML"),
    ("show: [frame]", "show: *later", 11, "undefined alias"),
    ("path: out.jsonl", "pth: out.jsonl", 14, "unknown key 'pth' in sink 'jsonl'; did you mean"),
    ("    path: out.jsonl\n", "", 13, "sink 'jsonl' needs the key 'path'"),
    ("path: out.jsonl", "path: no/out.jsonl", 14, "the folder no does not exist"),
    (
        "  - kind: jsonl\n    path:",
        "  - kind: jsonl\n  - path:",
        14,
        "expected a map of its options",
    ),
    ("capacity: 4", "capacity: 0", 16, "greater than or equal to 1"),
    (
        "capacity: 4",
        "capacty: 4",
        16,
        "unknown key 'capacty' in 'queues' of the configuration; did",
    ),
    ("  capacity: 4", "capacity: 4", 16, "unknown key 'capacity' in the configuration"),
    ("mode: offline", "mode: ofline", 17, "'auto', 'live' or 'offline'"),
    ("mode: offline", "mode: offline\nmode: live", 18, "key 'mode' is written twice"),
    (
        "max_frames: 3",
        "max_frames: 3 frames",
        18,
        "'max_frames' of the configuration is '3 frames'",
    ),
    ("max_frames: 3", "\tmax_frames: 3", 18, "not valid YAML"),
    ("max_frames: 3", "maxframes: 3", 18, "did you mean 'max_frames'?"),
]


def check(tmp_path, capsys, monkeypatch, text, *flags):
    (tmp_path / "run.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    code = run.main(["check", "run.yaml", *flags])
    return code, capsys.readouterr()


def test_the_file_is_right_before_the_fault(tmp_path, capsys, monkeypatch):
    code, told = check(tmp_path, capsys, monkeypatch, RIGHT)
    assert (code, told.err) == (0, "")
    assert told.out.startswith("ok: run.yaml\n  sources: synthetic\n  stages: overlay, second\n")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    FAULTS,
    ids=[f"{i}-{f[1].strip()}" for i, f in enumerate(FAULTS)],
)
def test_every_slip_is_caught_with_its_line(tmp_path, capsys, monkeypatch, old, new, line, message):
    assert RIGHT.count(old) >= 1
    code, told = check(tmp_path, capsys, monkeypatch, RIGHT.replace(old, new, 1))
    assert code == 2
    complaints = told.err.splitlines()
    assert any(
        text.startswith(f"error: run.yaml:{line}: ") and message in text for text in complaints
    ), told.err
    assert "Traceback" not in told.err


def test_several_slips_are_reported_together(tmp_path, capsys, monkeypatch):
    text = RIGHT.replace("seed", "sede").replace("boxes", "boxs")
    text = text.replace("capacity: 4", "capacity: 0").replace("path: out", "pth: out")
    code, told = check(tmp_path, capsys, monkeypatch, text, "--set", "overlay.x=1")
    assert code == 2
    places = [line.split(": ")[1] for line in told.err.splitlines()]
    for place in ("run.yaml:3", "run.yaml:7", "run.yaml:14", "run.yaml:16"):
        assert place in places, told.err
    assert "--set overlay.x" in places


def test_the_wrong_order_of_stages_is_said_with_line_and_remedy(tmp_path, capsys, monkeypatch):
    text = RIGHT.replace("  - overlay:\n", "  - preprocess\n  - nms\n  - overlay:\n")
    code, told = check(tmp_path, capsys, monkeypatch, text)
    assert code == 2
    assert told.err == (
        "error: run.yaml:7: stage 'nms' accepts Inferred, but 'preprocess' produces Prepared; "
        "put 'infer' between them\n"
    )


def test_a_file_that_is_no_configuration_at_all(tmp_path, capsys, monkeypatch):
    for text in ("just words\n", "- a\n- b\n", "\x00\x01", "{", "%PDF-1.4\n"):
        code, told = check(tmp_path, capsys, monkeypatch, text)
        assert code == 2, text
        assert told.err.startswith("error: run.yaml"), told.err


def test_credentials_of_a_camera_are_in_no_complaint(tmp_path, capsys, monkeypatch):
    text = "source: rtsp://admin:hunter2@10.0.0.5/1\nsinks: ['rtmp://u:hunter2@h/live']\nmodel: 3\n"
    code, told = check(tmp_path, capsys, monkeypatch, text)
    assert code == 2
    assert "hunter2" not in told.err + told.out
    code, told = check(tmp_path, capsys, monkeypatch, "surce: rtsp://admin:hunter2@10.0.0.5/1\n")
    assert "hunter2" not in told.err + told.out
    entry = (
        "source: {kind: file, pth: 'rtsp://admin:hunter2@10.0.0.5/1', path: [rtsp://a:hunter2@b]}\n"
    )
    code, told = check(tmp_path, capsys, monkeypatch, entry)
    assert code == 2
    assert "hunter2" not in told.err + told.out
