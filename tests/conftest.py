"""Marks, switches that turn a skip into a failure, and the folder of real clips and weights."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from stages.backends.gpu_providers import load_tensorrt

ROOT = Path(__file__).parent.parent
ASSETS = Path(os.environ.get("RACKFOCUS_ASSETS", ROOT.parent / "shared" / "assets"))


def _need(present: bool, what: str, switch: str) -> None:
    if present:
        return
    if os.environ.get(switch) == "1":
        pytest.fail(f"{switch}=1, but {what} is not here")
    pytest.skip(f"needs {what}")


@pytest.fixture(autouse=True)
def _requirements(request):
    if request.node.get_closest_marker("needs_ffmpeg"):
        here = bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))
        _need(here, "ffmpeg and ffprobe in PATH", "REQUIRE_FFMPEG")
    if request.node.get_closest_marker("assets"):
        _need(ASSETS.is_dir(), f"the clips and weights of {ASSETS}", "REQUIRE_ASSETS")
    if request.node.get_closest_marker("needs_cuda"):
        _need(_has_cuda(), "an NVIDIA GPU", "REQUIRE_CUDA")
    if request.node.get_closest_marker("needs_tensorrt"):
        problem = load_tensorrt()
        _need(not problem, f"TensorRT ({problem})", "REQUIRE_TENSORRT")
    if request.node.get_closest_marker("needs_torch"):
        pytest.importorskip("torch")


def _has_cuda():
    import ctypes

    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _no_thread_left():
    """No test may leave a thread of ours alive."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("rackfocus"):
            thread.join(2)
            assert not thread.is_alive(), f"thread {thread.name} outlived its test"


@pytest.fixture
def assets():
    """The folder of real clips and weights; its tests carry the mark `assets`."""
    if not ASSETS.is_dir():
        pytest.skip(f"needs the clips and weights of {ASSETS}")
    return ASSETS
