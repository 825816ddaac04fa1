"""A model that is ready to use: a backend that runs its graph and a decoder that understands it.

`load_model` opens the file, looks at one real run, and asks recognition what the outputs mean; it
is called before any thread starts, so a wrong file ends in one message. A `LoadedModel` is shared
by the stages preprocess, infer and nms: only infer's thread runs, opens and closes it, the others
read its constant parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from stages.backends.backend import Backend
from stages.backends.choice import choose
from stages.decoders.decoder import GraphInfo, Preprocessing, Recognised, TensorInfo
from stages.decoders.metadata import KEY, stated
from stages.decoders.recognise import recognise
from stages.decoders.seal import check_seal
from stages.model_files import resolve_model, shipped_models

if TYPE_CHECKING:
    from stages.backends.network import Networks
    from stages.infer import InferConfig

Array = NDArray[np.generic]

_GRAY: Final = 114


class LoadedModel:
    """One graph, its decoder, and what is known about its file. See the module for threads."""

    def __init__(
        self,
        path: Path,
        backend: Backend,
        recognised: Recognised,
        *,
        batched_outputs: frozenset[str],
        sha256: str,
        certified: bool = False,
    ) -> None:
        self.path = path
        self.name = path.stem
        self.backend = backend
        self.decoder = recognised.decoder
        self.preprocessing: Preprocessing = recognised.preprocessing
        self.class_names = recognised.class_names
        self.reason = recognised.reason
        self.sha256 = sha256
        """Of the file, or of the weights where a network runs without one."""
        self.metadata = _own_metadata(backend.metadata)
        """What stands under our key in the file; empty where there is none. Not to be changed."""
        self.certified = certified
        """The file carries a digest that fits, and is used as its certificate says."""
        self._batch_axis = len(backend.inputs[0].shape) == 4
        self._batched_outputs = batched_outputs

    def open(self) -> None:
        """Open the backend where it is closed."""
        self.backend.open()

    def run(self, tensors: Sequence[Array]) -> list[dict[str, Array]]:
        """Return each picture's outputs; batch axes are kept, with size 1.

        Args:
            tensors: pictures without a batch axis, all of one shape. Not modified.

        Raises:
            ModelError: the tensors do not fit the graph, or the run failed.
        """
        if not self._batch_axis:
            return [self.backend.run(tensor) for tensor in tensors]
        if len(tensors) == 1:
            return [self.backend.run(tensors[0][None])]
        outputs = self.backend.run(np.stack(tensors))
        return [
            {
                name: array[row : row + 1] if name in self._batched_outputs else array
                for name, array in outputs.items()
            }
            for row in range(len(tensors))
        ]

    def blank(self) -> Array:
        """Return a gray picture as the graph takes it, without a batch axis, for warm-up."""
        return _blank(self.backend.inputs[0], self.preprocessing.size_wh)

    def describe(self) -> dict[str, object]:
        """Return the report's "model" section."""
        return {
            "name": self.metadata.get("name") or self.name,
            "sha256": self.sha256,
            "decoder": self.decoder.kind,
            "parity": self.metadata.get("parity"),
            "certified": self.certified,
            "licence": self.metadata.get("licence"),
            "source": self.metadata.get("source"),
            "reason": self.reason,
            "input_wh": list(self.preprocessing.size_wh),
            "classes": len(self.class_names),
        }

    def close(self) -> None:
        """Close the backend. Idempotent."""
        self.backend.close()


def load_model(
    config: InferConfig,
    note: Callable[[str], None],
    networks: Callable[[], Networks] | None = None,
) -> LoadedModel:
    """Return the model that the config names, opened and understood.

    Args:
        config: the settings of the infer stage.
        note: told what the recognition rests on and which device runs the graph, and why.
        networks: gives what the backend torch can run; asked only where that was chosen.

    Raises:
        ModelError: no such file, not a graph, not recognised with certainty, a batch the graph does
            not take, or class names that do not fit.
        DeviceError: the device or backend asked for is not there.
    """
    if config.model is None:
        raise ModelError(
            "no model is given: add --model FILE.onnx, or the name of a shipped one "
            f"({', '.join(shipped_models()) or 'none'})"
        )
    if config.backend == "torch":
        path, backend = Path(config.model), _torch_backend(config.model, config, networks)
    else:
        path = resolve_model(config.model, networks)
        backend = _backend(path, config, note)
    backend.open()
    try:
        model = _understand(path, backend, config)
    except ModelError as error:
        backend.close()
        raise type(error)(f"{path}: {error}") from error
    except BaseException:
        backend.close()
        raise
    note(f"model {model.name}: {model.reason}")
    about = backend.describe()
    fallback = f"instead of {about['requested']}, " if about["fallback"] else ""
    note(f"backend {about['name']} on {about['device']}: {fallback}{about['reason']}")
    return model


def _backend(path: Path, config: InferConfig, note: Callable[[str], None]) -> Backend:
    return choose(
        path,
        backend=config.backend,
        device=config.device,
        threads=config.threads,
        allow_fallback=config.allow_fallback,
        provider=config.provider,
        precision=config.precision,
        gpu_memory_bytes=config.gpu_memory_bytes,
        note=note,
    )


def _torch_backend(
    model: str, config: InferConfig, networks: Callable[[], Networks] | None
) -> Backend:
    from stages.backends.torch import TorchBackend

    if networks is None:
        raise ModelError(f"no networks for {model} were given to the backend torch")
    return TorchBackend(
        model,
        networks().maker(model, config.weights),
        device=config.device,
        threads=config.threads,
        precision=config.precision,
        allow_fallback=config.allow_fallback,
    )


