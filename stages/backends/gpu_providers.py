"""What ONNX Runtime's GPU providers are told, and where TensorRT's libraries and engines lie.

Knows no session. `load_tensorrt` changes the process (libraries stay loaded); the rest is pure but
for the folder that `engine_folder` makes.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Final

from pipeline.errors import ModelError
from pipeline.home import home_folder

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

# What ONNX Runtime's TensorRT provider is linked against (1.31: libnvinfer.so.10, by readelf). The
# parser needs the first one, so the order matters.
_TENSORRT_MAJOR: Final = 10
_TENSORRT_LIBRARIES: Final = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_TENSORRT_PACKAGE: Final = "tensorrt_libs"


def cuda_options(index: int, memory_bytes: int | None) -> dict[str, str]:
    """Return the CUDA provider's options.

    Args:
        index: the GPU's number.
        memory_bytes: the most that the provider's arena may take; None for no limit.
    """
    options = {
        "device_id": str(index),
        # Growing by doubling would hold memory that fixed shapes never need.
        "arena_extend_strategy": "kSameAsRequested",
        # Trying all algorithms gives other ones, so other last digits, from run to run.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    if memory_bytes is not None:
        options["gpu_mem_limit"] = str(memory_bytes)
    return options


def tensorrt_options(index: int, folder: Path, precision: str) -> dict[str, str]:
    """Return the TensorRT provider's options.

    Args:
        index: the GPU's number.
        folder: where engines and kernel timings are kept, from `engine_folder`.
        precision: "fp32", "fp16" or "bf16".
    """
    options = {
        "device_id": str(index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    if precision != "fp32":
        options[f"trt_{precision}_enable"] = "1"
    return options


def engine_folder(path: Path, precision: str) -> Path:
    """Return the folder for the engines of one model file, and make it.

    It is named after the file's own bytes: the provider names an engine after the graph's name and
    its tensors' names, so that a file with other weights or another size would be given the
    engine of its predecessor (microsoft/onnxruntime issue 32254).

    Raises:
        ModelError: the folder cannot be made; the text names RACKFOCUS_HOME.
    """
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = home_folder() / "tensorrt" / f"{name}-{precision}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"the folder {folder} for TensorRT's engines cannot be made ({error.strerror}): set "
            "RACKFOCUS_HOME to a folder that can be written"
        ) from error
    return folder


def tensorrt_remedy(cuda_version: str) -> str:
    """Return what to install, for a CUDA version such as "13.0"; "" takes the newest known."""
    major = cuda_version.partition(".")[0] or "13"
    package = f"tensorrt-cu{major}-libs>={_TENSORRT_MAJOR},<{_TENSORRT_MAJOR + 1}"
    return f'install it with pip install "{package}", or drop infer.provider: tensorrt'


def load_tensorrt() -> str:
    """Load TensorRT's libraries from its Python package or the system; return what is missing.

    ONNX Runtime's own `preload_dlls` knows CUDA and cuDNN only. Returns "" where all were found.
    """
    spec = importlib.util.find_spec(_TENSORRT_PACKAGE)
    folders = [Path(at) for at in (spec.submodule_search_locations or [])] if spec else []
    for stem in _TENSORRT_LIBRARIES:
        name = (
            f"{stem}_{_TENSORRT_MAJOR}.dll"
            if sys.platform == "win32"
            else f"lib{stem}.so.{_TENSORRT_MAJOR}"
        )
        here = next((str(folder / name) for folder in folders if (folder / name).is_file()), name)
        try:
            ctypes.CDLL(here)
        except OSError as error:
            return f"TensorRT's library {name} does not load ({error})"
    return ""
