"""Graphs run by ONNX Runtime, on the CPU, CUDA or TensorRT, never elsewhere than the report says.

Knows nothing of pictures and boxes. One thread at a time; ONNX Runtime's own worker threads wait
without spinning and end with the session.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import DeviceError, ModelError
from pipeline.metrics import available_cores
from stages.backends import gpu_providers
from stages.backends.backend import Array, Backend, check_file, check_tensor
from stages.backends.binding import BoundRun
from stages.backends.cuda_driver import cuda_devices
from stages.backends.gpu_providers import CUDA, TENSORRT
from stages.decoders.decoder import TensorInfo

if TYPE_CHECKING:
    import onnxruntime as ort

_CPU: Final = "CPUExecutionProvider"
_NAMES: Final = {CUDA: "CUDA", TENSORRT: "TensorRT"}
_INSTALL: Final = "install the GPU libraries with pip install 'rackfocus[cuda]'"
_FALLBACK: Final = "use --device cpu, or set infer.allow_fallback: true to run on the CPU anyway"
_TENSORRT_FALLBACK: Final = "infer.allow_fallback: true runs on CUDA or the CPU instead"
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


def import_onnxruntime() -> ModuleType:
    """Return the package `onnxruntime`.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"ONNX Runtime does not load ({error}): install the project again with pip install -e ."
        ) from error
    module: ModuleType = onnxruntime
    return module


