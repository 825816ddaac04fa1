"""The `synthetic:shapes` source: a seeded scene with exact ground truth, and no file behind it.

Here are its options, its address form and its timing; the drawing is in `stages.sources.scenes`,
imported when the source is opened. Frame k of a seed is the same whatever was read before it. One
thread reads; `interrupt` may come from any.
"""

from __future__ import annotations

import re
import threading
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import parse_qsl

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from pipeline.config import Config
from pipeline.errors import SourceError, UsageError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.problems import did_you_mean
from pipeline.stage import End, ReadResult, RunContext, Source, StreamInfo, Timeout
from pipeline.url import Url

if TYPE_CHECKING:
    from stages.sources.scenes import ShapesScene

SCHEME: Final = "synthetic:"
# Below this the number strip's cells would be smaller than 4 px; above it a frame exceeds 100 MB.
_SIDE_MIN, _SIDE_MAX = 96, 8192


def _read_size(value: object) -> object:
    """Turn "640x360" into (640, 360); leave other values to pydantic."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX]\s*(\d{1,5})\s*", value)
        if match is None:
            raise ValueError(f"expected WIDTHxHEIGHT such as 640x360, got {value!r}")
        return int(match[1]), int(match[2])
    return value


def _read_rate(value: object) -> object:
    """Turn 30, "30", "29.97" or "30000/1001" into an exact fraction in 1/100..1000."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError(f"expected a rate such as 30 or 30000/1001, got {value!r}")  # noqa: TRY004 - pydantic reports ValueError
    try:
        # Through str, so that 29.97 means 2997/100 and not its nearest binary float.
        rate = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a rate such as 30 or 30000/1001, got {value!r}") from None
    if not Fraction(1, 100) <= rate <= 1000:
        raise ValueError(f"must lie in 1/100..1000 frames per second, got {value}")
    if rate.numerator > 1_000_000:
        raise ValueError(f"too fine for a time base; write it as a simple fraction, got {value}")
    return rate


Side = Annotated[int, Field(ge=_SIDE_MIN, le=_SIDE_MAX)]
Rate = Annotated[
    InstanceOf[Fraction],
    BeforeValidator(_read_rate),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30", "30000/1001"]}),
]


class SyntheticConfig(Config):
    """What to draw, how large, how fast and for how long."""

    scene: Literal["shapes"] = Field("shapes", description="which scene to draw")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the same seed draws the same frames")
    size_wh: Annotated[tuple[Side, Side], BeforeValidator(_read_size)] = Field(
        (1280, 720), description="picture size as WIDTHxHEIGHT, pixels"
    )
    fps: Rate = Field(Fraction(30), description="frames per second, exact: 30 or 30000/1001")
    count: int = Field(10, ge=0, le=64, description="how many objects move about")
    frames: int | None = Field(None, ge=0, description="end after so many frames; empty: endless")
    start: int = Field(0, ge=0, le=2**31 - 1, description="number of the first frame")
    paced: bool = Field(
        default=False,
        description="deliver frames in real time, as a camera does: a live run",
    )


# Spellings in an address that differ from the field's name.
_ALIASES: Final = {"size": "size_wh"}


def parse_uri(text: str) -> SyntheticConfig:
    """Read an address such as `synthetic:shapes?seed=3&size=640x360&frames=100`.

    Raises:
        UsageError: another scheme or scene, an unknown, repeated or impossible option; the text
            says what is known.
    """
    if not text.startswith(SCHEME):
        raise UsageError(f"{text!r} is no synthetic source: expected synthetic:shapes?OPTION=VALUE")
    scene, _, query = text.removeprefix(SCHEME).partition("?")
    known = sorted(
        set(SyntheticConfig.model_fields) - {"scene", *_ALIASES.values()} | set(_ALIASES)
    )
    if scene != "shapes":
        raise UsageError(f"{text!r}: unknown scene {scene!r}; the scenes are: shapes")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UsageError(f"{text!r}: options must read name=value, joined by '&'") from None
    values: dict[str, object] = {"scene": scene}
    for name, value in pairs:
        field = _ALIASES.get(name, name)
        if field == "scene" or field not in SyntheticConfig.model_fields:
            raise UsageError(
                f"{text!r}: unknown option {name!r}{did_you_mean(name, known)} "
                f"(the options are: {', '.join(known)})"
            )
        if field in values:
            raise UsageError(f"{text!r}: option {name!r} is given twice")
        values[field] = value
    try:
        return SyntheticConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = next(
            (alias for alias, field in _ALIASES.items() if field == first["loc"][0]),
            str(first["loc"][0]),
        )
        why = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(f"{text!r}: option {name!r}: {why} (got {first['input']!r})") from None


