"""README and docs against the program: commands run, YAML is accepted, JSON is real.

Every ```sh block is run in a folder with the files it names, or says in an HTML comment above it
why not: `<!-- not run: reason -->`, or `<!-- first line not run: reason -->`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.media import make_video, numbered

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_REASON = re.compile(r"(?:first line )?not run: \w.*")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(path):
    page = path.read_text(encoding="utf-8")
    return [
        Block(
            path.name,
            page.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["mark"] or "",
            found["text"],
        )
        for found in _BLOCK.finditer(page)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [b for b in BLOCKS if b.language == "sh" and not b.mark.startswith("not run")]
YAML = [b for b in BLOCKS if b.language == "yaml" and not b.mark.startswith("file")]
JSON = [b for b in BLOCKS if b.language == "json"]


def named(prefix):
    """Blocks whose mark is `prefix: NAME`, by that name."""
    return {
        b.mark.removeprefix(f"{prefix}: "): b for b in BLOCKS if b.mark.startswith(f"{prefix}: ")
    }


def write_model(path, *, transposed=False):
    """Write a detector that sees a person in every picture, as YOLOX or YOLOv8 export it."""
    onnx_models = pytest.importorskip("tests.helpers.onnx_models")
    from onnx import TensorProto, helper

    rows = np.zeros((1, 189, 84 if transposed else 85), np.float32)  # cells of a 96x96 input
    if transposed:
        rows[0, 0, :5] = 48, 48, 30, 30, 0.9
        rows = rows.transpose(0, 2, 1)
    else:
        rows[0, 0, :6] = 6, 6, 1.3, 1.3, 0.9, 1
    output = "output0" if transposed else "output"
    means = helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0)
    onnx_models.save(
        path,
        [
            means,
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "rows"], [output]),
        ],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 96, 96])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(rows.shape))],
        {"rows": rows, "zero": np.zeros(1, np.float32)},
    )


@pytest.fixture(scope="module")
def supplies(tmp_path_factory):
    """The files that the examples name."""
    import cv2

    folder = tmp_path_factory.mktemp("supplies")
    make_video(folder / "street.mp4", frames=12, size=(320, 240))
    make_video(folder / "yard.mp4", frames=8, size=(160, 120), audio=False)
    write_model(folder / "yolox_nano.onnx")
    write_model(folder / "yolov8n.onnx", transposed=True)
    (folder / "names.txt").write_text("".join(f"thing {k}\n" for k in range(80)))
    (folder / "shots").mkdir()
    for k in range(3):
        cv2.imwrite(str(folder / "shots" / f"{k}.png"), numbered(k, (160, 120)))
    return folder


@pytest.fixture
def folder(supplies, tmp_path, monkeypatch):
    """An empty folder with links to those files, to the command and to the configurations."""
    for file in supplies.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("run.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


def call(capsys, *arguments):
    """Run the command in this process; return its exit code and what it said on stderr."""
    import run

    code = run.main(list(arguments))
    return code, capsys.readouterr().err


def in_shell(script, folder):
    """Run a script with this interpreter as `python` and the command as `rackfocus`."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, target in (("python", ""), ("rackfocus", f'"{ROOT / "run.py"}" ')):
        file = bin_folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {target}"$@"\n')
        file.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_every_shell_block_is_run_or_says_why_not():
    assert len(SHELL) >= 8, "the pages' blocks are not found any more"
    for block in BLOCKS:
        if "not run" in block.mark:
            assert block.language == "sh", block
            assert _REASON.fullmatch(block.mark), f"{block}: {block.mark}"
    fences = sum(page.read_text(encoding="utf-8").count("```") for page in PAGES)
    assert fences == 2 * len(BLOCKS), "a block is not closed"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b, marks=[pytest.mark.needs_ffmpeg] if "ffprobe" in b.text else [], id=str(b))
        for b in SHELL
    ],
)
def test_shell_examples_run(block, folder):
    script = block.text
    if block.mark.startswith("first line not run"):
        script = script.partition("\n")[2]
        assert script.strip()
    # The built-in scene in the first example's length costs seconds and shows no more.
    script = script.replace("frames=300", "frames=40")
    done = in_shell(script, folder)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    for output in re.findall(r"-o '?([\w./%-]+\.(?:mp4|mkv|jsonl|jpg))", script):
        written = folder / (output % 0 if "%" in output else output)
        assert written.stat().st_size > 0, f"{block}: {output}"


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_examples_are_accepted(block, folder, capsys):
    (folder / "example.yaml").write_text(block.text, encoding="utf-8")
    code, said = call(capsys, "check", "example.yaml")
    assert code == 0, f"{block}\n{said}"


