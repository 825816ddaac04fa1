"""Which runtime is taken, by what imports; and what an absent one is told by."""

from __future__ import annotations

import json
import sys

import pytest

import run
from pipeline.errors import DeviceError, ModelError
from pipeline.schema import Settings
from stages.backends import onnx
from stages.backends.choice import choose
from stages.infer import InferConfig
from stages.model import load_model
from tests.helpers.onnx_models import channel_means, detector, rackfocus_metadata


@pytest.fixture
def path(tmp_path):
    return channel_means(tmp_path / "means.onnx")


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


def described(backend):
    backend.open()
    about = backend.describe()
    backend.close()
    return about


def test_auto_takes_onnx_runtime_and_says_so(path):
    about = described(choose(path, device="cpu"))
    assert about["name"] == "onnx"
    assert about["reason"] == "auto took onnx; asked for cpu"


def test_auto_takes_openvino_only_where_onnx_runtime_does_not_load(path, without):
    without("onnxruntime")
    about = described(choose(path, device="cpu"))
    assert about["name"] == "openvino"
    assert "auto took openvino, because ONNX Runtime does not load" in about["reason"]


@pytest.mark.parametrize(
    ("backend", "package", "remedy"),
    [
        ("openvino", "openvino", r'pip install -e "\.\[openvino\]"'),
        ("onnx", "onnxruntime", r"pip install -e \."),
    ],
)
def test_a_backend_asked_for_and_not_installed_is_an_error(path, without, backend, package, remedy):
    without(package)
    with pytest.raises(DeviceError, match=remedy):
        choose(path, backend=backend)


def test_nothing_that_loads_names_all_reasons(path, without):
    without("onnxruntime")
    without("openvino")
    with pytest.raises(DeviceError, match=r"ONNX Runtime does not load.*OpenVINO does not load"):
        choose(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "openvino", "provider": "tensorrt"}, ModelError, "option of backend onnx"),
        ({"backend": "onnx", "precision": "fp16"}, ModelError, "unless infer.provider is tensorrt"),
        ({"provider": "cuda", "device": "cpu"}, DeviceError, "take one of the two back"),
        ({"backend": "openvino", "device": "cuda"}, DeviceError, "--backend onnx for a GPU"),
    ],
)
def test_options_that_contradict_each_other_are_errors(path, options, error, message):
    with pytest.raises(error, match=message):
        choose(path, **options).open()


def test_provider_cuda_is_a_demand_also_on_device_auto(path, monkeypatch):
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (0, "the NVIDIA driver found no GPU"))
    with pytest.raises(DeviceError, match="'cuda on auto' was asked for, but the NVIDIA driver"):
        choose(path, provider="cuda").open()


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_run_uses_what_its_config_names(tmp_path, backend):
    file = detector(
        tmp_path / "two.onnx",
        [[16, 8, 8, 4, 1.0, 0.9, 0.0]],
        metadata=rackfocus_metadata(("cat", "dog"), name="tiny"),
    )
    notes: list[str] = []
    model = load_model(InferConfig(model=str(file), backend=backend, device="cpu"), notes.append)
    assert model.backend.describe()["name"] == backend
    assert model.describe()["name"] == "tiny"
    assert f"backend {backend} on cpu: asked for cpu" in notes
    (outputs,) = model.run([model.blank()])
    assert outputs["output"].shape == (1, 63, 7)
    model.close()


def test_the_command_line_reaches_the_backend(tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["run", "synthetic:shapes?frames=3", "-o", str(tmp_path / "out.jsonl")]
    options = ["--backend", "openvino", "--device", "cpu", "--report", str(report)]
    assert run.main([*arguments, *options]) == 0
    written = json.loads(report.read_text())
    assert written["backend"]["name"] == "openvino"
    assert "openvino" in written["versions"]
    assert "on cpu (OpenVINO)" in "".join(capsys.readouterr())


def test_run_files_and_the_infer_stage_know_the_same_backends():
    whole = Settings.model_json_schema()["properties"]["backend"]["anyOf"][0]["enum"]
    assert whole == InferConfig.model_json_schema()["properties"]["backend"]["enum"]
