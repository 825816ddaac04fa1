"""Networks run by torch, on the CPU or on CUDA, never on another device than the report says.

Knows nothing of pictures, boxes, or where networks come from: it is given a function that makes
one. One thread at a time. torch keeps its number of threads for the whole process: it is set while
a backend is open on the CPU, and put back at close.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from pipeline.errors import DeviceError, ModelError
from stages.backends.backend import Array, Backend, check_tensor
from stages.backends.cuda_driver import cuda_devices
from stages.backends.network import Network
from stages.backends.onnx import default_threads
from stages.decoders.decoder import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["fp32", "fp16", "bf16"]

_INSTALL: Final = 'pip install -e ".[torch]"'
_FALLBACK: Final = "use --device cpu, or set infer.allow_fallback: true to run on the CPU anyway"
_GRAY: Final = 114


class TorchBackend(Backend):
    """One torch network in evaluation mode.

    Args:
        name: how messages call it.
        make: makes the network; called at each opening, after the device was found.
        device: "auto" (CUDA where driver and torch both come up, else the CPU, with the reason
            kept), "cpu", "cuda" or "cuda:N".
        threads: threads for one run on the CPU; None for `default_threads`.
        precision: of the sums: fp32, or autocast to bf16, or on CUDA to fp16.
        allow_fallback: run on the CPU when CUDA was asked for and is missing, and say so.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Network],
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: Precision = "fp32",
        allow_fallback: bool = False,
    ) -> None:
        self._name = name
        self._make = make
        self._requested = device
        self._threads = threads
        self._precision = precision
        self._allow_fallback = allow_fallback
        self._module: nn.Module | None = None
        self._device = ""
        self._provider = ""
        self._reason = ""
        self._stream: torch.cuda.Stream | None = None
        self._pinned: torch.Tensor | None = None
        self._threads_before: int | None = None

    def open(self) -> None:
        """Make the network and run it once; see `Backend.open`.

        Raises:
            DeviceError: also where torch is not installed.
        """
        if self._module is not None:
            return
        try:
            import torch
        except ImportError as error:
            raise DeviceError(
                f"the backend torch was asked for, but torch is not installed: {_INSTALL}"
            ) from error
        self._choose_device()
        network = self._make()
        if self.metadata and network.metadata != self.metadata:
            raise ModelError(f"{self._name}: the weights are not those of the first opening")
        if self._threads is None:
            values = (*network.module.parameters(), *network.module.buffers())
            self._threads = default_threads(sum(v.numel() * v.element_size() for v in values))
        self.inputs, self.metadata = (network.input,), dict(network.metadata)
        self._module = network.module.eval()
        try:
            # The layout that cuDNN and oneDNN convolve in without reordering first.
            self._module.to(self._device, memory_format=torch.channels_last)
            if self._device == "cpu":
                self._threads_before = torch.get_num_threads()
            else:
                self._stream = torch.cuda.Stream(self._device)
                torch.cuda.synchronize(self._device)  # the copy went by another stream
            self.outputs = self._outputs(network)
        except ModelError:
            self.close()
            raise
        except Exception as error:  # torch's errors share no base class
            self.close()
            raise ModelError(
                f"{self._name} could not be loaded on {self._device}: {_first_line(error)}"
            ) from error

    def run(self, tensor: Array) -> dict[str, Array]:
        """Run the network on one batch; see `Backend.run`. Floating outputs are float32."""
        if self._module is None:
            raise ModelError(f"{self._name} is not open: call open() before run()")
        check_tensor(self._name, self.inputs[0], tensor)
        values = self._compute(tensor)
        return {info.name: value for info, value in zip(self.outputs, values, strict=True)}

    def describe(self) -> dict[str, object]:
        """Return what runs the network and why, for the report."""
        return {
            "name": "torch",
            "requested": self._requested,
            "device": self._device,
            "provider": self._provider,
            "reason": self._reason,
            "fallback": self._requested not in ("auto", "cpu") and self._device == "cpu",
            "threads": self._threads if self._device == "cpu" else None,
            "precision": self._precision,
        }

    def close(self) -> None:
        """Release the network and its memory on the GPU, and put torch's threads back."""
        if self._module is None:
            return
        import torch

        self._module = self._stream = self._pinned = None
        if self._device != "cpu":
            torch.cuda.empty_cache()
        before, self._threads_before = self._threads_before, None
        if before is not None and before != torch.get_num_threads():
            torch.set_num_threads(before)

    def _choose_device(self) -> None:
        import torch

        index, problem = 0, ""
        if self._requested != "cpu":
            index = int(self._requested.partition(":")[2] or 0)
            problem = _cuda_problem(index)
            if problem and self._requested != "auto" and not self._allow_fallback:
                raise DeviceError(
                    f"device '{self._requested}' was asked for, but {problem}; {_FALLBACK}"
                )
        on_cpu = self._requested == "cpu" or bool(problem)
        if on_cpu and self._precision == "fp16":
            why = f" ({problem})" if problem else ""
            raise DeviceError(
                f"precision fp16 is for CUDA, and {self._name} would run on the CPU{why}: use "
                "bf16 or fp32"
            )
        self._device = "cpu" if on_cpu else f"cuda:{index}"
        self._provider = f"torch {torch.__version__} {'cpu' if on_cpu else 'cuda'}"
        self._reason = problem or f"asked for {self._requested}"

    def _outputs(self, network: Network) -> tuple[TensorInfo, ...]:
        """Return what a run on a gray picture gives. First axes count pictures or finds."""
        (width, height), open_size = network.size_wh, None in network.input.shape[2:]
        values = self._compute(np.full((1, 3, height, width), _GRAY, np.float32))
        if len(values) != len(network.outputs):
            raise ModelError(
                f"{self._name} returns {len(values)} tensors, expected {len(network.outputs)}: "
                f"{', '.join(network.outputs)}"
            )
        return tuple(
            TensorInfo(
                name,
                # What belongs to the picture's size is behind the channels.
                tuple(
                    None if axis == 0 or (axis > 1 and open_size) else side
                    for axis, side in enumerate(value.shape)
                ),
                value.dtype.name,
            )
            for name, value in zip(network.outputs, values, strict=True)
        )

    def _compute(self, tensor: Array) -> list[Array]:
        module = self._module
        if module is None:
            raise ModelError(f"{self._name} is not open")
        try:
            with self._settings():
                values = module(self._send(tensor))
                several = values if isinstance(values, tuple | list) else (values,)
                return self._fetch(several)
        except Exception as error:  # torch's errors share no base class
            raise ModelError(
                f"{self._name} failed on {tensor.dtype.name} input {list(tensor.shape)} "
                f"with {self._provider}: {_first_line(error)}"
            ) from error

    def _send(self, tensor: Array) -> torch.Tensor:
        import torch

        # torch warns of read-only arrays, which it cannot represent.
        host = torch.from_numpy(np.require(tensor, requirements=["C", "W"]))
        if self._stream is not None:
            if self._pinned is None or self._pinned.shape != host.shape:
                self._pinned = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
            # Free again: each run ends with waiting for its results.
            self._pinned.copy_(host)
            host = self._pinned.to(self._device, non_blocking=True)
        return host.contiguous(memory_format=torch.channels_last)

    def _fetch(self, values: Collection[torch.Tensor]) -> list[Array]:
        import torch

        hosts = []
        for value in values:
            # Decoders take float32, and NumPy has no bfloat16.
            found = (value.float() if value.is_floating_point() else value).contiguous()
            if self._stream is not None:
                # torch recycles pinned memory once the array over it is gone.
                host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
                found = host.copy_(found, non_blocking=True)
            hosts.append(found)
        if self._stream is not None:
            # The only wait for the GPU.
            self._stream.synchronize()
        return [host.numpy() for host in hosts]

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Compute here as asked for."""
        import torch

        # Each thread of the process has the number that was set when it first came, or by itself.
        # Only where it differs: setting it makes oneDNN forget the convolutions it has prepared.
        if self._device == "cpu" and self._threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._threads)
        kind = self._device.partition(":")[0]
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(
                torch.autocast(kind, dtype=dtype, enabled=self._precision != "fp32")
            )
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))
                # TF32 keeps ten bits of a product, and the quickest of several algorithms is not
                # the same on every run. Matrix products are without TF32 unless somebody asks.
                stack.enter_context(
                    torch.backends.cudnn.flags(
                        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                    )
                )
            yield


def _cuda_problem(index: int) -> str:
    """Return why torch cannot use that GPU; "" where it can."""
    import torch

    count, problem = cuda_devices()
    if count == 0:
        return problem
    if index >= count:
        return f"there are {count} GPUs, numbered from 0"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built for the CPU only ({_INSTALL})"
    try:
        # Starts CUDA and one kernel: a driver that is too old and a GPU that this build knows
        # nothing of show here.
        torch.zeros(1, device=f"cuda:{index}")
    except Exception as error:  # noqa: BLE001 - torch's errors share no base class
        return f"torch {torch.__version__} failed on it: {_first_line(error)}"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
