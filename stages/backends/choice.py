"""Which backend runs an .onnx file: the one that was asked for, or what is there and loads.

`auto` prefers ONNX Runtime, on CUDA and on the CPU alike: the certificates of exported files were
made with it, and OpenVINO, an extra, gives slightly other numbers. What is built in or listed
somewhere counts for nothing: a runtime is there if importing it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.errors import DeviceError, ModelError
from stages.backends.backend import Backend
from stages.backends.onnx import OnnxBackend, import_onnxruntime
from stages.backends.openvino import OpenVinoBackend, import_openvino

_RUNTIMES: Final = {"onnx": import_onnxruntime, "openvino": import_openvino}
"""What raises DeviceError where the runtime does not load; in the order that `auto` tries them."""


def choose(
    path: Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    allow_fallback: bool = False,
    provider: str = "auto",
    precision: str = "fp32",
    gpu_memory_bytes: int | None = None,
    note: Callable[[str], None] | None = None,
) -> Backend:
    """Return the backend for an .onnx file, not yet open.

    Args:
        path: the file; it is not looked at.
        backend: "auto", "onnx" or "openvino".
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: threads for one run on the CPU; None for a number that suits the file.
        allow_fallback: let the backend use another device than the one asked for.
        provider: of ONNX Runtime on a GPU: "auto", "cuda" or "tensorrt".
        precision: "fp32", "fp16" or "bf16".
        gpu_memory_bytes: the limit of ONNX Runtime's CUDA arena.
        note: told before something takes minutes.

    Raises:
        DeviceError: the backend asked for is not installed, or none is.
        ModelError: options that the backend asked for does not have.
    """
    kind, chosen = (backend, "") if backend != "auto" else _first_that_loads()
    _RUNTIMES[kind]()
    if kind == "onnx":
        return OnnxBackend(
            path,
            device=device,
            threads=threads,
            allow_fallback=allow_fallback,
            provider=provider,
            precision=precision,
            gpu_memory_bytes=gpu_memory_bytes,
            chosen=chosen,
            note=note,
        )
    if provider != "auto":
        raise ModelError(
            f"infer.provider: {provider} is an option of backend onnx, but the backend is {kind}: "
            "take one of the two back"
        )
    return OpenVinoBackend(
        path,
        device=device,
        threads=threads,
        allow_fallback=allow_fallback,
        precision=precision,
        chosen=chosen,
    )


def _first_that_loads() -> tuple[str, str]:
    problems: list[str] = []
    for kind, load in _RUNTIMES.items():
        try:
            load()
        except DeviceError as error:
            problems.append(str(error))
        else:
            because = f", because {problems[0]}" if problems else ""
            return kind, f"auto took {kind}{because}"
    raise DeviceError(f"nothing that runs .onnx files loads: {'; '.join(problems)}")
