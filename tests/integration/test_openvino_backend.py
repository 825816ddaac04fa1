"""What is OpenVINO's own: telemetry, threads, precision, and files that it does not take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.errors import DeviceError, ModelError
from stages.backends.onnx import OnnxBackend, default_threads
from stages.backends.openvino import OpenVinoBackend, import_openvino, keeping_signal_stack
from tests.helpers.onnx_models import channel_means, save

ROOT = Path(__file__).resolve().parent.parent.parent
FIRST_USE = """
import sys, threading
from pathlib import Path
import numpy as np, psutil
from stages.backends.openvino import OpenVinoBackend, import_openvino, keeping_signal_stack

import_openvino()
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert len(threading.enumerate()) == 1, threading.enumerate()
before = psutil.Process().num_threads()
backend = OpenVinoBackend(Path(sys.argv[1]), threads=2)
backend.open()
for _ in range(3):
    backend.run(np.zeros((1, 3, 200, 300), np.float32))
assert psutil.Process().num_threads() > before
backend.close()
assert psutil.Process().num_threads() == before
import openvino_telemetry
"""


def opened(kind, path, **options):
    backend = kind(path, device="cpu", **options)
    backend.open()
    return backend


@pytest.fixture
def convolution(tmp_path):
    """A graph in which bfloat16 shows: 8 convolutions, each of 16 channels."""
    weights = np.random.default_rng(0).standard_normal((8, 16, 16, 3, 3)).astype(np.float32) / 12
    nodes, constants = [], {}
    for step in range(8):
        constants[f"w{step}"] = weights[step]
        nodes.append(
            helper.make_node("Conv", [f"x{step}", f"w{step}"], [f"x{step + 1}"], pads=[1] * 4)
        )
    form = [1, 16, 20, 20]
    return save(
        tmp_path / "convolution.onnx",
        nodes,
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, form)],
        [helper.make_tensor_value_info("x8", TensorProto.FLOAT, form)],
        constants,
    )


def test_first_use_sends_nothing_home_and_leaves_no_thread(tmp_path):
    path = channel_means(tmp_path / "means.onnx", size_wh=(300, 200))
    home = tmp_path / "home"
    home.mkdir()
    # CI variables alone would switch the telemetry off.
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD")}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE, str(path)],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


AFTER_USE = """
import faulthandler, os, signal, sys, threading, time
from pathlib import Path
from stages.backends.openvino import OpenVinoBackend
faulthandler.enable()  # gives the thread a signal stack, as pytest and some services do
backend = OpenVinoBackend(Path(sys.argv[1]))
backend.open()
closer = threading.Thread(target=backend.close)  # as infer's thread does
closer.start()
closer.join()
got = []
signal.signal(signal.SIGINT, lambda *_: got.append("interrupted"))
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.05)
sys.stdout.write(got[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_signal_after_it_was_closed_is_survived(tmp_path):
    path = channel_means(tmp_path / "means.onnx", size_wh=(300, 200))
    done = subprocess.run(
        [sys.executable, "-c", AFTER_USE, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted"), done.stderr


def test_it_computes_in_float32_unless_asked_otherwise(convolution):
    tensor = np.random.default_rng(1).standard_normal((1, 16, 20, 20)).astype(np.float32)
    wanted = opened(OnnxBackend, convolution).run(tensor)["x8"]
    scale = np.abs(wanted).max()
    backend = opened(OpenVinoBackend, convolution)
    assert backend.describe()["precision"] == "fp32"
    assert np.abs(backend.run(tensor)["x8"] - wanted).max() < 1e-5 * scale


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_is_used_or_refused(convolution, precision):
    """Asked for fp16, OpenVINO takes bfloat16 where only that is there, and says nothing."""
    with keeping_signal_stack():
        able = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    tensor = np.random.default_rng(1).standard_normal((1, 16, 20, 20)).astype(np.float32)
    exact = opened(OpenVinoBackend, convolution).run(tensor)["x8"]
    if precision.upper() in able:
        backend = opened(OpenVinoBackend, convolution, precision=precision)
        assert backend.describe()["precision"] == precision
        assert backend.describe()["fallback"] is False
        found = backend.run(tensor)["x8"]
        assert found.dtype == np.float32
        difference = np.abs(found - exact).max() / np.abs(exact).max()
        assert 1e-4 < difference < 0.1
        return
    with pytest.raises(DeviceError, match=rf"'{precision}' was asked for.*infer.precision: fp32"):
        opened(OpenVinoBackend, convolution, precision=precision)
    backend = opened(OpenVinoBackend, convolution, precision=precision, allow_fallback=True)
    about = backend.describe()
    assert (about["fallback"], about["precision"]) == (True, "fp32")
    assert precision in about["requested"]
    assert np.array_equal(backend.run(tensor)["x8"], exact)


def test_threads_are_those_asked_for(convolution):
    assert opened(OpenVinoBackend, convolution).describe()["threads"] == default_threads(0)
    assert opened(OpenVinoBackend, convolution, threads=1).describe()["threads"] == 1


def test_a_file_that_only_onnx_runtime_takes_names_the_remedy(tmp_path):
    form = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph(
        [helper.make_node("CDist", ["x", "x"], ["y"], domain="com.microsoft")],
        "distances",
        [form],
        [answer],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "distances.onnx"
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert opened(OnnxBackend, path).run(np.ones((2, 3), np.float32))["y"].shape == (2, 2)
    with pytest.raises(ModelError, match=r"distances.onnx.*CDist.*--backend onnx") as caught:
        opened(OpenVinoBackend, path)
    assert not isinstance(caught.value, DeviceError)
    assert "\n" not in str(caught.value)


def test_one_may_close_while_another_runs(tmp_path):
    path = channel_means(tmp_path / "means.onnx", batch=None)
    one, other = (opened(OpenVinoBackend, path, threads=2) for _ in range(2))
    tensor = np.ones((2, 3, 6, 8), np.float32)
    one.run(tensor)
    one.close()
    assert np.array_equal(other.run(tensor)["mean"], np.ones((2, 3)))
    other.close()
