"""Graphs run by OpenVINO on the CPU: .onnx files as they are, in the precision that is asked for.

Knows nothing of pictures and boxes. One thread at a time; OpenVINO's own worker threads end with
`close`. What it computes is not bit for bit what ONNX Runtime computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np

from pipeline.errors import DeviceError, ModelError
from stages.backends.backend import Array, Backend, check_file, check_tensor
from stages.backends.onnx import default_threads
from stages.decoders.decoder import TensorInfo

_INSTALL: Final = 'install it with pip install -e ".[openvino]", or use --backend onnx'
_HINTS: Final = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_TELEMETRY: Final = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Return the package `openvino`, imported without its telemetry.

    As it is shipped (2026.4), importing it reports to a web service from a forked process, leaves a
    thread behind and writes ~/intel. It does without where that package is not installed, so it is
    hidden for as long as the import takes.

    Raises:
        DeviceError: OpenVINO is not installed, or does not load.
    """
    loaded = sys.modules.get("openvino")
    if loaded is not None:
        return loaded
    hidden = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # so that importing it fails
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(f"OpenVINO does not load ({error}): {_INSTALL}") from error
    finally:
        del sys.modules[_TELEMETRY]
        if hidden is not None:
            sys.modules[_TELEMETRY] = hidden
    module: ModuleType = openvino
    return module


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_: ClassVar = [
        ("ss_sp", ctypes.c_void_p),
        ("ss_flags", ctypes.c_int),
        ("ss_size", ctypes.c_size_t),
    ]


