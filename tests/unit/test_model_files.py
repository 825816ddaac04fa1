"""What the text behind `--model` means, and what a file says of itself without being loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ModelError
from stages import model_files
from stages.decoders.metadata import KEY
from stages.decoders.seal import read_card, seal
from stages.listing import listing
from stages.model_files import KnownModel, pulled_file, resolve_model


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders for shipped and pulled models, and a working folder; all empty."""
    for name in ("shipped", "home/models", "work"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(model_files, "WEIGHTS", tmp_path / "shipped")
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def known():
    names = ("yolox-s", "ssd300", "own-net")
    return SimpleNamespace(names=names, published=names[:2])


def test_a_path_comes_before_a_shipped_name_and_that_before_a_pulled_one(places):
    pulled, shipped, path = pulled_file("two"), places / "shipped" / "two.onnx", Path("two")
    pulled.touch()
    assert resolve_model("two") == pulled
    shipped.touch()
    assert resolve_model("two") == shipped
    path.touch()
    assert resolve_model("two") == path
    assert resolve_model(str(shipped)) == shipped


def test_a_folder_of_a_model_s_name_stands_in_nobody_s_way(places):
    Path("two").mkdir()
    with pytest.raises(ModelError, match=r"two is a folder, nor a model of that name"):
        resolve_model("two")
    pulled_file("two").touch()
    assert resolve_model("two") == pulled_file("two")


def test_a_name_that_is_nothing_is_told_what_there_is(places):
    (places / "shipped" / "two.onnx").touch()
    pulled_file("tree").touch()
    with pytest.raises(
        ModelError,
        match=r"no model file tow, .*did you mean 'two'\?.*shipped models: two; pulled: tree",
    ):
        resolve_model("tow")
    with pytest.raises(ModelError, match=r"did you mean 'yolox-s'"):
        resolve_model("yolox", known)


def test_a_name_that_can_be_pulled_is_told_how(places):
    with pytest.raises(ModelError, match=r"models pull ssd300`.*`run.py export ssd300`"):
        resolve_model("ssd300", known)
    with pytest.raises(ModelError, match=r"nobody has published.* --weights FILE`") as error:
        resolve_model("own-net", known)
    assert "pull" not in str(error.value)


# ir_version = 8: the smallest message that is no empty file.
GRAPH = b"\x08\x08"


def test_a_card_is_read_without_loading_the_graph(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(seal(GRAPH, {"name": "a", "parity": {"schema": 1}}))
    assert read_card(path)["parity"] == {"schema": 1}
    for nothing in (b"", GRAPH):
        path.write_bytes(nothing)
        assert read_card(path) == {}


@pytest.mark.parametrize("content", [b"hello world", seal(GRAPH, {"name": "a"})[:-9]])
def test_a_file_that_is_no_model_has_no_card(tmp_path, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged|cut off"):
        read_card(path)


def test_the_list_shows_what_files_state(places):
    def put(path, **card):
        path.write_bytes(seal(GRAPH, {"task": "detect", "licence": "CC0-1.0", **card}))

    size = {"size_wh": [64, 32]}
    put(places / "shipped" / "a.onnx", preprocessing=size, parity={"max_abs_diff": 0.0})
    put(pulled_file("b"), parity={"schema": 1, "runtimes": {"onnx cpu": {}, "openvino cpu": {}}})
    put(pulled_file("old"), parity=None)
    pulled_file("broken").write_bytes(b"hello world")
    models = [
        KnownModel(name, "detect", (320, 256), 3_440_060, "MIT", "https://get.x.org/w.pth", here)
        for name, here in (("b", True), ("c", True), ("d", False))
    ]
    models.append(KnownModel("e", "segment", (64, 64), 10_000_000, None, None, False))
    rows = []

    def table(heading, found):
        rows.extend([list(heading), *map(list, found)])
        return ["drawn"]

    assert "drawn" in list(listing("models", models, table))
    assert {len(row) for row in rows} == {7}
    cells = {row[0]: row[1:] for row in rows[1:]}
    assert list(cells) == ["a", "b", "c", "d", "e", "broken", "old"]
    assert cells["a"] == ["detect", "64x32", "-", "CC0-1.0", "built in: 0.0 MB", "onnx cpu"]
    assert cells["b"][:4] == ["detect", "320x256", "3.4 M", "MIT"]
    assert cells["b"][4:] == ["x.org, pulled: 0.0 MB", "onnx cpu, openvino cpu"]
    assert cells["c"][4:] == ["x.org, downloaded", "-"]
    assert cells["d"][4:] == ["x.org", "-"]
    assert cells["e"] == ["segment", "64x64", "10.0 M", "-", "none published", "-"]
    assert cells["broken"][-1] == "the file is damaged"
    assert cells["old"][-1] == "none"


def test_a_certificate_without_a_digest_is_called_so(places):
    entry = json.dumps({"schema": 1, "parity": {"max_abs_diff": 0.0}}).encode()
    prop = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([len(entry)]) + entry
    (places / "shipped" / "a.onnx").write_bytes(GRAPH + b"\x72" + bytes([len(prop)]) + prop)
    rows = []
    list(listing("models", [], lambda heading, found: rows.extend(found) or []))
    assert rows[0][-1] == "onnx cpu; no digest"
