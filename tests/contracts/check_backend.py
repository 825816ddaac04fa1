"""What every `Backend` must keep, whatever runs its graph. One `Subject` plugs a backend in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from pipeline.errors import DeviceError, ModelError

KEYS = {"name", "requested", "device", "provider", "reason", "fallback", "threads"}


@dataclass(frozen=True)
class Subject:
    """A backend around a small graph.

    `make` takes `device` and `allow_fallback` by name and returns a backend that is not open.
    """

    make: Callable
    tensors: Sequence[np.ndarray]
    """At least two inputs that the graph takes, of other values; best of several batch sizes."""
    answer: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None
    """What shall come out, worked out by other means; None where only the form is checked."""
    fails: np.ndarray | None = None
    """An input of the right form on which the graph itself fails; None where there is none."""
    rtol: float = 1e-5
    metadata: Mapping[str, str] = field(default_factory=dict)
    missing_device: str = "cuda:99"
    wrong_dtype: str = "int16"


def check_backend(subject):
    """Check the contract of `stages.backends.backend.Backend`."""
    backend = subject.make()
    backend.close()  # never opened: nothing to do, and no error
    _refuses_to_run(backend, subject)

    backend.open()
    backend.open()
    _check_description(backend, subject)
    first = [_check_run(backend, subject, tensor) for tensor in subject.tensors]
    _check_ownership(backend, subject)
    _check_errors(backend, subject)
    _check_other_thread(backend, subject, first)
    backend.close()
    backend.close()
    _refuses_to_run(backend, subject)

    threads = psutil.Process().num_threads()
    backend.open()
    for tensor, wanted in zip(subject.tensors, first, strict=True):
        _same(backend.run(tensor), wanted)
    backend.close()
    assert psutil.Process().num_threads() <= threads, "threads are left after close"

    _check_missing_device(subject)


def check_backend_file(make, path, good, capfd):
    """Check how a backend refuses what is no model: one line that names the file, nothing printed.

    Args:
        make: builds a backend, not open, around a path.
        path: where files may be written, not there yet.
        good: the bytes of a file that it takes.
        capfd: pytest's fixture.
    """
    faults = {
        "missing": ("there is no model file", None),
        "empty": (r"is empty \(0 bytes\)", b""),
        "text": ("not a model", b"I am a text"),
        "zeros": ("not a model", bytes(64)),
        "truncated": ("not a model", good[: len(good) // 2]),
    }
    for name, (message, content) in faults.items():
        if content is not None:
            path.write_bytes(content)
        _refuses_to_open(make(path), path, message, name)
    path.unlink()
    path.mkdir()
    _refuses_to_open(make(path), path, "is a directory", "directory")
    path.rmdir()
    assert capfd.readouterr() == ("", "")

    # The same object opens once the file is right.
    backend = make(path)
    with pytest.raises(ModelError):
        backend.open()
    path.write_bytes(good)
    backend.open()
    assert backend.inputs
    backend.close()


def _refuses_to_open(backend, path, message, name):
    with pytest.raises(ModelError, match=message) as caught:
        backend.open()
    assert not isinstance(caught.value, DeviceError), f"{name}: the file is wrong, not the device"
    assert str(path) in str(caught.value), name
    assert "\n" not in str(caught.value), name
    backend.close()


def _refuses_to_run(backend, subject):
    with pytest.raises(ModelError, match="not open"):
        backend.run(subject.tensors[0])


def _check_description(backend, subject):
    assert len(backend.inputs) == 1
    assert backend.outputs
    for info in (*backend.inputs, *backend.outputs):
        assert info.name
        np.dtype(info.dtype)
        assert all(side is None or side > 0 for side in info.shape)
    for key, value in subject.metadata.items():
        assert backend.metadata[key] == value
    about = backend.describe()
    assert about.keys() >= KEYS
    assert about["fallback"] is False
    assert about["reason"]
    assert about["device"] == "cpu" or about["device"].startswith("cuda:")
    if about["device"] == "cpu":
        assert about["threads"] >= 1


def _check_run(backend, subject, tensor):
    before = tensor.copy()
    outputs = backend.run(tensor)
    assert np.array_equal(tensor, before), "run changed its input"
    assert list(outputs) == [info.name for info in backend.outputs]
    for info in backend.outputs:
        array = outputs[info.name]
        assert array.dtype.name == info.dtype
        assert array.ndim == len(info.shape)
        for declared, given in zip(info.shape, array.shape, strict=True):
            assert declared in (None, given)
    if subject.answer is not None:
        wanted = subject.answer(tensor)
        assert outputs.keys() == wanted.keys()
        for name, array in outputs.items():
            np.testing.assert_allclose(array, wanted[name], rtol=subject.rtol, atol=1e-6)
    _same(backend.run(tensor), outputs)
    # Frames are shared between stages, so their arrays may be read-only; or views of others.
    frozen = tensor.copy()
    frozen.flags.writeable = False
    _same(backend.run(frozen), outputs)
    _same(backend.run(np.asfortranarray(tensor)), outputs)
    return outputs


def _check_ownership(backend, subject):
    one, other = subject.tensors[0], subject.tensors[1]
    if other.shape != one.shape:
        other = one[::-1].copy() if len(one) > 1 else (one + 1).astype(one.dtype)
    kept = backend.run(one)
    copies = {name: array.copy() for name, array in kept.items()}
    backend.run(other)
    _same(kept, copies)
    for array in kept.values():
        assert array.flags.writeable
        array[...] = 0
    _same(backend.run(one), copies)


def _check_errors(backend, subject):
    tensor = subject.tensors[0]
    want = backend.inputs[0]
    with pytest.raises(ModelError) as caught:
        backend.run(tensor.astype(subject.wrong_dtype))
    assert want.dtype in str(caught.value)
    assert subject.wrong_dtype in str(caught.value)
    wrong = [tensor[None], tensor[0]]
    side = max((k for k, size in enumerate(want.shape) if size is not None), default=None)
    if side is not None:
        wrong.append(np.repeat(tensor, 2, axis=side))
    for other in wrong:
        with pytest.raises(ModelError) as caught:
            backend.run(other)
        assert str(list(other.shape)) in str(caught.value)
        for size in filter(None, want.shape):
            assert str(size) in str(caught.value)
    answer = backend.run(tensor)
    if subject.fails is not None:
        with pytest.raises(ModelError, match="failed on") as caught:
            backend.run(subject.fails)
        assert str(list(subject.fails.shape)) in str(caught.value)
        assert "\n" not in str(caught.value)
    _same(backend.run(tensor), answer)


def _check_other_thread(backend, subject, first):
    """Opened on one thread, run on another, as a pipeline does."""
    found = []
    worker = threading.Thread(target=lambda: found.append(backend.run(subject.tensors[0])))
    worker.start()
    worker.join(30)
    assert found, "a run on another thread gave nothing"
    _same(found[0], first[0])


def _check_missing_device(subject):
    with pytest.raises(DeviceError) as caught:
        subject.make(device=subject.missing_device).open()
    assert subject.missing_device in str(caught.value)
    assert "allow_fallback" in str(caught.value)
    backend = subject.make(device=subject.missing_device, allow_fallback=True)
    backend.open()
    about = backend.describe()
    assert about["fallback"] is True
    assert subject.missing_device in about["requested"]
    assert about["device"] != subject.missing_device
    backend.run(subject.tensors[0])
    backend.close()


def _same(outputs, wanted):
    """The same numbers, to the last bit."""
    assert list(outputs) == list(wanted)
    for name, array in outputs.items():
        assert np.array_equal(array, wanted[name]), name
