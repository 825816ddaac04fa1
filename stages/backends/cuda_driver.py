"""Whether an NVIDIA GPU can be used at all, asked of the driver itself.

ONNX Runtime's list of available providers names what its wheel was built for, not what is there,
and a session that cannot have CUDA falls back to the CPU without an error. Any thread may call
this.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_CUDA_SUCCESS: Final = 0
_CUDA_ERROR_NO_DEVICE: Final = 100


def cuda_devices() -> tuple[int, str]:
    """Return how many GPUs the driver offers and, where that is 0, the reason in words."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0, f"no NVIDIA driver is installed ({library} was not found)"
    status = driver.cuInit(0)
    if status == _CUDA_ERROR_NO_DEVICE:
        return 0, "the NVIDIA driver found no GPU"
    if status != _CUDA_SUCCESS:
        return 0, f"the NVIDIA driver did not start (cuInit returned {status})"
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != _CUDA_SUCCESS:
        return 0, f"the NVIDIA driver does not count its GPUs (cuDeviceGetCount returned {status})"
    if count.value == 0:
        return 0, "the NVIDIA driver found no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    return count.value, ""