@contextlib.contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Give this thread its own signal stack back after OpenVINO has been loaded in it.

    OpenVINO's CPU plugin (2026.4) puts another in its place and frees that when it is unloaded,
    from whichever thread that happens in. The next signal, a Ctrl-C for one, would then be handled
    on memory that is gone: the process dies on the spot, its outputs unfinished.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class OpenVinoBackend(Backend):
    """One ONNX file, compiled by OpenVINO for the CPU.

    Args:
        path: the .onnx file.
        device: "auto" or "cpu"; a GPU that is asked for is an error.
        threads: threads for one run; None for `default_threads`.
        allow_fallback: run on the CPU, or in fp32, when something else was asked for, and say so.
        precision: "fp32", "fp16" or "bf16", of the sums inside; inputs and outputs stay what the
            file says.
        chosen: why this backend, where nothing was asked for; stands in the report's reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        allow_fallback: bool = False,
        precision: str = "fp32",
        chosen: str = "",
    ) -> None:
        super().__init__()
        self._places: dict[str, int] = {}
        self._path = path
        self._requested = device
        self._threads = threads
        self._allow_fallback = allow_fallback
        self._precision = precision
        self._chosen = chosen
        self._computes_in = precision
        self._core: Any = None
        self._request: Any = None
        self._problems: list[str] = []

    def open(self) -> None:
        """Load and compile the file; see `Backend.open`."""
        if self._request is not None:
            return
        check_file(self._path)
        if self._threads is None:
            self._threads = default_threads(self._path.stat().st_size)
        self._problems = []
        self._computes_in = self._precision
        if self._requested not in ("auto", "cpu"):
            self._miss(
                f"device '{self._requested}' was asked for, but backend 'openvino' runs on the CPU",
                "use --device cpu, or --backend onnx for a GPU",
            )
        with keeping_signal_stack():
            self._load()

    def _load(self) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        # Its pool of threads would otherwise outlive it.
        core.set_property({"FORCE_TBB_TERMINATE": True})
        model, compiled = self._compile(core, _HINTS[self._precision])
        if _type_name(compiled.get_property("INFERENCE_PRECISION_HINT")) != _HINTS[self._precision]:
            # Asked for fp16, a CPU that has only bfloat16 takes that without a word.
            self._miss(
                f"precision '{self._precision}' was asked for, but this CPU does not compute in it",
                "use infer.precision: fp32",
            )
            model, compiled = self._compile(core, _HINTS["fp32"])
            self._computes_in = "fp32"
        self._core = core
        self._request = compiled.create_infer_request()
        inputs = tuple(_info(port) for port in model.inputs)
        self._places = {info.name: place for place, info in enumerate(inputs)}
        self.inputs = self._free(inputs)
        self.outputs = tuple(_info(port) for port in model.outputs)
        self.metadata = _metadata(model)

    def run(self, tensor: Array) -> dict[str, Array]:
        """Run the graph on one batch; see `Backend.run`."""
        request = self._request
        if request is None:
            raise ModelError(f"{self._path.name} is not open: call open() before run()")
        want = self.inputs[0]
        check_tensor(self._path.name, want, tensor)
        feeds = {want.name: tensor, **self._constants(len(tensor))}
        try:
            # Not `infer`: with one thread it loses errors and leaves whatever was in the outputs
            # (seen with 2026.4.1). The input is shared until the next run sets its own.
            request.start_async(
                {self._places[name]: value for name, value in feeds.items()}, share_inputs=True
            )
            request.wait()
            return {
                # The request writes into the same memory on its next run.
                info.name: np.array(request.get_output_tensor(place).data)
                for place, info in enumerate(self.outputs)
            }
        except Exception as error:  # OpenVINO's errors share no base class
            raise ModelError(
                f"{self._path.name} failed on {tensor.dtype.name} input {list(tensor.shape)} "
                f"with OpenVINO: {_reason(error)}"
            ) from error

    def describe(self) -> dict[str, object]:
        """Return what runs the graph and why, for the report."""
        reasons = (self._chosen, *(self._problems or [f"asked for {self._asked()}"]))
        return {
            "name": "openvino",
            "requested": self._asked(),
            "device": "cpu",
            "provider": "OpenVINO",
            "reason": "; ".join(filter(None, reasons)),
            "fallback": bool(self._problems),
            "threads": self._threads,
            "precision": self._computes_in,
        }

    def close(self) -> None:
        """Release the compiled graph and end OpenVINO's threads."""
        self._request = None
        self._core = None

    def _asked(self) -> str:
        plain = self._precision == "fp32"
        return self._requested if plain else f"{self._precision} on {self._requested}"

    def _miss(self, problem: str, remedy: str) -> None:
        if not self._allow_fallback:
            raise DeviceError(f"{problem}; {remedy}, or set infer.allow_fallback: true")
        self._problems.append(problem)

    def _compile(self, core: Any, hint: str) -> tuple[Any, Any]:  # noqa: ANN401 - see `_info`
        """Return the model as it was read, and compiled."""
        settings = {
            # Without it OpenVINO takes bfloat16 where the CPU has it, and results change.
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            # Decoding and encoding share the cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = _read(self._path)
            compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO's errors share no base class
            raise ModelError(
                f"{self._path} is not a model that OpenVINO can run: {_reason(error)}; ONNX "
                "Runtime takes more files: --backend onnx"
            ) from error
        return model, compiled


def _read(path: Path) -> Any:  # noqa: ANN401 - see `_info`
    from openvino.frontend import FrontEndManager

    # Of its readers the one for ONNX: the others print what they think of a broken file.
    reader = FrontEndManager().load_by_framework("onnx")
    model = reader.convert(reader.load(str(path)))
    if not model.outputs:
        raise ValueError("it has no outputs")  # a text may happen to be a message without fields
    return model


def _info(port: Any) -> TensorInfo:  # noqa: ANN401 - OpenVINO is imported late
    shape = tuple(int(side.get_length()) if side.is_static else None for side in port.partial_shape)
    return TensorInfo(port.get_any_name(), shape, _dtype(port.element_type))


def _dtype(kind: Any) -> str:  # noqa: ANN401 - see `_info`
    name = _type_name(kind)
    # OpenVINO gives bfloat16 as numpy's float16, which it is not.
    return name if name == "bf16" else np.dtype(kind.to_dtype()).name


def _type_name(kind: Any) -> str:  # noqa: ANN401 - see `_info`
    return str(kind.get_type_name())


def _metadata(model: Any) -> dict[str, str]:  # noqa: ANN401 - see `_info`
    """Return ONNX's metadata_props, which OpenVINO's reader keeps under "framework"."""
    known = dict(model.rt_info.items())
    if "framework" not in known:
        return {}
    return {key: value.astype(str) for key, value in model.rt_info["framework"].items()}


def _reason(error: BaseException) -> str:
    """Return what OpenVINO says, in one line, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [
        line
        for line in lines
        if line and not line.startswith(("Exception from ", "FrontEnd API failed", "Summary:"))
    ]
    return "; ".join(told)[:300] or type(error).__name__
