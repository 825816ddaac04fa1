"""What is known of one exportable model: the form of a row of the table `exporters.zoo`.

Values only; nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stages.decoders.decoder import Preprocessing


@dataclass(frozen=True, slots=True)
class Published:
    """Weights that somebody has published."""

    url: str
    sha256: str
    """The digest, or its first digits where no more is published."""
    licence: str
    """SPDX identifier."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One exportable model."""

    name: str
    decoder: str
    builder: str
    """`module:function`; called with `size_wh`, `classes` and `arguments`, returns the network."""
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    parameters: int
    """Of the network that is exported, with `class_names`."""
    official: Published | None
    """None where nobody has published any."""
    task: str = "detect"
    outputs: tuple[str, ...] = ("boxes", "scores")
    options: Mapping[str, object] = field(default_factory=dict)
    """The decoder's."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """The builder's."""
    exporter: Literal["dynamo", "legacy"] = "dynamo"
    """legacy where torch.export stops at sizes that depend on the picture."""
    dynamic_batch: bool = True
    dynamic_size: bool = False
    """The graph takes pictures of any size; `preprocessing` has the one that it is run at where
    nothing else is said."""
    lively: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """For random weights: patterns of last layers, and the mean and deviation that their outputs
    are brought to, so that some things are found in every picture."""
    lively_lead: float = 0.0
    """And what the first class is ahead of the others on average in the layers `*.cls_score`: where
    that is the background, some boxes are things and not all."""
    frozen_eps: float = 1e-5
    """Epsilon of batch normalisation in checkpoints that were trained with frozen statistics."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors in checkpoints that only training needs."""

    @property
    def network_classes(self) -> int:
        """How many classes the builder is asked for: some score a background that has no name."""
        return len(self.class_names) + (self.options.get("background") is True)

    def named(self, class_names: Sequence[str]) -> Entry:
        """Return the entry for a network that was trained for other classes.

        Args:
            class_names: of what it finds; a background before them may be named or not. Of semantic
                segmentation they are one for each channel, as they are.
        """
        names = tuple(class_names)
        if self.task != "semantic":
            if names and _is_background(names[0]):
                names = names[1:]
            if _is_background(self.class_names[0]):
                names = (self.class_names[0], *names)
        return replace(self, class_names=names)


def _is_background(name: str) -> bool:
    return name.strip("_").lower() == "background"
