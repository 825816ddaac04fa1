"""Runs of one input shape through buffers that lie on the GPU and are bound once.

Without it ONNX Runtime takes memory for the input and every output anew on each run. Not
thread-safe; lives no longer than its session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.backends.backend import Array
from stages.decoders.decoder import TensorInfo

if TYPE_CHECKING:
    import onnxruntime as ort


class BoundRun:
    """A session's input and outputs, bound to a device for one input shape.

    The first run lets ONNX Runtime place the outputs. From the second on, those whose declared
    shape is settled by the input's have a buffer of their own; the others, such as the rows that an
    NMS inside the graph leaves, are placed anew on each run.

    Args:
        session: where the buffers are used; `device` must be where it runs.
        outputs: its outputs, in order, with dtypes by numpy's names.
        shape: the input's, fixed from here on.
        device: "cuda" or "cpu".
        index: the device's number.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        outputs: Sequence[TensorInfo],
        shape: Sequence[int],
        dtype: np.dtype[Any],
        *,
        device: str,
        index: int = 0,
    ) -> None:
        import onnxruntime as ort

        self.shape = tuple(shape)
        self._session = session
        self._outputs = tuple(outputs)
        self._place = (device, index)
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, index)
        self._binding = session.io_binding()
        entry = session.get_inputs()[0]
        self._binding.bind_ortvalue_input(entry.name, self._input)
        self._open = tuple(info.name for info in outputs)
        sizes = {
            declared: given
            for declared, given in zip(entry.shape, shape, strict=True)
            if isinstance(declared, str)
        }
        self._declared = [settled(node.shape, sizes) for node in session.get_outputs()]
        self._fixed = False

    def run(self, tensor: Array) -> dict[str, Array]:
        """Return every output by name, on the host and owned by the caller.

        Args:
            tensor: of the shape and dtype that were bound. Copied to the device; not modified.
        """
        self._input.update_inplace(np.ascontiguousarray(tensor))
        for name in self._open:
            # On every run: else the array of the last one is taken for a buffer of that size.
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        found = {}
        values = self._binding.get_outputs()
        for info, value in zip(self._outputs, values, strict=True):
            array = value.numpy()
            # From a GPU this is a copy; on the CPU it is the buffer that the next run writes.
            found[info.name] = array.copy() if value.device_name() == "cpu" else array
        if not self._fixed:
            self._fix_outputs(found)
        return found

    def _fix_outputs(self, seen: Mapping[str, Array]) -> None:
        """Give each output whose size is certain its own buffer."""
        import onnxruntime as ort

        still_open = []
        for info, declared in zip(self._outputs, self._declared, strict=True):
            # Files may declare shapes that are not what comes out, and a buffer would be refused.
            if declared is not None and declared == seen[info.name].shape:
                value = ort.OrtValue.ortvalue_from_shape_and_type(
                    list(declared), seen[info.name].dtype, *self._place
                )
                self._binding.bind_ortvalue_output(info.name, value)
            else:
                still_open.append(info.name)
        self._open = tuple(still_open)
        self._fixed = True


def settled(
    declared: Sequence[int | str | None], sizes: Mapping[str, int]
) -> tuple[int, ...] | None:
    """Return a shape in numbers, or None where a side stays open.

    Args:
        declared: as ONNX Runtime gives it: a number, the name of an open side, or None.
        sizes: the numbers that are known for names.
    """
    shape = tuple(sizes.get(side) if isinstance(side, str) else side for side in declared)
    known = tuple(side for side in shape if isinstance(side, int) and side >= 0)
    return known if len(known) == len(shape) else None
