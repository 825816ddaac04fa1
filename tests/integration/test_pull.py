"""`models pull` from a server on this machine, and what a name means to `--model` afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json

import pytest

import run
from exporters import command, zoo
from stages.decoders.seal import read_card
from tests.helpers.file_server import file_server

NAME = "yolox-nano"


def publish(monkeypatch, name, url, sha256):
    """Let the table say that this model's weights, made for a small picture, are at `url`."""
    entry = zoo.ZOO[name]
    form = dataclasses.replace(entry.preprocessing, size_wh=(96, 64))
    official = zoo.Published(url, sha256, "Apache-2.0")
    monkeypatch.setitem(
        zoo.ZOO, name, dataclasses.replace(entry, preprocessing=form, official=official)
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty RACKFOCUS_HOME, from an empty working folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def say(capsys, *arguments):
    """Run the command; return exit code, stdout and stderr."""
    code = run.main(list(arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


def files(home):
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())


@pytest.fixture
def no_torch(monkeypatch):
    real = command.importlib.import_module

    def refuse(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(command.importlib, "import_module", refuse)


@pytest.mark.needs_torch
@pytest.mark.timeout(180)  # an export takes some seconds of one core; others may use it too
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pulled_model_is_found_by_its_name_on_every_later_run(home, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    from exporters.weights import build, one_thread

    publish(monkeypatch, NAME, "https://elsewhere/", "0" * 64)
    with one_thread():
        network, _ = build(zoo.ZOO[NAME], "random")
    buffer = io.BytesIO()
    torch.save({"model": network.inner.state_dict()}, buffer)
    data, model = buffer.getvalue(), home / "models" / f"{NAME}.onnx"
    sha256 = hashlib.sha256(data).hexdigest()
    with file_server(data, "nano.pth") as server:
        # Eight digits, as torchvision publishes them: the certificate has all of what was used.
        publish(monkeypatch, NAME, server.url, sha256[:8])
        model.parent.mkdir(parents=True)
        model.write_bytes(b"what a full disk left")
        code, _, err = say(capsys, "models", "pull", NAME)
        assert code == 2
        assert "--overwrite makes it anew" in err
        assert server.requests == []
        code, out, err = say(capsys, "models", "pull", NAME, "--overwrite")
        assert code == 0, err
        assert f"{NAME}: {server.url}" in out
        assert "certificate" in out
        assert f"ready; use it with --model {NAME}" in out
        assert "downloading: " in err
        code, out, _ = say(capsys, "models", "pull", NAME, NAME)
        assert code == 0
        assert out.count("already here") == 1
        assert len(server.requests) == 1
    assert files(home) == [f"models/{NAME}.onnx", "weights/nano.pth"]
    assert read_card(model)["source"]["file_sha256"] == sha256
    assert list((home.parent / "work").iterdir()) == []

    scene = "synthetic:shapes?frames=2&size=320x240"
    arguments = ["run", scene, "--model", NAME, "-o", "o.jsonl", "--report", "r.json", "--quiet"]
    code, _, err = say(capsys, *arguments)
    assert code == 0, err
    about = json.loads((home.parent / "work" / "r.json").read_text())["model"]
    assert about["name"] == NAME
    assert about["certified"] is True

    _, out, _ = say(capsys, "list", "models")
    (row,) = (line for line in out.splitlines() if line.startswith(f"{NAME} "))
    assert f"pulled: {model.stat().st_size / 1e6:.1f} MB" in row
    assert "onnx cpu" in row

    model.write_bytes(model.read_bytes().replace(b'"bgr"', b'"rgb"'))
    code, _, err = say(capsys, "models", "pull", NAME)
    assert code == 2
    assert "changed after the export; --overwrite makes it anew" in err


def test_without_the_extra_the_weights_are_kept_and_the_message_says_what_to_install(
    home, monkeypatch, capsys, no_torch
):
    data = b"weights" * 1000
    with file_server(data) as server:
        publish(monkeypatch, NAME, server.url, hashlib.sha256(data).hexdigest())
        code, _, err = say(capsys, "models", "pull", NAME)
    assert code == 2
    assert 'pip install -e ".[torch]"' in err
    assert str(home / "weights" / "weights.pth") in err
    assert files(home) == ["weights/weights.pth"]
    _, out, _ = say(capsys, "list", "models")
    (row,) = (line for line in out.splitlines() if line.startswith(f"{NAME} "))
    assert "downloaded" in row


def test_offline_each_model_is_told_with_url_digest_and_place(home, monkeypatch, capsys):
    for name, sha256 in ((NAME, "ab" * 32), ("ssd300", "b556d3b4")):
        publish(monkeypatch, name, f"http://127.0.0.1:1/{name}.pth", sha256)
    code, _, err = say(capsys, "models", "pull", NAME, "ssd300")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 2, err
    for line, name, sha256 in zip(lines, (NAME, "ssd300"), ("ab" * 32, "b556d3b4"), strict=True):
        for part in (f"http://127.0.0.1:1/{name}.pth", str(home / "weights" / f"{name}.pth")):
            assert part in line
        assert f"sha256 {sha256}" in line
    assert files(home) == []


def test_an_unknown_name_stops_before_anything_is_fetched(home, monkeypatch, capsys):
    with file_server(b"x") as server:
        publish(monkeypatch, NAME, server.url, "0" * 64)
        code, _, err = say(capsys, "models", "pull", NAME, "yolox-nan")
        assert server.requests == []
    assert code == 2
    assert "did you mean 'yolox-nano'?" in err


def test_a_model_without_published_weights_is_told_what_to_do(home, capsys):
    code, _, err = say(capsys, "models", "pull", "maskrcnn-mobilenet")
    assert code == 2
    assert "nobody has published weights" in err
    assert "`run.py export maskrcnn-mobilenet --weights FILE`" in err


def test_weights_that_are_not_the_published_ones_make_no_model(home, monkeypatch, capsys):
    with file_server(b"something else") as server:
        publish(monkeypatch, NAME, server.url, "0" * 64)
        code, _, err = say(capsys, "models", "pull", NAME)
    assert code == 2
    assert "gave another file than was published" in err
    assert files(home) == []


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_name_that_could_be_pulled_says_how(home, capsys, command):
    given = ["run", "synthetic:shapes?frames=1", "--model", NAME, "-o", "null"]
    if command == "check":
        file = home.parent / "work" / "a.yaml"
        file.write_text(f"source: synthetic:shapes\nmodel: {NAME}\nsinks: ['null']\n")
        given = ["check", "a.yaml"]
    code, _, err = say(capsys, *given)
    assert code == 2
    assert f"`run.py models pull {NAME}`" in err
    assert f"`run.py export {NAME}`" in err
    assert "--backend torch" in err