def test_the_model_page_s_yaml_runs(folder, capsys):
    (block,) = (b for b in YAML if b.page == "models.md")
    (folder / "example.yaml").write_text(block.text, encoding="utf-8")
    code, said = call(capsys, "run", "-c", "example.yaml", "--max-frames", "2")
    assert code == 0, said
    assert "class names: as given" in said


def test_every_set_on_the_pages_is_an_option(folder, capsys):
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in PAGES]
    texts.append((ROOT / "models" / "weights" / "README.md").read_text(encoding="utf-8"))
    given = {
        match[1] or match[2]
        for text in texts
        for match in re.finditer(
            r'--set (?:"([^"]+=[^"]+)"|([\w.]+=[^\s"`.]\S*?)(?=[\s`]|$))', text
        )
    }
    given -= {"KEY=VALUE", "infer.decoder=..."}
    assert len(given) > 12, given
    (folder / "example.yaml").write_text(
        "source: street.mp4\nmodel: yolox_nano.onnx\nsinks: [out.mp4]\n"
        "stages: [preprocess, infer, nms, track, {kind: overlay, name: boxes}]\n"
    )
    for text in sorted(given):
        code, said = call(capsys, "check", "example.yaml", *shlex.split(f"--set {text!r}"))
        assert code == 0, f"--set {text}\n{said}"


def test_every_decoder_has_its_row():
    from stages.decoders.recognise import FAMILIES

    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for kind in FAMILIES:
        assert f"| `{kind}` |" in page
        assert f"--set infer.decoder={kind}" in page


@pytest.mark.parametrize("block", JSON, ids=str)
def test_json_examples_are_json(block):
    assert isinstance(json.loads(block.text), dict)


def test_json_excerpts_have_the_form_of_the_real_thing(folder, capsys):
    excerpts = named("like")
    assert set(excerpts) == {"out.jsonl", "report.json"}
    outputs = ["-o", "out.mp4", "-o", "out.jsonl", "--report", "report.json"]
    code, said = call(capsys, "run", "street.mp4", "--model", "yolox_nano.onnx", *outputs)
    assert code == 0, said
    for name, block in excerpts.items():
        lines = (folder / name).read_text(encoding="utf-8")
        real = json.loads(lines.splitlines()[0] if name.endswith("l") else lines)
        compare(json.loads(block.text), real, name)
    digest = hashlib.sha256((folder / "out.jsonl").read_bytes()).hexdigest()
    assert json.loads((folder / "report.json").read_text())["detections_sha256"] == digest
    line = json.loads(excerpts["out.jsonl"].text)
    assert list(line) == list(json.loads((folder / "out.jsonl").read_text().splitlines()[0]))


def compare(excerpt, real, where):
    """Every key of the excerpt is in the real thing, with a value of the same type."""
    if isinstance(excerpt, dict):
        for key, value in excerpt.items():
            if key == "language":  # the made video's sound names none
                continue
            assert key in real, f"{where}.{key}"
            compare(value, real[key], f"{where}.{key}")
    elif isinstance(excerpt, list) and excerpt:
        compare(excerpt[0], real[0], f"{where}[0]")
    else:
        assert isinstance(real, type(excerpt)), f"{where}: {real!r} is no {type(excerpt).__name__}"


def test_the_report_page_explains_every_section():
    from pipeline.report import Report

    page = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    for name, field in Report.model_fields.items():
        assert f"`{field.alias or name}`" in page, name


def test_the_example_of_errors_is_what_is_said(folder, capsys):
    files, answers = named("file"), named("said of")
    assert set(files) == set(answers) != set()
    for name, block in files.items():
        (folder / name).write_text(block.text, encoding="utf-8")
        code, said = call(capsys, "check", name)
        assert code == 2
        told, lines = answers[name].text.splitlines(), said.splitlines()
        assert len(told) == len(lines), said
        for one, other in zip(told, lines, strict=True):
            assert re.fullmatch(re.escape(one).replace(re.escape("..."), ".*"), other), other


def test_the_command_page_knows_every_flag(capsys):
    import run

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in ("run", "check", "list", "doctor", "models", "export", "verify"):
        with pytest.raises(SystemExit):
            run.main([command, "--help"])
        flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
        for flag in flags:
            assert flag in page, f"{command} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_picture_is_small_enough_to_load():
    picture = ROOT / "docs" / "pictures" / "shapes.jpg"
    assert 20_000 < picture.stat().st_size < 250_000
