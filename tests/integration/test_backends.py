"""The backend contract, for every runtime that reads .onnx files and every form of input."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from stages.backends.onnx import OnnxBackend
from stages.backends.openvino import OpenVinoBackend
from tests.contracts.check_backend import Subject, check_backend, check_backend_file
from tests.helpers.onnx_models import (
    byte_picture,
    channel_means,
    many_outputs,
    two_rows,
    without_batch,
)


class BoundOnnxBackend(OnnxBackend):
    """Runs through bound buffers, as on a GPU, though they lie on the CPU."""

    def open(self):
        super().open()
        self._provider = "bound"


def on_device(kind, device, **fixed):
    """Return what makes a backend that asks for `device` where the contract names none."""

    def make(path, **options):
        return kind(path, **{"device": device, **fixed, **options})

    return make


RUNTIMES = [
    pytest.param(on_device(OnnxBackend, "cpu", threads=2), id="onnx"),
    pytest.param(on_device(BoundOnnxBackend, "cpu", threads=2), id="onnx-bound"),
    pytest.param(on_device(OpenVinoBackend, "cpu", threads=2), id="openvino"),
    # With one thread OpenVINO takes another path, which lost errors (see its `run`).
    pytest.param(on_device(OpenVinoBackend, "cpu", threads=1), id="openvino-1"),
    pytest.param(on_device(OnnxBackend, "cuda"), id="onnx-cuda", marks=pytest.mark.needs_cuda),
    pytest.param(
        on_device(OnnxBackend, "cuda", provider="tensorrt"),
        id="onnx-tensorrt",
        marks=[pytest.mark.needs_cuda, pytest.mark.needs_tensorrt],
    ),
]
runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture(autouse=True)
def _engines_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path / "home"))


def numbers(*shape, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, 256, shape, dtype)
    return generator.standard_normal(shape).astype(dtype)


@runtimes
def test_an_open_batch_and_open_sides(runtime, tmp_path):
    metadata = {"stride": "32", "odd.key/ä": '{"a": [1.50, null]}\n\t', "empty": ""}
    path = channel_means(
        tmp_path / "means.onnx", batch=None, size_wh=(None, None), metadata=metadata
    )
    check_backend(
        Subject(
            functools.partial(runtime, path),
            [numbers(1, 3, 6, 8), numbers(3, 3, 6, 8, seed=1), numbers(2, 3, 9, 4, seed=2)],
            answer=lambda tensor: {"mean": tensor.mean((2, 3))},
            metadata=metadata,
        )
    )


@runtimes
def test_outputs_of_every_form(runtime, tmp_path):
    def answer(tensor):
        positive = np.maximum(tensor, 0)
        return {
            "same": tensor,
            "positive": positive,
            "again": positive,
            "largest": tensor.max(),
            "found": tensor > 0,
            "rows": np.array(np.nonzero(positive)),
        }

    check_backend(
        Subject(
            functools.partial(runtime, many_outputs(tmp_path / "many.onnx")),
            [numbers(4, 3), numbers(4, 3, seed=1), numbers(2, 3, seed=2), np.zeros((1, 3), "f")],
            answer=answer,
        )
    )


@runtimes
def test_bytes_with_channels_last(runtime, tmp_path):
    check_backend(
        Subject(
            functools.partial(runtime, byte_picture(tmp_path / "bytes.onnx")),
            [numbers(1, 4, 5, 3, dtype=np.uint8), numbers(1, 4, 5, 3, seed=1, dtype=np.uint8)],
            answer=lambda tensor: {"sums": tensor.sum((1, 2), dtype=np.float32)},
        )
    )


@runtimes
def test_no_batch_axis(runtime, tmp_path):
    check_backend(
        Subject(
            functools.partial(runtime, without_batch(tmp_path / "three.onnx")),
            [numbers(3, 4, 5), numbers(3, 4, 5, seed=1)],
            answer=lambda tensor: {"mean": tensor.mean((1, 2))},
        )
    )


@runtimes
def test_a_graph_that_fails_on_some_inputs(runtime, tmp_path):
    path = two_rows(tmp_path / "rows.onnx")
    check_backend(
        Subject(
            functools.partial(runtime, path),
            [numbers(2, 4), numbers(2, 4, seed=1)],
            answer=lambda tensor: {"rows": tensor},
            fails=numbers(3, 4),
        )
    )


@runtimes
def test_files_that_are_no_models(runtime, tmp_path, capfd):
    good = channel_means(tmp_path / "good.onnx").read_bytes()
    check_backend_file(runtime, tmp_path / "wrong.onnx", good, capfd)
