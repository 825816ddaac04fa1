"""Graphs run by ONNX Runtime, on the CPU or on CUDA, never on another device than the report says.

Knows nothing of pictures and boxes. One thread at a time; ONNX Runtime's own worker threads wait
without spinning and end with the session.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import DeviceError, ModelError
from pipeline.metrics import available_cores
from stages.backends.backend import Array, Backend
from stages.backends.cuda_driver import cuda_devices
from stages.decoders.decoder import TensorInfo

if TYPE_CHECKING:
    import onnxruntime as ort

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_INSTALL: Final = "install the GPU libraries with pip install 'rackfocus[cuda]'"
_FALLBACK: Final = "use --device cpu, or set infer.allow_fallback: true to run on the CPU anyway"
_DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
# A graph of this size or more is what the pipeline waits for; see `default_threads`.
_LARGE_BYTES: Final = 10_000_000
# Silences a logger; 4 is "fatal only". The per-session level does not reach the provider loader.
_QUIET: Final = 4


def default_threads(file_bytes: int) -> int:
    """Return the number of threads for one run of a graph when none is asked for.

    All cores for a large file, half of them for one below 10 MB: a small graph is quicker than
    decoding, drawing and encoding together, and these need the cores more than it gains. Measured
    on 2 cores, 720p to H.264, frames a second with 1 and 2 threads: YOLOX-nano (4 MB) 71 and 62,
    SSD-MobileNet (4 MB) 65 and 61, YOLOX-tiny (20 MB) 28 and 36, YOLOX-s (36 MB) 8 and 13. It goes
    by the file, not by a timing, so that the same file gets the same number on every run.
    """
    cores = available_cores()
    return cores if file_bytes >= _LARGE_BYTES else max(1, cores // 2)


class OnnxBackend(Backend):
    """One ONNX file in one ONNX Runtime session.

    Args:
        path: the .onnx file.
        device: "auto" (CUDA where driver and session both come up, else the CPU, with the reason
            kept), "cpu", "cuda" or "cuda:N".
        threads: threads for one run on the CPU; None for `default_threads`.
        allow_fallback: run on the CPU when CUDA was asked for and is missing, and say so.
        spin: let idle worker threads wait in a busy loop. For measurements only.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        allow_fallback: bool = False,
        spin: bool = False,
    ) -> None:
        self._path = path
        self._requested = device
        self._threads = threads
        self._allow_fallback = allow_fallback
        self._spin = spin
        self._session: ort.InferenceSession | None = None
        self._device = ""
        self._provider = ""
        self._reason = ""

    def open(self) -> None:
        """Load the file; see `Backend.open`."""
        if self._session is not None:
            return
        _check_file(self._path)
        if self._threads is None:
            self._threads = default_threads(self._path.stat().st_size)
        import onnxruntime as ort

        # Failing providers are reported by us with a remedy; ONNX Runtime would print its own.
        ort.set_default_logger_severity(_QUIET)
        session, problem = None, ""
        if self._requested != "cpu":
            session, problem = self._open_cuda()
        if session is not None:
            self._provider, self._reason = _CUDA, f"asked for {self._requested}"
            self._device = f"cuda:{self._cuda_index()}"
        else:
            if self._requested not in ("auto", "cpu") and not self._allow_fallback:
                raise DeviceError(
                    f"device '{self._requested}' was asked for, but {problem}; {_FALLBACK}"
                )
            session = self._load([_CPU])
            self._provider, self._device = _CPU, "cpu"
            self._reason = problem or f"asked for {self._requested}"
        self._session = session
        self.inputs = tuple(_info(node) for node in session.get_inputs())
        self.outputs = tuple(_info(node) for node in session.get_outputs())
        self.metadata = dict(session.get_modelmeta().custom_metadata_map)

    def run(self, tensor: Array) -> dict[str, Array]:
        """Run the graph on one batch; see `Backend.run`."""
        session = self._session
        if session is None:
            raise ModelError(f"{self._path.name} is not open: call open() before run()")
        want = self.inputs[0]
        if tensor.dtype.name != want.dtype:
            raise ModelError(
                f"{self._path.name}: input '{want.name}' takes {want.dtype}, "
                f"but was given {tensor.dtype.name}"
            )
        fits = len(tensor.shape) == len(want.shape) and all(
            asked is None or asked == given
            for asked, given in zip(want.shape, tensor.shape, strict=True)
        )
        if not fits:
            shape = ["any" if size is None else size for size in want.shape]
            raise ModelError(
                f"{self._path.name}: input '{want.name}' takes shape {shape}, "
                f"but was given {list(tensor.shape)}"
            )
        names = [info.name for info in self.outputs]
        try:
            values = session.run(names, {want.name: tensor})
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelError(
                f"{self._path.name} failed on {tensor.dtype.name} input {list(tensor.shape)} "
                f"with {self._provider}: {_first_line(error)}"
            ) from error
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def describe(self) -> dict[str, object]:
        """Return what runs the graph and why, for the report."""
        return {
            "name": "onnx",
            "requested": self._requested,
            "device": self._device,
            "provider": self._provider,
            "reason": self._reason,
            "fallback": self._requested not in ("auto", "cpu") and self._device == "cpu",
            "threads": self._threads,
        }

    def close(self) -> None:
        """Release the session."""
        self._session = None

    def _cuda_index(self) -> int:
        return int(self._requested.partition(":")[2] or 0)

    def _open_cuda(self) -> tuple[ort.InferenceSession | None, str]:
        """Return a session that really runs on CUDA, or None and what is missing."""
        import onnxruntime as ort

        count, problem = cuda_devices()
        if count == 0:
            return None, problem
        index = self._cuda_index()
        if index >= count:
            return None, f"there are {count} GPUs, numbered from 0"
        if _CUDA not in ort.get_available_providers():
            return None, f"this ONNX Runtime is built for the CPU only ({_INSTALL})"
        # Finds CUDA and cuDNN in the environment's own packages. Costs 50 ms and 200 MB, so it is
        # done only where a GPU is present.
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
        options = {
            "device_id": str(index),
            # Growing by doubling would hold memory that fixed shapes never need.
            "arena_extend_strategy": "kSameAsRequested",
            # Trying all algorithms gives other ones, so other last digits, from run to run.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }
        try:
            session = self._load([(_CUDA, options), _CPU])
        except ModelError as error:
            # Loads on the CPU, or raises: then it is the file that is wrong and not the device.
            self._load([_CPU])
            return None, f"ONNX Runtime failed on it: {error}"
        # A session that could not have CUDA comes up on the CPU without an error.
        if session.get_providers()[0] != _CUDA:
            return None, f"ONNX Runtime could not load its CUDA provider ({_INSTALL})"
        return session, ""

    def _load(self, providers: list[Any]) -> ort.InferenceSession:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Spinning workers take the cores that decoding and encoding need.
        spin = "1" if self._spin else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spin)
        options.add_session_config_entry("session.inter_op.allow_spinning", spin)
        options.use_deterministic_compute = True
        try:
            return ort.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelError(
                f"{self._path} is not a model that ONNX Runtime can read: {_first_line(error)}"
            ) from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"there is no model file {path}: check the path")
    if path.is_dir():
        raise ModelError(f"{path} is a directory: give the .onnx file itself")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise ModelError(f"the model file {path} is empty (0 bytes): fetch or export it again")


def _info(node: Any) -> TensorInfo:  # noqa: ANN401 - the runtime's own type has no public name
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorInfo(node.name, shape, _DTYPES.get(node.type, node.type))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
