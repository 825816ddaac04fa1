"""The contracts of what a pipeline is made of: Source, Stage and Sink.

All three are passive: they make no thread that outlives `close`, and the runner decides which
thread runs them. One thread calls all methods of one instance, except `Source.interrupt`, which
any may call. Lifecycle: `open` once, then `read`/`process` any number of times, `flush` at the end
of stream (not after an abort), then `close`, only if `open` succeeded and safe to repeat.
Open-close-open must work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Generic, Protocol, TypeVar

from pipeline.clock import Clock, MonotonicClock
from pipeline.figures import Figures
from pipeline.frame import Frame, Inferred, Item, Prepared
from pipeline.url import Url

InT = TypeVar("InT", Frame, Prepared, Inferred)
OutT = TypeVar("OutT", Frame, Prepared, Inferred)


@dataclass(frozen=True, slots=True)
class ColorTags:
    """How a stream's pixels encode colour, in ITU-T H.273 code points; 2 means unspecified."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool | None = None


@dataclass(frozen=True, slots=True)
class SidePacket:
    """One packet of audio or subtitles beside the video."""

    stream: int
    """Index into `SideReader.tracks`."""
    start_s: Fraction
    """Presentation time on the video's own timeline, seconds, exact."""
    payload: object
    """The library's packet (PyAV: `av.Packet`); the engine does not look inside."""


@dataclass(frozen=True, slots=True)
class SideTrack:
    """One audio or subtitle stream that a sink may copy."""

    kind: str
    """"audio" or "subtitle"."""
    codec: str
    """FFmpeg's codec name, e.g. "aac"."""
    language: str | None
    template: object
    """What the muxer needs to make a copy of the stream (PyAV: the input stream)."""


class SideReader(Protocol):
    """Reads a source's side packets in time order, for one sink, on that sink's thread.

    Every sink gets a reader of its own, so a slow one holds nothing up and nothing has to be
    buffered.
    """

    @property
    def tracks(self) -> Sequence[SideTrack]:
        """The audio and subtitle streams."""
        ...

    @property
    def chapters(self) -> Sequence[Mapping[str, object]]:
        """Chapters as PyAV's `Container.chapters()` gives them."""
        ...

    def packets(self) -> Iterator[SidePacket]:
        """Yield the packets of all tracks in the order of the file; ends at the end of the
        media."""
        ...

    def close(self) -> None:
        """Release the reader; packets and templates are invalid afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What a container, server or camera says of itself, for people; nothing is computed from
    it."""

    container: str
    """FFmpeg's name of the format, or "camera"."""
    codec: str
    pixel_format: str | None = None
    rotation: int = 0
    """Degrees counter-clockwise that were applied."""
    audio: tuple[str, ...] = ()
    """Codecs, one for each stream."""
    subtitles: tuple[str, ...] = ()
    own_times: bool = True
    """False where the format carries no timestamps: those of the frames were counted, or are those
    of arrival."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known about a stream once its source is open. Later frames may differ in size."""

    name: str
    uri: Url
    live: bool
    size_wh: tuple[int, int]
    """Picture as delivered, rotation applied, pixels."""
    time_base: Fraction
    rate_hz: Fraction | None = None
    """Average frame rate for progress and encoder hints; timestamps are never made from it."""
    frame_count: int | None = None
    """Frames announced by the container; may be wrong, for progress only."""
    duration_s: Fraction | None = None
    color: ColorTags = ColorTags()
    side: Callable[[], SideReader] | None = None
    """Opens a reader for audio, subtitles and chapters; None where there are none."""
    path: str | None = None
    """Absolute path of the file behind the stream, so that a sink can refuse to overwrite it."""
    media: MediaFacts | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The source is complete: everything it had was read."""

    reason: str = "end of stream"


@dataclass(frozen=True, slots=True)
class Timeout:
    """Nothing came within the time given; the source is still there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The source broke off: what was read is good, the rest is missing."""

    reason: str


ReadResult = Frame | End | Timeout | Lost


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A live stream changed its state: it was lost, it came back."""

    at_ns: int
    """Clock.now_ns() of the change."""
    stream: str
    state: str
    reason: str
    """Free of credentials."""


KEPT_EVENTS = 1000
"""Events that a run keeps for its report, the newest; a camera may be lost for weeks."""