class OnnxBackend(Backend):
    """One ONNX file in one ONNX Runtime session.

    Args:
        path: the .onnx file.
        device: "auto" (CUDA where driver and session both come up, else the CPU, with the reason
            kept), "cpu", "cuda" or "cuda:N".
        threads: threads for one run on the CPU; None for `default_threads`.
        allow_fallback: run on CUDA or the CPU when what was asked for is missing, and say so.
        spin: let idle worker threads wait in a busy loop. For measurements only.
        provider: what runs the graph on the GPU: "auto" (CUDA), "cuda" or "tensorrt". The latter
            two are demands, also where the device is "auto".
        precision: of TensorRT's sums, "fp32", "fp16" or "bf16"; the others obey the file.
        gpu_memory_bytes: the most that CUDA's arena may take; None for no limit.
        chosen: why this backend, where nothing was asked for; stands in the report's reason.
        note: told before something takes minutes.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        allow_fallback: bool = False,
        spin: bool = False,
        provider: str = "auto",
        precision: str = "fp32",
        gpu_memory_bytes: int | None = None,
        chosen: str = "",
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._path = path
        self._requested = device
        self._threads = threads
        self._allow_fallback = allow_fallback
        self._spin = spin
        self._requested_provider = provider
        self._precision = precision
        self._gpu_memory_bytes = gpu_memory_bytes
        self._chosen = chosen
        self._note = note
        self._session: ort.InferenceSession | None = None
        self._bound: BoundRun | None = None
        self._device = ""
        self._provider = ""
        self._reason = ""

    def open(self) -> None:
        """Load the file; see `Backend.open`."""
        if self._session is not None:
            return
        check_file(self._path)
        if self._requested == "cpu" and self._requested_provider != "auto":
            raise DeviceError(
                f"provider '{self._requested_provider}' runs on a GPU, but device 'cpu' was asked "
                "for: take one of the two back"
            )
        if self._precision != "fp32" and self._requested_provider != "tensorrt":
            raise ModelError(
                f"precision '{self._precision}' was asked for, but ONNX Runtime runs a file as it "
                "is written unless infer.provider is tensorrt: give a file of that precision, or "
                "another backend"
            )
        if self._threads is None:
            self._threads = default_threads(self._path.stat().st_size)
        ort = import_onnxruntime()
        # Failing providers are reported by us with a remedy; ONNX Runtime would print its own.
        ort.set_default_logger_severity(_QUIET)
        session, problems = self._open_gpu()
        asked = self._asked()
        if session is None:
            if self._demanded() and not self._allow_fallback:
                with_tensorrt = self._requested_provider == "tensorrt"
                raise DeviceError(
                    f"{'' if with_tensorrt else 'device '}'{asked}' was asked for, but "
                    f"{problems[0]}; {_TENSORRT_FALLBACK if with_tensorrt else _FALLBACK}"
                )
            session = self._load([_CPU])
        self._provider = session.get_providers()[0]
        self._device = "cpu" if self._provider == _CPU else f"cuda:{self._cuda_index()}"
        self._reason = "; ".join(problems) or f"asked for {asked}"
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
        check_tensor(self._path.name, want, tensor)
        try:
            if self._provider != _CPU:
                return self._bound_run(session, tensor)
            names = [info.name for info in self.outputs]
            values = session.run(names, {want.name: tensor})
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelError(
                f"{self._path.name} failed on {tensor.dtype.name} input {list(tensor.shape)} "
                f"with {self._provider}: {_first_line(error)}"
            ) from error
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def describe(self) -> dict[str, object]:
        """Return what runs the graph and why, for the report."""
        wanted = TENSORRT if self._requested_provider == "tensorrt" else CUDA
        return {
            "name": "onnx",
            "requested": self._asked(),
            "device": self._device,
            "provider": self._provider,
            "reason": "; ".join(filter(None, (self._chosen, self._reason))),
            "fallback": self._demanded() and self._provider not in ("", wanted),
            "threads": self._threads,
        }

    def close(self) -> None:
        """Release the session and its buffers."""
        self._bound = None
        self._session = None

    def _asked(self) -> str:
        if self._requested_provider == "auto":
            return self._requested
        return f"{self._requested_provider} on {self._requested}"

    def _demanded(self) -> bool:
        return self._requested not in ("auto", "cpu") or self._requested_provider != "auto"

    def _cuda_index(self) -> int:
        return int(self._requested.partition(":")[2] or 0)

    def _bound_run(self, session: ort.InferenceSession, tensor: Array) -> dict[str, Array]:
        if self._bound is None or self._bound.shape != tensor.shape:
            self._bound = None  # gives its memory back before the next takes some
            place, _, index = self._device.partition(":")
            self._bound = BoundRun(
                session,
                self.outputs,
                tensor.shape,
                tensor.dtype,
                device=place,
                index=int(index or 0),
            )
        return self._bound.run(tensor)

    def _open_gpu(self) -> tuple[ort.InferenceSession | None, list[str]]:
        """Return a session that really runs on the GPU, or None; and what was missing, in order."""
        if self._requested == "cpu":
            return None, []
        count, problem = cuda_devices()
        if count == 0:
            return None, [problem]
        if self._cuda_index() >= count:
            return None, [f"there are {count} GPUs, numbered from 0"]
        attempts = [TENSORRT] if self._requested_provider == "tensorrt" else [CUDA]
        if attempts == [TENSORRT] and self._allow_fallback:
            attempts.append(CUDA)
        problems: list[str] = []
        for provider in attempts:
            session, problem = self._open_provider(provider)
            if session is not None:
                return session, problems
            problems.append(problem)
        return None, problems

    def _open_provider(self, provider: str) -> tuple[ort.InferenceSession | None, str]:
        import onnxruntime as ort

        if provider not in ort.get_available_providers():
            return None, f"this ONNX Runtime is built without {_NAMES[provider]} ({_INSTALL})"
        # Finds CUDA and cuDNN in the environment's own packages. Costs 50 ms and 200 MB, so it is
        # done only where a GPU is present.
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
        index = self._cuda_index()
        chain: list[Any] = [
            (CUDA, gpu_providers.cuda_options(index, self._gpu_memory_bytes)),
            _CPU,
        ]
        remedy = _INSTALL
        if provider == TENSORRT:
            remedy = gpu_providers.tensorrt_remedy(getattr(ort, "cuda_version", ""))
            missing = gpu_providers.load_tensorrt()
            if missing:
                return None, f"{missing}: {remedy}"
            folder = gpu_providers.engine_folder(self._path, self._precision)
            if self._note is not None and not any(folder.glob("*.engine")):
                self._note(
                    f"TensorRT builds its engine for {self._path.name}: this takes minutes, once; "
                    f"it is kept in {folder}"
                )
            # What TensorRT does not know runs on CUDA, and what that does not know on the CPU.
            options = gpu_providers.tensorrt_options(index, folder, self._precision)
            chain.insert(0, (TENSORRT, options))
        try:
            session = self._load(chain)
        except ModelError as error:
            # Loads on the CPU, or raises: then it is the file that is wrong and not the device.
            self._load([_CPU])
            return None, f"ONNX Runtime failed on it: {_first_line(error.__cause__ or error)}"
        # A session that could not have its provider comes up on the next one without an error.
        if session.get_providers()[0] != provider:
            return None, f"ONNX Runtime could not load its {_NAMES[provider]} provider ({remedy})"
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
            # Without its own fallback, which prints a banner and goes on with other providers.
            return ort.InferenceSession(
                str(self._path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelError(
                f"{self._path} is not a model that ONNX Runtime can read: {_first_line(error)}"
            ) from error


def _info(node: Any) -> TensorInfo:  # noqa: ANN401 - the runtime's own type has no public name
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorInfo(node.name, shape, _DTYPES.get(node.type, node.type))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
