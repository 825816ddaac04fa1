"""TensorRT as ONNX Runtime's provider: what it is told, and what is said where it is missing.

That it really runs is the backend contract's test, on machines that have it.
"""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DeviceError, ModelError
from stages.backends import gpu_providers, onnx
from stages.backends.gpu_providers import (
    CUDA,
    TENSORRT,
    cuda_options,
    engine_folder,
    load_tensorrt,
    tensorrt_options,
    tensorrt_remedy,
)
from stages.backends.onnx import OnnxBackend
from tests.helpers.onnx_models import channel_means

ort = pytest.importorskip("onnxruntime")
CPU = "CPUExecutionProvider"
built_in = pytest.mark.skipif(
    TENSORRT not in ort.get_available_providers(), reason="a CPU build of ONNX Runtime"
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def path(tmp_path):
    return channel_means(tmp_path / "means.onnx")


@pytest.fixture
def gpu(monkeypatch):
    """A driver that claims a GPU: what follows is ONNX Runtime's own answer to that."""
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (1, ""))


def test_options_are_the_providers_own():
    assert cuda_options(1, None)["device_id"] == "1"
    assert "gpu_mem_limit" not in cuda_options(0, None)
    assert cuda_options(0, 1 << 30)["gpu_mem_limit"] == "1073741824"
    options = tensorrt_options(2, Path("/engines"), "fp32")
    assert options["device_id"] == "2"
    assert options["trt_engine_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == "/engines"
    assert not [key for key in options if key.endswith(("fp16_enable", "bf16_enable"))]
    assert tensorrt_options(0, Path("/engines"), "fp16")["trt_fp16_enable"] == "1"
    assert tensorrt_options(0, Path("/engines"), "bf16")["trt_bf16_enable"] == "1"


@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("cuda", cuda_options(0, 1 << 30)),
        ("tensorrt", tensorrt_options(0, Path("/engines"), "fp16")),
    ],
)
def test_onnx_runtimes_provider_knows_every_option(library, options):
    """The names stand in its libraries; to be refused for a wrong one takes a GPU."""
    file = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
    if not file.is_file():
        pytest.skip("a CPU build of ONNX Runtime")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for key in options:
            assert text.find(key.encode() + b"\0") >= 0, key


def test_each_file_and_precision_has_engines_of_its_own(tmp_path, home, path):
    """The provider would take the engine of another file with the same names in its graph."""
    first = engine_folder(path, "fp32")
    assert first.is_dir()
    assert home in first.parents
    assert engine_folder(path, "fp32") == first
    assert engine_folder(path, "fp16") != first
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tinx"))
    assert engine_folder(path, "fp32") != first


def test_a_folder_that_cannot_be_made_names_the_variable(home, path):
    home.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="RACKFOCUS_HOME"):
        engine_folder(path, "fp32")


def test_libraries_are_found_in_the_python_package(tmp_path, monkeypatch):
    if not (
        library := Path(ort.__file__).parent / "capi/libonnxruntime_providers_shared.so"
    ).exists():
        pytest.skip("no small shared library at hand")
    package = tmp_path / "site" / "tensorrt_libs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be run')")
    monkeypatch.syspath_prepend(str(package.parent))
    names = ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]
    for name in names[:2]:
        shutil.copy(library, package / name)
    assert "libnvonnxparser.so.10 does not load" in load_tensorrt()
    shutil.copy(library, package / names[2])
    assert load_tensorrt() == ""


def test_the_remedy_is_the_package_for_the_cuda_in_use():
    assert '"tensorrt-cu13-libs>=10,<11"' in tensorrt_remedy("13.0")
    assert '"tensorrt-cu12-libs>=10,<11"' in tensorrt_remedy("12.8")
    assert "tensorrt-cu13-libs" in tensorrt_remedy("")


@built_in
def test_missing_libraries_are_an_error_with_the_package_to_install(path, home, gpu, monkeypatch):
    monkeypatch.setattr(gpu_providers, "_TENSORRT_MAJOR", 99)
    with pytest.raises(DeviceError) as caught:
        OnnxBackend(path, provider="tensorrt").open()
    text = str(caught.value)
    assert "'tensorrt on auto' was asked for, but TensorRT's library" in text
    assert "tensorrt-cu" in text
    assert "infer.allow_fallback" in text


