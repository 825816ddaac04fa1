"""The zoo's networks for the backend torch: by name, or as an exported file names them.

torch is imported when a network is made. One thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from exporters.cards import card_of, check_card, short
from exporters.download import Progress
from exporters.entry import Entry
from exporters.onnx_export import describe
from exporters.weights import OFFICIAL, RANDOM, build, one_thread
from exporters.zoo import ZOO
from pipeline.errors import DeviceError, ModelError, ParityError
from pipeline.problems import did_you_mean
from stages.backends.network import Network
from stages.decoders.decoder import TensorInfo
from stages.decoders.metadata import KEY
from stages.decoders.seal import check_seal, read_card

_GIVE: Final = "give those with --set infer.weights=FILE"
_OTHER: Final = "use --backend onnx"


class ZooNetworks:
    """What the backend torch can run; see `stages.backends.network.Networks`.

    Args:
        progress: told about downloads.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress

    @property
    def names(self) -> Collection[str]:
        """The names of the zoo."""
        return ZOO.keys()

    @property
    def published(self) -> Collection[str]:
        """The names of the zoo that have official weights."""
        return [name for name, entry in ZOO.items() if entry.official is not None]

    def check_model(self, model: str) -> None:
        """Look whether a network is meant by that; opens nothing.

        Raises:
            ModelError: it is neither a name of the zoo nor an .onnx file.
        """
        path = Path(model).expanduser()
        if model in ZOO or (path.is_file() and path.suffix.lower() == ".onnx"):
            return
        if path.is_file():
            raise ModelError(
                f"the backend torch takes a network's name, and {model} is a file: give it as its "
                f"weights, --model NAME --set infer.weights={model} (networks: {', '.join(ZOO)})"
            )
        raise ModelError(
            f"the backend torch has no network '{model}'{did_you_mean(model, ZOO)} (networks: "
            f"{', '.join(ZOO)}; or an .onnx file that `export` wrote)"
        )

    def check_weights(self, weights: str) -> None:
        """Look whether there are such weights; opens nothing.

        Raises:
            ModelError: there is no such file, and it is no word for weights.
        """
        if weights not in (OFFICIAL, RANDOM) and not Path(weights).expanduser().is_file():
            near = did_you_mean(weights, (OFFICIAL, RANDOM))
            raise ModelError(
                f"there is no file {weights}{near} (weights: {OFFICIAL}, {RANDOM}, or the file of "
                "a state dict)"
            )

    def maker(self, model: str, weights: str | None) -> Callable[[], Network]:
        """Return what makes the network that is meant by `model`.

        Calling it raises ModelError where weights cannot be had, read or loaded, or are not those
        that a file was exported from; and DeviceError where torchvision is missing.
        """
        self.check_model(model)
        if model in ZOO:
            return partial(self._make, ZOO[model], weights or OFFICIAL)
        return partial(self._make_as_exported, Path(model).expanduser(), weights)

    def _make(self, entry: Entry, weights: str) -> Network:
        module = entry.builder.partition(":")[0]
        try:
            import_module(module)
        except (ImportError, RuntimeError) as error:  # the latter by a torchvision of another torch
            raise DeviceError(
                f'the network of {entry.name} cannot be loaded ({error}): pip install -e ".[torch]"'
            ) from error
        with one_thread():
            network, source = build(entry, weights, progress=self._progress)
        card = card_of(entry.named(source.class_names), source.licence)
        size_wh = entry.preprocessing.size_wh
        batch = None if entry.dynamic_batch else 1
        sides = (None, None) if entry.dynamic_size else size_wh[::-1]
        stated = {**describe(card, network, None), "source": dict(source.facts())}
        return Network(
            network,
            TensorInfo("images", (batch, 3, *sides), "float32"),
            size_wh,
            entry.outputs,
            {KEY: json.dumps(stated)},
        )

    def _make_as_exported(self, path: Path, weights: str | None) -> Network:
        """Make the network that a file was exported from, and be sure that it is that one."""
        try:
            return self._make_by_card(path, weights)
        except ModelError as error:
            raise type(error)(f"{path}: {error}") from error
        except OSError as error:
            raise ModelError(f"the file {path} cannot be read: {error.strerror}") from error

    def _make_by_card(self, path: Path, weights: str | None) -> Network:
        stated = read_card(path)
        check_seal(path, {KEY: json.dumps(stated)})
        entry = ZOO.get(str(stated.get("name")))
        if entry is None:
            named = f"names '{stated['name']}'" if "name" in stated else "names none"
            raise ModelError(
                f"the backend torch runs networks that export knows, and the file {named} "
                f"(networks: {', '.join(ZOO)}); {_OTHER}"
            )
        try:
            check_card(path, entry, stated)
        except ParityError as error:
            raise ModelError(f"{error}\n  export it again, or {_OTHER}") from error
        chosen = weights or _stated_weights(stated)
        network = self._make(entry, chosen)
        made = json.loads(network.metadata[KEY])
        # Random numbers and their sums are torch's and the processor's.
        remedy = "torch or machine differ: export it again" if chosen == RANDOM else _GIVE
        for key, what in (("source_sha256", "sha256 is"), ("class_names", "classes are")):
            if made[key] != stated.get(key):
                raise ModelError(
                    f"the weights ({chosen}) are not those it was exported from: their {what} "
                    f"{short(made[key])}, the file states {short(stated.get(key))}; {remedy}, or "
                    f"{_OTHER}"
                )
        return network


def _stated_weights(stated: dict[str, Any]) -> str:
    source = stated.get("source")
    kind = source.get("weights") if isinstance(source, dict) else None
    if kind in (OFFICIAL, RANDOM):
        return str(kind)
    raise ModelError(
        f"the file was exported from weights that are not published; {_GIVE}, or {_OTHER}"
    )