def _understand(path: Path, backend: Backend, config: InferConfig) -> LoadedModel:
    if config.backend == "torch":
        # The weights were built here; a certificate speaks of a file's numbers.
        sealed, sha256 = False, str(_own_metadata(backend.metadata)["source_sha256"])
    else:
        sealed, sha256 = check_seal(path, backend.metadata), _sha256(path)
    overrides = {
        key: value
        for key in ("input_size", "fit", "pad_value", "pixel_order", "mean", "scale", "options")
        if (value := getattr(config, key)) is not None
    }
    graph = GraphInfo(backend.inputs, backend.outputs, backend.metadata)
    size_wh = _trial_size(graph, config)
    batched: frozenset[str] = frozenset()
    # Without a size there can be no trial; recognition then says what is missing.
    if size_wh is not None:
        single = _trial(backend, size_wh, 1)
        _check_numbers(backend, size_wh, single)
        seen = tuple(TensorInfo(name, a.shape, a.dtype.name) for name, a in single.items())
        graph = GraphInfo(backend.inputs, seen, backend.metadata)
    recognised = recognise(
        graph,
        decoder=config.decoder,
        class_names=_class_names(config.class_names),
        overrides=overrides,
    )
    if size_wh is not None and config.batch > 1:
        batched = _batched_outputs(backend, size_wh, config.batch, single)
    as_told = (
        not any(value != {} for value in overrides.values())
        and config.decoder is None
        and config.class_names is None
    )
    return LoadedModel(
        path,
        backend,
        recognised,
        batched_outputs=batched,
        sha256=sha256,
        certified=sealed and as_told,
    )


def _trial_size(graph: GraphInfo, config: InferConfig) -> tuple[int, int] | None:
    """Return the (width, height) of a trial run, or None where nothing tells it."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) not in (3, 4):
        return None
    shape = graph.inputs[0].shape[-3:]
    if 3 not in (shape[0], shape[2]):
        return None
    height, width = shape[1:] if shape[0] == 3 else shape[:2]
    wanted = config.input_size
    if wanted is None and None in (width, height):
        says = stated(graph.metadata)
        wanted = None if says is None else says.size_wh
    if width is not None and height is not None:
        # Where the user asks for another size than the graph's, recognition shows both.
        return width, height
    return wanted


def _blank(info: TensorInfo, size_wh: tuple[int, int]) -> Array:
    width, height = size_wh
    shape = (3, height, width) if info.shape[-3] == 3 else (height, width, 3)
    try:
        return np.full(shape, _GRAY, np.dtype(info.dtype))
    except TypeError as error:
        raise ModelError(f"input '{info.name}' takes {info.dtype}, which no picture is") from error


def _check_numbers(
    backend: Backend, size_wh: tuple[int, int], outputs: Mapping[str, Array]
) -> None:
    """Refuse a graph that gives NaN for every picture, before a run has begun."""
    bad = _nan_output(outputs)
    if bad is None:
        return
    # A graph that divides by the picture's own deviation may do so for the gray picture alone.
    blank = _blank(backend.inputs[0], size_wh)
    noise = np.random.default_rng(0).integers(0, 256, blank.shape).astype(blank.dtype)
    batched = len(backend.inputs[0].shape) == 4
    bad = _nan_output(backend.run(noise[None] if batched else noise))
    if bad is not None:
        name, count, size = bad
        raise ModelError(
            f"output '{name}' holds NaN in {count} of {size} values whatever the picture shows: "
            "the weights are damaged, or numbers overflow in half precision; download or export "
            "the file again"
        )


def _nan_output(outputs: Mapping[str, Array]) -> tuple[str, int, int] | None:
    """Return name, NaN values and all values of the first output that holds NaN."""
    for name, array in outputs.items():
        count = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
        if count:
            return name, count, array.size
    return None


def _trial(backend: Backend, size_wh: tuple[int, int], batch: int) -> dict[str, Array]:
    blank = _blank(backend.inputs[0], size_wh)
    if len(backend.inputs[0].shape) == 3:
        return backend.run(blank)
    return backend.run(np.stack([blank] * batch))


def _batched_outputs(
    backend: Backend, size_wh: tuple[int, int], batch: int, single: Mapping[str, Array]
) -> frozenset[str]:
    """Return the outputs that have a row for each picture; all must, or frames would be mixed."""
    info = backend.inputs[0]
    fixed = info.shape[0] if len(info.shape) == 4 else 1
    if fixed is not None:
        raise ModelError(
            f"batch {batch} was asked for, but the graph takes {fixed} picture(s) at once: "
            "set infer.batch to 1, or export it with an open batch"
        )
    several = _trial(backend, size_wh, batch)
    for name, array in several.items():
        if (batch, *single[name].shape[1:]) != array.shape or single[name].shape[:1] != (1,):
            raise ModelError(
                f"output '{name}' does not follow the batch: {list(single[name].shape)} for one "
                f"picture, {list(array.shape)} for {batch}; set infer.batch to 1"
            )
    return frozenset(several)


def _class_names(given: Sequence[str] | str | None) -> Sequence[str] | None:
    if not isinstance(given, str):
        return given
    path = Path(given).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"class_names: the file {given} cannot be read ({error}): give a text file with one "
            "name a line, or a list"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


def _own_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    # Recognition has already refused metadata of ours that is broken.
    own = json.loads(metadata[KEY]) if KEY in metadata else {}
    return own if isinstance(own, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
