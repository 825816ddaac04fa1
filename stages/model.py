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
from stages.decoders.metadata import KEY
from stages.decoders.recognise import recognise
from stages.decoders.seal import check_seal
from stages.model_files import resolve_model, shipped_models
from stages.trial import (
    blank_picture,
    check_numbers,
    fix_target_sizes,
    outputs_that_follow,
    run_trial,
    trial_size,
)

if TYPE_CHECKING:
    from stages.backends.network import Networks
    from stages.infer import InferConfig

Array = NDArray[np.generic]

FIRST_RUNTIMES: Final = ("onnx cpu",)
"""What every certificate compares; files that name no runtimes are from when there was no other."""


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
        self.options = recognised.options
        """Of the decoder."""
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
        return blank_picture(self.backend.inputs[0], self.preprocessing.size_wh)

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
    fix_target_sizes(backend, config)
    graph = GraphInfo(backend.inputs, backend.outputs, backend.metadata)
    size_wh = trial_size(graph, config)
    batched: frozenset[str] = frozenset()
    # Without a size there can be no trial; recognition then says what is missing.
    if size_wh is not None:
        single = run_trial(backend, size_wh, 1)
        check_numbers(backend, size_wh, single)
        seen = tuple(TensorInfo(name, a.shape, a.dtype.name) for name, a in single.items())
        graph = GraphInfo(backend.inputs, seen, backend.metadata)
    recognised = recognise(
        graph,
        decoder=config.decoder,
        class_names=_class_names(config.class_names),
        overrides=overrides,
    )
    if size_wh is not None and config.batch > 1:
        batched = outputs_that_follow(backend, size_wh, config.batch, single)
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
        certified=sealed and as_told and _was_certified_on(backend),
    )


def _was_certified_on(backend: Backend) -> bool:
    """Return whether the file's certificate speaks of what runs it here."""
    about = backend.describe()
    runtime = f"{about['name']} {str(about['device']).partition(':')[0]}"
    parity = _own_metadata(backend.metadata).get("parity")
    stated = parity.get("runtimes", FIRST_RUNTIMES) if isinstance(parity, dict) else ()
    return runtime in stated


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
