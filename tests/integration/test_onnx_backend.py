"""Real ONNX Runtime sessions on tiny files: shapes, errors, devices that are and are not there."""

from __future__ import annotations

import os
import re
import sys

import numpy as np
import pytest

from pipeline.errors import DeviceError, ModelError
from stages.backends import cuda_driver, onnx
from stages.backends.onnx import OnnxBackend, default_threads
from tests.helpers.onnx_models import channel_means


@pytest.fixture
def means(tmp_path):
    return channel_means(tmp_path / "means.onnx", metadata={"stride": "32"})


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (0, "the NVIDIA driver found no GPU"))


def opened(path, **options):
    backend = OnnxBackend(path, **options)
    backend.open()
    return backend


def picture(batch=1, width=8, height=6):
    return np.random.default_rng(0).random((batch, 3, height, width), np.float32)


def test_runs_and_describes_the_graph(means):
    backend = opened(means, device="cpu")
    tensor = picture()
    before = tensor.copy()
    outputs = backend.run(tensor)
    np.testing.assert_allclose(outputs["mean"], tensor.mean((2, 3)), rtol=1e-5)
    assert np.array_equal(tensor, before)
    assert backend.inputs[0].name == "images"
    assert backend.inputs[0].shape == (1, 3, 6, 8)
    assert backend.inputs[0].dtype == "float32"
    assert backend.outputs[0].shape == (1, 3)
    assert backend.metadata["stride"] == "32"
    about = backend.describe()
    assert about["provider"] == "CPUExecutionProvider"
    assert (about["requested"], about["device"], about["fallback"]) == ("cpu", "cpu", False)
    assert about["threads"] == default_threads(0)


def test_large_graphs_get_all_cores_and_small_ones_half_of_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [default_threads(size) for size in (1_000_000, 9_999_999, 10_000_000)] == [4, 4, 8]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert [default_threads(size) for size in (1, 10**9)] == [1, 1]


def test_open_sides_are_none_and_take_any_size(tmp_path):
    backend = opened(channel_means(tmp_path / "m.onnx", batch=None, size_wh=(None, None)))
    assert backend.inputs[0].shape == (None, 3, None, None)
    assert backend.run(picture(3, 11, 5))["mean"].shape == (3, 3)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((1, 3, 6, 9), np.float32), r"shape \[1, 3, 6, 8\], but was given \[1, 3, 6, 9\]"),
        (np.zeros((3, 6, 8), np.float32), r"\[1, 3, 6, 8\], but was given \[3, 6, 8\]"),
        (np.zeros((1, 3, 6, 8), np.uint8), r"takes float32, but was given uint8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_told_both_ways(means, tensor, message):
    with pytest.raises(ModelError, match=message):
        opened(means).run(tensor)


def test_open_close_open(means):
    backend = OnnxBackend(means, device="cpu")
    backend.close()
    with pytest.raises(ModelError, match="not open"):
        backend.run(picture())
    backend.open()
    backend.open()
    backend.close()
    backend.close()
    with pytest.raises(ModelError, match="not open"):
        backend.run(picture())
    backend.open()
    assert backend.run(picture())["mean"].shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("I am a text"), r"not a model that ONNX Runtime can read"),
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda p: p.mkdir(), r"is a directory"),
        (lambda p: None, r"there is no model file"),
        (
            lambda p: p.write_bytes(channel_means(p).read_bytes()[:80]),
            r"not a model that ONNX Runtime can read",
        ),
    ],
    ids=["text", "empty", "directory", "missing", "truncated"],
)
def test_a_file_that_is_no_model_is_one_clear_message(tmp_path, make, message, capfd):
    path = tmp_path / "wrong.onnx"
    make(path)
    with pytest.raises(ModelError, match=message) as caught:
        opened(path)
    assert "wrong.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_auto_without_a_gpu_takes_the_cpu_and_says_why(means, no_gpu, capfd):
    backend = opened(means, device="auto")
    about = backend.describe()
    assert about["device"] == "cpu"
    assert about["reason"] == "the NVIDIA driver found no GPU"
    assert about["fallback"] is False
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_asked_for_and_missing_is_an_error_with_reason_and_remedy(means, no_gpu, device):
    with pytest.raises(DeviceError) as caught:
        opened(means, device=device)
    text = str(caught.value)
    assert f"'{device}' was asked for" in text
    assert "the NVIDIA driver found no GPU" in text
    assert "--device cpu" in text
    assert "allow_fallback" in text


def test_an_allowed_fallback_stands_in_the_report(means, no_gpu):
    backend = opened(means, device="cuda", allow_fallback=True)
    about = backend.describe()
    assert about["fallback"] is True
    assert (about["requested"], about["device"]) == ("cuda", "cpu")
    assert "no GPU" in about["reason"]


def test_a_gpu_index_that_is_not_there_is_an_error(means, monkeypatch):
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (1, ""))
    with pytest.raises(DeviceError, match="there are 1 GPUs, numbered from 0"):
        opened(means, device="cuda:1")


def test_a_session_that_fell_back_by_itself_is_caught(means, monkeypatch):
    """ONNX Runtime gives a CPU session without an error where its CUDA provider does not load."""
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (1, ""))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("noise"), raising=False)
    load = OnnxBackend._load
    monkeypatch.setattr(
        OnnxBackend, "_load", lambda self, providers: load(self, ["CPUExecutionProvider"])
    )
    with pytest.raises(DeviceError, match="could not load its CUDA provider"):
        opened(means, device="cuda")
    assert opened(means, device="auto").describe()["device"] == "cpu"


def test_a_broken_file_is_not_blamed_on_the_device(tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "cuda_devices", lambda: (1, ""))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    path = tmp_path / "text.onnx"
    path.write_text("no graph")
    with pytest.raises(ModelError, match="not a model") as caught:
        opened(path, device="cuda")
    assert not isinstance(caught.value, DeviceError)


def test_no_driver_is_a_reason_in_words(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", missing)
    count, reason = cuda_driver.cuda_devices()
    assert count == 0
    assert "no NVIDIA driver is installed" in reason


@pytest.mark.parametrize(
    ("init", "count", "reason"),
    [
        (100, 0, "found no GPU"),
        (999, 0, r"cuInit returned 999"),
        (0, 0, "CUDA_VISIBLE_DEVICES"),
        (0, 2, "^$"),
    ],
)
def test_the_driver_is_asked_for_its_gpus(monkeypatch, init, count, reason):
    class Driver:
        def cuInit(self, flags):
            return init

        def cuDeviceGetCount(self, pointer):
            pointer._obj.value = count
            return 0

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: Driver())
    found, text = cuda_driver.cuda_devices()
    assert found == count

    assert re.search(reason, text)


def test_thread_counts_and_spinning_do_not_change_the_answer(means):
    tensor = picture()
    one = opened(means, threads=1).run(tensor)["mean"]
    two = opened(means, threads=2).run(tensor)["mean"]
    spinning = opened(means, threads=2, spin=True).run(tensor)["mean"]
    assert np.array_equal(one, two)
    assert np.array_equal(one, spinning)


@pytest.mark.needs_cuda
def test_cuda_really_runs_there(means):
    backend = opened(means, device="cuda:0")
    about = backend.describe()
    assert (about["device"], about["provider"]) == ("cuda:0", "CUDAExecutionProvider")
    tensor = picture()
    np.testing.assert_allclose(backend.run(tensor)["mean"], tensor.mean((2, 3)), rtol=1e-4)
