"""The grammar of faults made on purpose, and those done to packets before they are decoded.

A fault has a moment, written behind '@': `@200` is frame 200, `@10s` is ten seconds of the stream's
own time, both counted from its first frame. What is left to chance is drawn from the seed and the
frame's own number, so that nothing depends on what was read before. Pure apart from `PacketFaults`,
which one thread calls; its counts may be read by any.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import av

T = TypeVar("T")

_SECONDS: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s)")
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in a stream: a frame's number, or seconds of media time; the other is None."""

    frame: int | None
    seconds: Fraction | None

    def reached(self, frame: int, media_s: Fraction) -> bool:
        """Return whether the frame of that number, so long after the first, is there or behind."""
        if self.frame is not None:
            return frame >= self.frame
        return self.seconds is not None and media_s >= self.seconds


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A fault and when it begins."""

    value: T
    at: Moment


class Schedule(Generic[T]):
    """The faults of one sort that are still to come, in order."""

    def __init__(self, faults: Sequence[Timed[T]]) -> None:
        self._left = list(faults)

    def due(self, frame: int, media_s: Fraction) -> Timed[T] | None:
        """Return the fault whose moment has come with this frame, once."""
        if self._left and self._left[0].at.reached(frame, media_s):
            return self._left.pop(0)
        return None


def read_seconds(text: str) -> Fraction:
    """Read `3s`, `0.5s` or `200ms`.

    Raises:
        ValueError: it is no such text.
    """
    found = _SECONDS.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a time such as 3s or 200ms, got {text!r}")
    return Fraction(found["number"]) / (1000 if found["unit"] == "ms" else 1)


def read_jump(text: str) -> Fraction:
    """Read a time with a sign: `-5s`, `+1.5s`, `20s`."""
    text = text.strip()
    return -read_seconds(text[1:]) if text.startswith("-") else read_seconds(text.removeprefix("+"))


def read_size(text: str) -> tuple[int, int]:
    """Read `640x360` as (width, height), each 16 to 16384 pixels."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or not all(16 <= int(side) <= 16384 for side in found.groups()):
        raise ValueError(f"expected WIDTHxHEIGHT of 16 pixels and more, got {text!r}")
    return int(found[1]), int(found[2])


def read_nothing(text: str) -> None:
    """Read a fault that has a moment and no value."""
    if text.strip():
        raise ValueError(f"expected only a moment such as @200, got {text!r} before it")


def read_timed(text: str, value: Callable[[str], T]) -> Timed[T]:
    """Read `VALUE@MOMENT`.

    Raises:
        ValueError: one of the two is missing or unreadable, or the moment is the very beginning.
    """
    before, sign, at = text.strip().rpartition("@")
    if not sign:
        raise ValueError(
            f"{text!r} does not say when: add @200 (frame 200) or @10s (10 s of the stream)"
        )
    moment = Moment(int(at), None) if at.isdecimal() else Moment(None, read_seconds(at))
    if not (moment.frame or moment.seconds):
        raise ValueError(f"{text!r}: the first frame comes as it is; @1 is the earliest")
    return Timed(value(before), moment)


def draw(seed: int, what: str, number: int) -> float:
    """Return 0 <= x < 1, the same for the same arguments, on every machine."""
    digest = hashlib.blake2b(f"{seed}/{what}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def generator(seed: int, what: str, number: int) -> np.random.Generator:
    """Return a generator of its own for one frame or packet."""
    digest = hashlib.blake2b(f"{seed}/{what}/{number}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


@runtime_checkable
class TakesPacketFaults(Protocol):
    """A source that decodes packets and lets them be changed before it does."""

    alter: Callable[[Any], None] | None
    """Called with every video packet (`av.Packet`), in the order of decoding, on the thread that
    decodes; changes it in place. Read at `open`."""


class PacketFaults:
    """Damages the bytes of packets, and makes their clock jump, as a bad line and a bad camera do.

    A packet that is seen twice (a second look at the end of a file) is changed in the same way and
    counted once.

    Args:
        seed: of what is left to chance.
        corrupt: share of the bytes that are changed.
        jumps: seconds by which the timestamps jump, and when; frames are counted as packets.
    """

    def __init__(self, seed: int, corrupt: float, jumps: Sequence[Timed[Fraction]]) -> None:
        self._seed = seed
        self._corrupt = corrupt
        self._jumps = Schedule(jumps)
        self._shifts: list[tuple[int, Fraction]] = []
        self._first: int | None = None
        self._last: int | None = None
        self._top: int | None = None
        self._count = 0
        self.packets = 0
        """Packets that were damaged."""
        self.bytes = 0
        self.jumped = 0

    def __call__(self, packet: av.Packet[Any]) -> None:
        """Change one packet in place."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        key = self._count if stamp is None else stamp
        new = stamp is None or self._last is None or stamp > self._last
        shown = key if packet.pts is None else packet.pts
        if new:
            self._last = stamp
            self._begin_jumps(shown, packet.time_base or Fraction(0))
            self._count += 1
        if self._corrupt and packet.size:
            self._damage(packet, key, count=new)
        base = packet.time_base
        if base:
            ticks = sum(round(shift / base) for since, shift in self._shifts if shown >= since)
            if packet.pts is not None:
                packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks

    def _begin_jumps(self, shown: int, base: Fraction) -> None:
        if self._top is not None and shown <= self._top:
            return  # shown before one that has gone by: a jump here would tear those two apart
        self._top = shown
        self._first = shown if self._first is None else self._first
        while (jump := self._jumps.due(self._count, (shown - self._first) * base)) is not None:
            self._shifts.append((shown, jump.value))
            self.jumped += 1

    def _damage(self, packet: av.Packet[Any], key: int, *, count: bool) -> None:
        chance = generator(self._seed, "corrupt", key)
        hits = int(chance.binomial(packet.size, self._corrupt))
        if not hits:
            return
        data = np.frombuffer(bytes(packet), np.uint8).copy()
        places = np.unique(chance.integers(0, data.size, hits))
        data[places] ^= chance.integers(1, 256, places.size, dtype=np.uint8)
        packet.update(data.tobytes())
        if count:
            self.packets += 1
            self.bytes += places.size
