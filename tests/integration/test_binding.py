"""Buffers that are bound once, on real sessions; on the CPU, where the same calls are made."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from stages.backends.binding import BoundRun, settled
from stages.backends.onnx import OnnxBackend
from tests.helpers.onnx_models import channel_means, many_outputs, save


def bound(path, tensor):
    backend = OnnxBackend(path, device="cpu")
    backend.open()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return BoundRun(session, backend.outputs, tensor.shape, tensor.dtype, device="cpu")


@pytest.mark.parametrize(
    ("declared", "sizes", "expected"),
    [
        ([1, 3], {}, (1, 3)),
        (["n", 3], {"n": 5}, (5, 3)),
        (["n", "m"], {"n": 5}, None),
        ([None, 3], {"n": 5}, None),
        ([], {}, ()),
        (["floor(n/8)"], {"n": 5}, None),
    ],
)
def test_shapes_are_settled_by_the_names_of_open_sides(declared, sizes, expected):
    assert settled(declared, sizes) == expected


def test_every_run_gives_arrays_of_its_own(tmp_path):
    tensors = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    run = bound(many_outputs(tmp_path / "many.onnx"), tensors[0])
    results = [run.run(tensor) for tensor in tensors]
    for tensor, found in zip(tensors, results, strict=True):
        assert np.array_equal(found["same"], tensor)
        assert np.array_equal(found["positive"], tensor.clip(0))
        assert found["largest"] == tensor.max()
        assert np.array_equal(found["found"], tensor > 0)
        # Its size depends on the values, so it cannot have a fixed buffer.
        assert np.array_equal(found["rows"], np.nonzero(tensor.clip(0)))


def test_outputs_of_settled_shape_keep_their_place_in_memory(tmp_path, monkeypatch):
    tensor = np.ones((4, 3), np.float32)
    run = bound(many_outputs(tmp_path / "many.onnx"), tensor)
    made = []
    make = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda *args: made.append(tuple(args[0])) or make(*args),
    )
    for _ in range(4):
        run.run(tensor)
    # Once for each, not for each run; and none for 'rows'.
    assert made == [(4, 3), (4, 3), (4, 3), (), (4, 3)]


def test_a_file_that_declares_a_wrong_shape_still_runs(tmp_path):
    """ONNX Runtime warns of it in plain runs, and would refuse a buffer of that shape."""
    path = tmp_path / "wrong.onnx"
    form = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    save(
        path,
        [helper.make_node("Reshape", ["x", "form"], ["y"])],
        [form],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        {"form": np.array([-1, 2])},
    )
    tensor = np.arange(8, dtype=np.float32).reshape(2, 4)
    run = bound(path, tensor)
    for _ in range(3):
        assert np.array_equal(run.run(tensor)["y"], tensor.reshape(4, 2))


def test_views_are_taken_as_they_look(tmp_path):
    tensor = np.random.default_rng(0).random((6, 8, 3, 2), np.float32).transpose(3, 2, 0, 1)
    run = bound(channel_means(tmp_path / "means.onnx", batch=None), tensor)
    for _ in range(2):
        np.testing.assert_allclose(run.run(tensor)["mean"], tensor.mean((2, 3)), rtol=1e-5)
