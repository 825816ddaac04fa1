"""The file source: every frame of a video file, in order, each with its own timestamp.

What it knows of codecs is in `decoding`, imported when a file is opened. Never waits, so it is not
live. One thread calls one instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import SourceError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import End, Lost, ReadResult, RunContext, SideReader, Source, StreamInfo
from pipeline.url import Url

if TYPE_CHECKING:
    import av

    from stages.sources.color import Converter
    from stages.sources.decoding import Decoding
    from stages.sources.timeline import Stamped

_PQ, _HLG = 16, 18


class FileConfig(Config):
    """A video file: anything FFmpeg reads (mp4, mov, mkv, webm, avi, flv, ts, gif ...)."""

    path: str = Field(min_length=1, description="the video file")
    stream: int | None = Field(
        default=None,
        ge=0,
        description="which video stream, counted from 0 without covers; default: best",
    )
    threads: int = Field(0, ge=0, le=64, description="decoding threads; 0: as FFmpeg chooses")


class FileSource(Source):
    """Reads a video file to its end.

    Frames carry the container's integer pts and time base; rotation is applied. counters: "corrupt"
    (packets that gave no picture), "concealed" (pictures with damaged parts painted over by the
    decoder), "pts_repaired" (see `stages.sources.timeline`). `alter`, where set, changes packets
    before they are decoded (see `stages.sources.faults`).
    """

    live = False

    def __init__(self, config: FileConfig, name: str) -> None:
        self.name = name
        self.counters = {}
        self._config = config
        self._path = Path(config.path).expanduser()
        self.alter: Callable[[Any], None] | None = None
        self._decoding: Decoding | None = None

    def open(self, context: RunContext) -> StreamInfo:
        """Open the file and decode its first picture.

        Raises:
            SourceError: missing, a directory, empty, not a video, no (such) video stream, or not
                one picture that can be decoded.
        """
        from stages.sources.color import Converter, color_tags, quarter_turns
        from stages.sources.decoding import Decoding
        from stages.sources.media import media_facts
        from stages.sources.sidestreams import has_side

        self.close()
        self._context = context
        self._seq = 0
        self.counters = {"corrupt": 0, "concealed": 0, "pts_repaired": 0}
        self._decoding = Decoding(
            self._path,
            stream=self._config.stream,
            threads=self._config.threads,
            alter=self.alter,
        )
        try:
            self._converter: Converter = Converter()
            self._pictures: Iterator[Stamped[av.VideoFrame]] = self._decoding.pictures()
            self._first = next(self._pictures, None)
            if self._first is None:
                self._refuse(self._decoding)
            first = self._first.item
            turn = quarter_turns(first.rotation)
            size = (first.height, first.width) if turn % 180 else (first.width, first.height)
            self._note_facts(first, turn)
            container, video = self._decoding.container, self._decoding.video
            base = video.time_base or Fraction(1, 1_000_000)
            self._time_base = base
            duration_s = None if video.duration is None else video.duration * base
            if duration_s is None and container.duration is not None:
                duration_s = Fraction(container.duration, 1_000_000)
            return StreamInfo(
                name=self.name,
                uri=Url(self._config.path),
                live=False,
                size_wh=size,
                time_base=base,
                rate_hz=video.average_rate or None,
                frame_count=video.frames or None,
                duration_s=duration_s,
                color=color_tags(first),
                side=self._open_side if has_side(container) else None,
                path=str(self._path.absolute()),
                media=media_facts(container, video, turn),
            )
        except BaseException:
            self.close()
            raise

    def read(self, timeout_s: float) -> ReadResult:  # noqa: ARG002 - a file never waits
        """Return the next frame; at the end `End`, or `Lost` where the file is cut off.

        Raises:
            SourceError: the source is not open.
        """
        decoding = self._decoding
        if decoding is None:
            raise SourceError(f"{self.name}: read() before open()")
        stamped, self._first = self._first or next(self._pictures, None), None
        self.counters["corrupt"] = decoding.corrupt
        self.counters["concealed"] = decoding.concealed
        self.counters["pts_repaired"] = decoding.repaired
        if stamped is None:
            self._note_counts(decoding)
            return End() if decoding.missing is None else Lost(f"{self._path}: {decoding.missing}")
        image = self._converter.bgr(stamped.item)
        time = FrameTime(
            captured_ns=self._context.clock.now_ns(),
            pts=stamped.pts,
            time_base=self._time_base,
            duration=stamped.duration,
        )
        identity = FrameId(self.name, 0, self._seq)
        self._seq += 1
        return Frame(identity, time, image, discontinuity=stamped.discontinuity)

    def close(self) -> None:
        """Release the file. Idempotent."""
        if self._decoding is not None:
            self._first = None
            self._pictures = iter(())
            self._decoding.close()
            self._decoding = None

    def _open_side(self) -> SideReader:
        from stages.sources.sidestreams import FileSideReader

        return FileSideReader(self._path)

    def _refuse(self, decoding: Decoding) -> NoReturn:
        why = f"{decoding.corrupt} damaged packets"
        raise SourceError(
            f"{self._path}: not one picture of its {decoding.video.name} stream can be decoded "
            f"({why if decoding.missing is None else f'{why}; {decoding.missing}'}): "
            "the file is damaged or cut off"
        )

    def _note_counts(self, decoding: Decoding) -> None:
        for count, what in (
            (decoding.repaired, "timestamps repaired into increasing order"),
            (decoding.corrupt, "damaged packets skipped"),
            (
                decoding.concealed,
                "pictures with damaged parts, delivered as the decoder mended them",
            ),
        ):
            if count:
                self._context.note(f"{self.name}: {count} {what}")

    def _note_facts(self, first: av.VideoFrame, turn: int) -> None:
        from stages.sources.color import color_tags, guess_matrix

        note = self._context.note
        if turn:
            note(f"{self.name}: rotation {turn} degrees counter-clockwise applied")
        tags = color_tags(first)
        if tags.matrix == 2 and len(first.format.components) > 2 and not first.format.is_rgb:
            matrix = "BT.709" if guess_matrix(first.width, first.height) == 1 else "BT.601"
            note(f"{self.name}: colour matrix not given, {matrix} assumed from the picture's size")
        if tags.transfer in (_PQ, _HLG):
            note(f"{self.name}: HDR ({'PQ' if tags.transfer == _PQ else 'HLG'}) is not tone-mapped")
        aspect = self._decoding.video.sample_aspect_ratio if self._decoding else None
        if aspect and aspect != 1:
            note(f"{self.name}: pixels are not square ({aspect}); pictures are used as stored")
