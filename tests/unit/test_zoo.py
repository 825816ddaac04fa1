"""The table of exportable models, and the words of the two commands about it."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from exporters import command, zoo
from pipeline.arguments import parse
from pipeline.errors import ParityError, UsageError
from stages.decoders.recognise import FAMILIES


@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=lambda entry: entry.name)
def test_entries_are_of_a_form_that_a_run_reads(entry):
    family = FAMILIES[entry.decoder]
    assert set(entry.options) <= set(family.options)
    assert all(entry.class_names)
    assert entry.parameters > 0
    assert entry.task in ("detect", "segment", "keypoints", "semantic")
    if entry.official is not None:
        assert entry.official.url.startswith("https://")
        assert entry.official.url.endswith(".pth")
        assert len(entry.official.sha256) in (8, 64)
        int(entry.official.sha256, 16)
    assert set(entry.preprocessing.size_wh) <= set(range(256, 1025))


def test_the_first_class_is_a_person_where_each_family_has_it():
    """A table that is off by one passes every comparison of two runtimes."""
    for name, index in (("yolox-s", 0), ("ssd300", 0), ("retinanet", 1), ("fcos", 1)):
        entry = zoo.find(name)
        assert entry.class_names[index] == "person", name
        # torchvision's label 1 is a person: where the first column is dropped, column 1 is 0.
        assert (entry.options.get("background") is True) == (name == "ssd300"), name


@pytest.mark.parametrize(
    ("name", "given", "known", "scored"),
    [
        ("yolox-nano", ("cat", "dog"), ("cat", "dog"), 2),
        ("ssdlite320", ("cat", "dog"), ("cat", "dog"), 3),
        ("retinanet", ("cat",), ("__background__", "cat"), 2),
        ("maskrcnn", ("background", "cat"), ("__background__", "cat"), 2),
        ("lraspp", ("road", "sky"), ("road", "sky"), 2),
    ],
)
def test_class_names_of_a_checkpoint_are_those_of_the_network(name, given, known, scored):
    entry = zoo.find(name).named(given)
    assert (entry.class_names, entry.network_classes) == (known, scored)
    assert entry.named(entry.class_names) == entry


def test_normalising_is_that_of_torchvision():
    form = zoo.find("retinanet").preprocessing
    pixel = np.array([0.0, 128.0, 255.0])
    for k, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (pixel / 255 - mean) / deviation
        np.testing.assert_allclose((pixel - form.mean[k]) * form.scale[k], expected, atol=1e-12)


def test_an_unknown_model_is_told_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'yolox-nano'\? .*ssd300"):
        zoo.find("yolox-nan")


def test_what_is_told_of_models_says_whether_weights_are_here(monkeypatch, tmp_path):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "yolox_s.pth").write_bytes(b"x")
    told = {model.name: model for model in zoo.describe()}
    assert list(told) == list(zoo.ZOO)
    assert [name for name, model in told.items() if model.weights_here] == ["yolox-s"]
    one = told["ssd300"]
    assert (one.task, one.input_wh, one.licence) == ("detect", (300, 300), "BSD-3-Clause")


@pytest.mark.parametrize(
    ("out", "said"),
    [("x.pt", "an .onnx file"), ("no/x.onnx", "no folder no"), ("here.onnx", "--overwrite")],
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_loaded(
    out, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=said):
        command.export_model(
            "yolox-nano", out, weights="random", frames=None, overwrite=False, say=print
        )


def test_without_the_extra_export_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name, *rest: (
            (_ for _ in ()).throw(ImportError(name)) if name == "torch" else real(name, *rest)
        ),
    )
    with pytest.raises(UsageError, match=r'needs torch.*pip install -e "\.\[torch\]"'):
        command.export_model(
            "yolox-nano",
            str(tmp_path / "x.onnx"),
            weights="random",
            frames=None,
            overwrite=False,
            say=print,
        )


def test_the_commands_have_their_arguments():
    name, given = parse(["export", "ssd300", "-o", "x.onnx", "--weights", "random"], "run.py")
    assert (name, given.name, given.out, given.weights) == ("export", "ssd300", "x.onnx", "random")
    name, given = parse(["verify", "x.onnx"], "run.py")
    assert (name, given.file, given.weights, given.frames) == ("verify", "x.onnx", None, None)
    name, given = parse(["models", "pull", "ssd300", "fcos", "--overwrite"], "run.py")
    assert (name, given.action, given.names) == ("models", "pull", ["ssd300", "fcos"])
    assert given.overwrite
    with pytest.raises(UsageError, match="int8"):
        parse(["export", "ssd300", "--precision", "int8"], "run.py")


def test_a_failed_certificate_is_a_failed_run():
    assert ParityError.exit_code == 1