def format_uri(config: SyntheticConfig) -> str:
    """Return the shortest address that `parse_uri` reads back as `config`."""
    parts = []
    for field in SyntheticConfig.model_fields:
        value = getattr(config, field)
        if field == "scene" or value == SyntheticConfig.model_fields[field].default:
            continue
        name = next((alias for alias, real in _ALIASES.items() if real == field), field)
        if isinstance(value, tuple):
            value = "x".join(map(str, value))
        parts.append(f"{name}={int(value) if isinstance(value, bool) else value}")
    return f"{SCHEME}{config.scene}" + ("?" + "&".join(parts) if parts else "")


class SyntheticSource(Source):
    """Draws a scene frame by frame; `Frame.meta["truth"]` is a `stages.sources.scenes.Truth`.

    `Frame.meta["frame_number"]` is the number drawn in the picture: `start` plus the frame's seq.
    Timestamps are that number times the frame duration, in a time base that holds it exactly.
    Unpaced, frames come as fast as they are read. Paced, each comes when it is due; one that is
    more than a frame late because nobody read is skipped, as a camera's would be, and counted in
    `skipped`.
    """

    def __init__(self, config: SyntheticConfig, name: str = "shapes") -> None:
        self.name = name
        self.config = config
        self.live = config.paced
        self.counters: dict[str, int] = {}
        self._interrupted = threading.Event()
        self._scene: ShapesScene | None = None

    def open(self, context: RunContext) -> StreamInfo:
        """Draw the background (some 10 ms at 720p) and start the clock."""
        from stages.sources.scenes import ShapesScene

        config = self.config
        self._clock = context.clock
        self._scene = ShapesScene(config.seed, config.size_wh, config.count)
        self._seq = 0
        self.counters = {"skipped": 0} if config.paced else {}
        self._started_ns = self._clock.now_ns()
        time_base = Fraction(1, config.fps.numerator)
        return StreamInfo(
            name=self.name,
            uri=Url(format_uri(config)),
            live=self.live,
            size_wh=config.size_wh,
            time_base=time_base,
            rate_hz=config.fps,
            frame_count=config.frames,
            duration_s=None if config.frames is None else config.frames / config.fps,
        )

    def read(self, timeout_s: float) -> ReadResult:
        """Return the next frame; `End` after `frames` of them or after `interrupt`."""
        if self._scene is None:
            raise SourceError(f"{self.name}: read before open")
        if self._interrupted.is_set():
            return End("interrupted")
        if self.config.paced and not self._ended():
            waiting = self._wait(timeout_s)
            if waiting is not None:
                return waiting
        if self._ended():
            return End()
        config, seq = self.config, self._seq
        self._seq += 1
        number = config.start + seq
        image, truth = self._scene.draw(number, number / config.fps)
        duration = config.fps.denominator
        return Frame(
            id=FrameId(self.name, 0, seq),
            time=FrameTime(
                captured_ns=self._clock.now_ns(),
                pts=number * duration,
                time_base=Fraction(1, config.fps.numerator),
                duration=duration,
            ),
            image=image,
            meta=MappingProxyType({"truth": truth, "frame_number": number}),
        )

    def _ended(self) -> bool:
        return self.config.frames is not None and self._seq >= self.config.frames

    def _wait(self, timeout_s: float) -> ReadResult | None:
        """Wait until the next frame is due; None when it is, else what `read` shall return."""
        fps = self.config.fps
        now_ns = self._clock.now_ns()
        current = int((now_ns - self._started_ns) * fps / 1_000_000_000)
        if self.config.frames is not None:
            current = min(current, self.config.frames)
        if current > self._seq + 1:
            self.counters["skipped"] += current - self._seq
            self._seq = current
        due_ns = self._started_ns + int(self._seq * 1_000_000_000 / fps)
        wait_s = (due_ns - now_ns) / 1e9
        if wait_s <= 0:
            return None
        if self._interrupted.wait(min(wait_s, timeout_s)):
            return End("interrupted")
        return Timeout() if wait_s > timeout_s else None

    def interrupt(self) -> None:
        """End a paced wait at once; later reads return `End` until the source is closed."""
        self._interrupted.set()

    def close(self) -> None:
        """Drop the scene; the source may be opened again."""
        self._scene = None
        self._interrupted.clear()