@dataclass(slots=True)
class RunContext:
    """What the runner tells a stage at `open`. `note` may be called from any thread."""

    live: bool = False
    clock: Clock = field(default_factory=MonotonicClock)
    streams: dict[str, StreamInfo] = field(default_factory=dict)
    """By name. A stream is in here before its first frame reaches any stage, but not yet at
    `open`."""
    notes: list[str] = field(default_factory=list)
    """Things the user should know that are no failure: printed once, and kept in the report."""
    on_note: Callable[[str], None] | None = None
    events: deque[StreamEvent] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    """What happened to live streams, the newest last."""
    figures: Callable[[], Figures] | None = None
    """Gives the run's figures of this moment, from any thread; None where no runner set it."""

    def event(self, event: StreamEvent) -> None:
        """Record a change of a stream's state, and tell the user. Any thread."""
        self.events.append(event)
        if self.on_note is not None:
            self.on_note(f"{event.stream}: {event.state}: {event.reason}")

    def note(self, message: str) -> None:
        """Record `message` once; repeated texts are dropped."""
        if message not in self.notes:
            self.notes.append(message)
            if self.on_note is not None:
                self.on_note(message)


class Source(ABC):
    """Yields the frames of one stream, in order."""

    name: str
    """The stream's name: in frame ids, reports and file name patterns."""
    live: bool
    """True where waiting loses data: a camera, a paced scene."""
    counters: dict[str, int]
    """For the report, by name; "corrupt" counts frames that could not be decoded."""

    @abstractmethod
    def open(self, context: RunContext) -> StreamInfo:
        """Connect or open, within a deadline.

        Raises:
            SourceError: it cannot be opened; the text says why and what to do.
        """

    @abstractmethod
    def read(self, timeout_s: float) -> ReadResult:
        """Return the next frame, or `End`, `Timeout` or `Lost`, within about `timeout_s`.

        Files may ignore the timeout: they never wait. After `End` or `Lost` it is not called again.
        """

    def interrupt(self) -> None:  # noqa: B027 - a file never blocks, so doing nothing is right
        """Make a blocked `open` or `read` return within 1 s, and later ones at once. Any thread."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How many items a stage wants at once, and how long it is willing to wait for them."""

    max_size: int = 1
    max_wait_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.max_wait_s < 0:
            raise ValueError(f"need max_size >= 1 and max_wait_s >= 0, got {self}")


class Stage(ABC, Generic[InT, OutT]):
    """Turns items into items: 0..n out for each call, order kept per stream."""

    name: str
    """Unique in the pipeline: the kind, or the name given in the config."""
    accepts: ClassVar[type[Item]]
    produces: ClassVar[type[Item]]
    batching: Batching = Batching()
    light: ClassVar[bool] = False
    """True where the work on a frame is small beside the cost of handing it to another thread."""
    counters: dict[str, int]
    """For the report, by name: what was cut, skipped or replaced."""

    def open(self, context: RunContext) -> None:
        """Load, allocate and warm up; after it, `process` runs at its normal speed."""

    @abstractmethod
    def process(self, items: Sequence[InT]) -> Sequence[OutT]:
        """Handle 1 to `batching.max_size` items. Input arrays are not modified."""

    def flush(self) -> Sequence[OutT]:
        """Return what was held back. Called once, at the end of stream."""
        return ()

    def close(self) -> None:
        """Release everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """One thing a sink wrote, for the report."""

    uri: str
    frames: int
    duration_s: float | None = None
    bytes: int | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    """Codec, audio handling, start shift and the like."""


class Sink(Stage[Frame, Frame]):
    """The end of the chain: takes frames, produces none. `flush` finalises what was written.

    `close` without `flush` (an abort, a failure elsewhere) must leave what was written readable.
    """

    accepts = Frame
    produces = Frame
    on_full: str | None = None
    """What this sink's queue does when it is full: "block", "drop_oldest", or None for the mode's
    default (block offline; drop_oldest live, so that a slow sink stalls nobody)."""
    wants_stop: bool = False
    """Set by a sink in which the user asked to stop (a closed window): the run then drains."""

    @abstractmethod
    def outputs(self) -> Sequence[OutputInfo]:
        """Return what has been written; after `close`, the final figures."""
