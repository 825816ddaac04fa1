"""The `chaos:` source: another source, broken on purpose, so that a set-up can be tried out.

`chaos:SOURCE?drop=0.05&stall=3s@10s` wraps any source. Faults are drawn from a seed: the same
input, options and seed give the same faults, and each is counted. Every connection starts anew, so
`lose=@200` loses each connection at its frame 200. One thread reads; `interrupt` may come from any.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Final

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config import Config
from pipeline.errors import SourceError, UsageError
from pipeline.frame import U8, Frame
from pipeline.problems import did_you_mean
from pipeline.stage import Lost, ReadResult, RunContext, Source, StreamInfo, Timeout
from stages.sources.faults import (
    PacketFaults,
    Schedule,
    TakesPacketFaults,
    Timed,
    draw,
    generator,
    read_jump,
    read_nothing,
    read_seconds,
    read_size,
    read_timed,
)

SCHEME: Final = "chaos:"
_BLOCK: Final = 16
"""Side of the squares that are damaged in pictures that come from no packets; as codecs have
them."""
_OPTION: Final = re.compile(r"[a-z_]+")


def _split(value: object) -> object:
    """Turn "a@1,b@2" into its parts; leave lists to pydantic."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _checked(read: Callable[[str], object]) -> AfterValidator:
    def check(texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            read_timed(text, read)
        return texts

    return AfterValidator(check)


_Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ChaosConfig(Config):
    """What is done to the source. A moment is @FRAME or @SECONDS: `@200`, `@10s`."""

    # Never printed from here: the part of the source shows its address without credentials.
    source: object = Field(
        description="the source to be broken: text as on the command line, or a map",
        exclude=True,
        repr=False,
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the same seed makes the same faults")
    drop: float = Field(0.0, ge=0, le=1, description="share of the frames that are lost")
    corrupt: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the bytes of the video's packets that are damaged before decoding; "
        f"where pictures do not come from packets, of their {_BLOCK} x {_BLOCK} blocks",
    )
    stall: Annotated[_Texts, _checked(read_seconds)] = Field(
        (), description="nothing comes for so long: 3s@10s; several with commas"
    )
    freeze: Annotated[_Texts, _checked(read_seconds)] = Field(
        (), description="the same picture for so long of the stream's time: 5s@100"
    )
    resize: Annotated[_Texts, _checked(read_size)] = Field(
        (), description="pictures have another size from here on: 640x360@100"
    )
    pts_jump: Annotated[_Texts, _checked(read_jump)] = Field(
        (), description="the stream's clock jumps: -5s@50"
    )
    lose: Annotated[_Texts, _checked(read_nothing)] = Field(
        (), description="the connection is lost: @200"
    )


def split_uri(text: str) -> tuple[str, dict[str, str]]:
    """Return the inner address and the options of `chaos:SOURCE?OPTION=VALUE&...`.

    Options stand behind the last '?'. An inner address that has a '?' of its own and gets no
    options is written with one more at its end.

    Raises:
        UsageError: no inner address, or an option that is unknown or given twice.
    """
    rest = text.removeprefix(SCHEME)
    source, mark, query = rest.rpartition("?")
    if not mark:
        source, query = query, ""
    if not source.strip():
        raise UsageError("chaos: needs a source to break, for example chaos:street.mp4?drop=0.05")
    known = [name for name in ChaosConfig.model_fields if name != "source"]
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            # An address may have a password with '?' in it: only what looks harmless is quoted.
            plain = _OPTION.fullmatch(name) and "@" not in source and "//" not in source
            which = f"'{name}'" if plain else "what stands behind the last '?'"
            near = did_you_mean(name, known) if plain else ""
            raise UsageError(
                f"chaos: {which} is no option of chaos{near or ';'} the options are "
                f"{', '.join(known)}, as in chaos:street.mp4?drop=0.05&stall=3s@10s; where the "
                "last '?' belongs to the inner address, add another '?' at the end"
            )
        if name in options:
            raise UsageError(f"chaos: the option '{name}' is given twice")
        options[name] = value
    return source, options


class ChaosSource(Source):
    """Passes another source's frames on, but for the faults that were asked for.

    counters: those of the inner source, and "chaos_dropped" (frames; their seq is missing),
    "chaos_stalls", "chaos_frozen" (frames), "chaos_resized" (frames), "chaos_pts_jumps",
    "chaos_losses", and "chaos_packets" and "chaos_bytes" (damaged), or "chaos_blocks" where
    pictures do not come from packets.

    Damage to packets, and jumps of their clock, happen before the inner source decodes them: it
    does with them what it would do on a bad line. Where there are no packets a jump backwards is a
    discontinuity that goes on one frame later, since times must increase.

    Args:
        config: the faults.
        name: of the stream; also that of `inner`.
        inner: opened and closed by this one.
    """

    def __init__(self, config: ChaosConfig, name: str, inner: Source) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._inner = inner
        self._stop = threading.Event()
        self._opened = False

    @property
    def live(self) -> bool:  # type: ignore[override] # known late
        """As the inner source."""
        return self._inner.live

    def open(self, context: RunContext) -> StreamInfo:
        """Open the inner source and begin again with the faults."""
        config = self._config
        self._clock = context.clock
        jumps = [read_timed(text, read_jump) for text in config.pts_jump]
        self._packets: PacketFaults | None = None
        inner = self._inner
        if isinstance(inner, TakesPacketFaults):
            self._packets = PacketFaults(config.seed, config.corrupt, jumps)
            inner.alter = self._packets
        self._jumps = Schedule([] if self._packets is not None else jumps)
        self._stalls = Schedule([read_timed(text, read_seconds) for text in config.stall])
        self._freezes = Schedule([read_timed(text, read_seconds) for text in config.freeze])
        self._resizes = Schedule([read_timed(text, read_size) for text in config.resize])
        self._losses = Schedule([read_timed(text, read_nothing) for text in config.lose])
        self._done = dict.fromkeys(self._sorts(), 0)
        self._first_s: Fraction | None = None
        self._held: Frame | None = None
        self._stalled_until_ns = 0
        self._frozen: tuple[U8, Fraction] | None = None
        self._size_wh: tuple[int, int] | None = None
        self._offset = self._step = 0
        self._last_pts: int | None = None
        info = inner.open(context)
        self._opened = True
        self._count()
        told = ", ".join(
            f"{name}={value if not isinstance(value, list) else ','.join(value)}"
            for name, value in config.model_dump(mode="json", exclude_defaults=True).items()
        )
        context.note(f"{self.name}: broken on purpose: {told or 'nothing was asked for'}")
        return info

    def read(self, timeout_s: float) -> ReadResult:
        """Return the next frame that is not lost, as it is left by the faults.

        Raises:
            SourceError: the source is not open.
        """
        if not self._opened:
            raise SourceError(f"{self.name}: read before open")
        try:
            return self._read(timeout_s)
        finally:
            self._count()

    def interrupt(self) -> None:
        """End a stall, and what the inner source waits for, at once. Any thread."""
        self._stop.set()
        self._inner.interrupt()

    def close(self) -> None:
        """Close the inner source. Idempotent."""
        self._opened = False
        self._held = None
        self._inner.close()
        self._stop.clear()

    def _read(self, timeout_s: float) -> ReadResult:
        deadline_ns = self._clock.now_ns() + int(timeout_s * 1e9)
        while True:
            if self._stop.is_set():
                return self._inner.read(0.0)
            left_s = max(0.0, (deadline_ns - self._clock.now_ns()) / 1e9)
            if self._held is not None:
                stalled_s = (self._stalled_until_ns - self._clock.now_ns()) / 1e9
                if stalled_s > 0:
                    self._stop.wait(min(stalled_s, left_s))
                    if stalled_s > left_s and not self._stop.is_set():
                        return Timeout()
                    continue
                frame, self._held = self._held, None
                # It comes out of the stall now.
                time = replace(frame.time, captured_ns=self._clock.now_ns())
                return self._broken(replace(frame, time=time))
            result = self._inner.read(left_s)
            if not isinstance(result, Frame):
                return result
            number, media_s = result.id.seq, self._media_s(result)
            if self._losses.due(number, media_s) is not None:
                self._done["losses"] += 1
                return Lost(f"cut at frame {number} on purpose (chaos)")
            if draw(self._config.seed, "drop", number) < self._config.drop:
                self._done["dropped"] += 1
                if left_s <= 0 and self.live:
                    return Timeout()
                continue
            stall = self._stalls.due(number, media_s)
            if stall is None:
                return self._broken(result)
            self._done["stalls"] += 1
            self._held = result
            self._stalled_until_ns = self._clock.now_ns() + int(stall.value * 1_000_000_000)

    def _media_s(self, frame: Frame) -> Fraction:
        now_s = frame.time.media_s
        if now_s is None:
            now_s = Fraction(frame.time.captured_ns, 1_000_000_000)
        if self._first_s is None:
            self._first_s = now_s
        return now_s - self._first_s

    def _broken(self, frame: Frame) -> Frame:
        """Return the frame with everything done to it that is due."""
        number, media_s = frame.id.seq, self._media_s(frame)
        frame = self._jumped(frame, number, media_s)
        image = self._damaged(frame.image, number)
        if (freeze := self._freezes.due(number, media_s)) is not None:
            self._frozen = (image, media_s + freeze.value)
        if self._frozen is not None:
            still, until_s = self._frozen
            if media_s < until_s:
                image = still
                self._done["frozen"] += 1
            else:
                self._frozen = None
        if (resize := self._resizes.due(number, media_s)) is not None:
            self._size_wh = resize.value
        if self._size_wh is not None:
            image = _resized(image, self._size_wh)
            self._done["resized"] += 1
        return frame if image is frame.image else replace(frame, image=image)

    def _jumped(self, frame: Frame, number: int, media_s: Fraction) -> Frame:
        """Apply the jumps that the packets could not be given."""
        time = frame.time
        if time.pts is None:
            return frame
        jump: Timed[Fraction] | None = self._jumps.due(number, media_s)
        pts = time.pts + self._offset
        if jump is not None:
            self._done["pts_jumps"] += 1
            jumped = pts + round(jump.value / time.time_base)
            if self._last_pts is not None:
                jumped = max(jumped, self._last_pts + self._step)
            self._offset += jumped - pts
            pts = jumped
        if self._last_pts is not None:
            self._step = max(1, pts - self._last_pts) if jump is None else self._step
        self._last_pts = pts
        if pts == time.pts and jump is None:
            return frame
        return replace(
            frame,
            time=replace(time, pts=pts),
            discontinuity=frame.discontinuity or jump is not None,
        )

    def _damaged(self, image: U8, number: int) -> U8:
        if self._packets is not None or not self._config.corrupt:
            return image
        chance = generator(self._config.seed, "blocks", number)
        rows, columns = (-(-side // _BLOCK) for side in image.shape[:2])
        hit = np.argwhere(chance.random((rows, columns)) < self._config.corrupt)
        if not len(hit):
            return image
        image = image.copy()
        for row, column in hit * _BLOCK:
            block = image[row : row + _BLOCK, column : column + _BLOCK]
            block[:] = chance.integers(0, 256, block.shape, dtype=np.uint8)
        self._done["blocks"] += len(hit)
        return image

    def _sorts(self) -> list[str]:
        sorts = ["dropped", "stalls", "frozen", "resized", "pts_jumps", "losses"]
        return sorts if self._packets is not None else [*sorts, "blocks"]

    def _count(self) -> None:
        counters = dict(self._inner.counters)
        counters |= {f"chaos_{sort}": count for sort, count in self._done.items()}
        if self._packets is not None:
            counters["chaos_pts_jumps"] = self._packets.jumped
            counters["chaos_packets"] = self._packets.packets
            counters["chaos_bytes"] = self._packets.bytes
        self.counters = counters


def _resized(image: U8, size_wh: tuple[int, int]) -> U8:
    import cv2

    return np.ascontiguousarray(
        cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8
    )
