"""What the torch backend runs, and who makes it: the seam between `stages` and `exporters`.

`stages` knows no networks; `run` hands it something that does. Values and signatures only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.decoders.decoder import TensorInfo

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Network:
    """A torch network, and what a file exported from it would say of itself."""

    module: nn.Module
    """float32, on the CPU; takes one tensor, returns one or a tuple of them, made anew at each
    call."""
    input: TensorInfo
    """(b, 3, h, w) float32; b is None where it takes any number of pictures, h and w where it takes
    pictures of any size."""
    size_wh: tuple[int, int]
    """Of its input; where that is open, one that it takes."""
    outputs: tuple[str, ...]
    """Names for what it returns, in order."""
    metadata: Mapping[str, str]


class Networks(Protocol):
    """Where networks come from; `stages` knows none."""

    @property
    def names(self) -> Collection[str]:
        """The networks there are by name."""

    @property
    def published(self) -> Collection[str]:
        """Those of them with weights that somebody has published."""

    def check_model(self, model: str) -> None:
        """Raise RackfocusError where no network is meant by a name or a file."""

    def check_weights(self, weights: str) -> None:
        """Raise RackfocusError where these are no weights."""

    def maker(self, model: str, weights: str | None) -> Callable[[], Network]:
        """Return what makes the network, anew at each call; raises as `Backend.open` may.

        Args:
            model: a name, or a file that was exported from a network.
            weights: which weights; None for what the name or the file implies.
        """