@built_in
def test_what_onnx_runtime_says_is_passed_on(path, home, gpu, monkeypatch, capfd):
    """Our look-up is skipped, so the real provider fails; without a banner, and never quietly."""
    if not load_tensorrt():
        pytest.skip("TensorRT is here")
    monkeypatch.setattr(gpu_providers, "load_tensorrt", lambda: "")
    with pytest.raises(DeviceError, match=r"ONNX Runtime failed on it: .*TensorRT"):
        OnnxBackend(path, provider="tensorrt").open()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def replace_load(monkeypatch, providers):
    """ONNX Runtime as if it knew TensorRT and had come up on `providers`; returns what it got."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(gpu_providers, "load_tensorrt", lambda: "")
    given, load = [], OnnxBackend._load

    class Session:
        """A CPU session that says it came up on other providers."""

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            return getattr(self._real, name)

        def get_providers(self):
            return providers

    def replaced(self, chain):
        given.append(chain)
        return Session(load(self, [CPU]))

    monkeypatch.setattr(OnnxBackend, "_load", replaced)
    return given


@pytest.mark.parametrize("came_up", [[CUDA, CPU], [CPU]])
def test_a_session_that_came_up_elsewhere_is_an_error(path, home, gpu, monkeypatch, came_up):
    replace_load(monkeypatch, came_up)
    with pytest.raises(DeviceError, match=r"could not load its TensorRT provider.*tensorrt-cu"):
        OnnxBackend(path, device="cuda", provider="tensorrt").open()


def test_an_allowed_fallback_tries_cuda_and_stands_in_the_report(path, home, gpu, monkeypatch):
    given = replace_load(monkeypatch, [CUDA, CPU])
    backend = OnnxBackend(path, provider="tensorrt", allow_fallback=True)
    backend.open()
    about = backend.describe()
    assert (about["provider"], about["device"], about["fallback"]) == (CUDA, "cuda:0", True)
    assert about["requested"] == "tensorrt on auto"
    assert "could not load its TensorRT provider" in about["reason"]
    assert [[entry[0] for entry in chain[:-1]] for chain in given] == [[TENSORRT, CUDA], [CUDA]]


def test_the_engine_is_announced_before_it_is_built_and_only_then(path, home, gpu, monkeypatch):
    given = replace_load(monkeypatch, [TENSORRT, CUDA, CPU])
    notes: list[str] = []
    backend = OnnxBackend(path, provider="tensorrt", precision="fp16", note=notes.append)
    backend.open()
    about = backend.describe()
    assert (about["provider"], about["fallback"]) == (TENSORRT, False)
    assert about["reason"] == "asked for tensorrt on auto"
    (note,) = notes
    assert "minutes" in note
    ((tensorrt, (cuda, _), cpu),) = given
    assert (tensorrt[0], cuda, cpu) == (TENSORRT, CUDA, CPU)
    assert tensorrt[1]["trt_fp16_enable"] == "1"
    folder = Path(tensorrt[1]["trt_engine_cache_path"])
    assert str(folder) in note
    backend.close()
    (folder / "graph_0_sm90.engine").write_bytes(b"kept from the last time")
    backend.open()
    assert len(notes) == 1


@pytest.mark.needs_cuda
def test_a_limit_of_the_arena_is_kept(path):
    backend = OnnxBackend(path, device="cuda", gpu_memory_bytes=64 << 20)
    backend.open()
    assert backend._session.get_provider_options()[CUDA]["gpu_mem_limit"] == str(64 << 20)
    tensor = np.ones((1, 3, 6, 8), np.float32)
    assert np.array_equal(backend.run(tensor)["mean"], np.ones((1, 3)))


@pytest.mark.needs_cuda
@pytest.mark.needs_tensorrt
def test_an_engine_is_kept_for_the_next_run(path, home):
    tensor = np.random.default_rng(0).random((1, 3, 6, 8), np.float32)
    notes: list[str] = []
    for _ in range(2):
        backend = OnnxBackend(path, provider="tensorrt", note=notes.append)
        backend.open()
        np.testing.assert_allclose(backend.run(tensor)["mean"], tensor.mean((2, 3)), rtol=1e-3)
        backend.close()
    assert len(notes) == 1
    assert list(home.rglob("*.engine"))
