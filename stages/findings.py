"""What `doctor` found, in plain words: rows of (what, finding), and what to change.

Pure: numbers in, sentences out. Any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.metrics import StageMetrics
from pipeline.stage import ColorTags, StreamInfo
from stages.observing import Delay, Tempo

Rows = list[tuple[str, str]]

# H.273 code points.
_MATRICES: Final = {0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M"}
_MATRICES_WIDE: Final = {9: "BT.2020", 10: "BT.2020"}
_HDR: Final = {16: "PQ", 18: "HLG"}
_COUNTERS: Final = {
    "corrupt": "packets or pictures could not be decoded",
    "concealed": "pictures had damaged parts that the decoder painted over",
    "pts_repaired": "timestamps were repaired into increasing order",
    "skipped": "pictures gave way to newer ones before they were read",
}
_SAID: Final = (
    "colour matrix",
    "rotation",
    "tone-mapped",
    "fps",
    "timestamps",
    "damaged",
    "skipped",
)
"""In notes of sources: what has a row of its own here."""
_SAME: Final = 0.02
"""Rates that differ by less are the same: 29.97 is announced as 30."""
_LATE: Final = 0.05
_KEEPS_UP: Final = 0.95
_ONE_CORE: Final = 0.85
"""Share of one core's time: a single thread that decodes is then busy all the time."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a source gave while it was watched."""

    info: StreamInfo
    tempo: Tempo
    delay: Delay | None
    seconds: float
    """From the first frame to the last, by this machine's clock."""
    sizes_wh: list[tuple[int, int]]
    counters: Mapping[str, int]
    notes: tuple[str, ...]
    problem: str | None
    """What ended it before its time."""
    cpu_share: float
    """CPU time of the process by wall time: 1 is one core."""
    cpu_s: float
    """CPU time a frame: demuxing, decoding, conversion."""
    read_s: float
    """Wall time a frame inside `read`; live it includes the waiting."""

    @property
    def timed(self) -> bool:
        """Whether the frames carry times of their own, not those of counting or arrival."""
        counted = self.info.media is not None and not self.info.media.own_times
        return not counted and self.counters.get("pts_repaired", 0) <= self.tempo.frames / 2

    @property
    def hz(self) -> float | None:
        """The rate that a run has to keep up with: live that of arrival, else that of the times."""
        return self.tempo.arrival_hz if self.info.live else self.tempo.media_hz

    @property
    def true_hz(self) -> float | None:
        """The rate of the recording, as well as it can be told."""
        return self.tempo.media_hz if self.timed or not self.info.live else self.tempo.arrival_hz

    @property
    def decoding_is_full(self) -> bool:
        """Whether decoding a live stream takes all that one thread can give."""
        return self.info.live and self.cpu_share > _ONE_CORE


@dataclass(frozen=True, slots=True)
class Work:
    """What the stages cost on these frames."""

    model: Rows
    device: str | None
    costs: Mapping[str, StageMetrics]
    """By stage, the source first where it was read again."""
    hz: float | None
    """Frames per second to expect, without outputs."""
    slowest: str | None
    source: str


def source_rows(watched: Watched) -> Rows:
    """Return what the source is and gave."""
    info, media = watched.info, watched.info.media
    rows = [("address", str(info.uri)), ("mode", _mode(watched))]
    if media is not None:
        pixels = f" ({media.pixel_format})" if media.pixel_format else ""
        rows.append(("codec", f"{media.codec}{pixels} in {media.container}"))
    rows.append(("size", _size(watched)))
    rows += _rate(watched)
    if media is not None and media.container != "camera":
        rows.append(("colour", color(info.color, info.size_wh)))
        rows.append(("sound", ", ".join(media.audio) or "none"))
        if media.subtitles:
            rows.append(("subtitles", ", ".join(media.subtitles)))
    rows += [(name, f"{count} {_COUNTERS.get(name, '')}".rstrip())
             for name, count in watched.counters.items()]  # fmt: skip
    if info.live:
        rows.append(("delay", _delay(watched)))
    notes = (note.removeprefix(f"{info.name}: ") for note in watched.notes)
    rows += [("note", note) for note in notes if not any(said in note for said in _SAID)]
    if watched.problem is not None:
        rows.append(("problem", watched.problem))
    return rows


def work_rows(work: Work, watched: Watched, *, stand_in: bool) -> Rows:
    """Return what each stage costs and what rate to expect."""
    rows = list(work.model)
    for name, metrics in work.costs.items():
        label = f"{name} (decoding)" if name == work.source else name
        if metrics.items:
            p50, p95 = (metrics.service_ms.percentile(q) for q in (50, 95))
            rows.append((label, f"{p50:.2f} ms a frame, p95 {p95:.2f}"))
    if watched.info.live:
        rows.append(("decoding", f"{watched.cpu_s * 1000:.2f} ms of processor time a frame"))
    if work.hz is None:
        return [*rows, ("expect", "too few frames to tell")]
    slowest = "decoding" if work.slowest == work.source else work.slowest
    told = f"about {work.hz:.0f} frames a second without outputs"
    rows.append(("expect", f"{told}; the slowest stage is {slowest}" if slowest else told))
    hz = watched.hz
    if hz:
        rows.append(("so", _verdict(work.hz, hz, live=watched.info.live)))
    if stand_in:
        rows.append(("but", "with another model 'infer' costs something else"))
    return rows


def advice(work: Work, watched: Watched) -> list[str]:
    """Return what to change, the most important first."""
    hints = []
    info, hz = watched.info, watched.hz
    late = info.live and hz and work.hz is not None and work.hz < _KEEPS_UP * hz
    if late and work.slowest == "infer":
        hints.append(
            "this machine cannot run the model on every frame: a smaller model, --device cuda "
            "where there is a GPU, --backend openvino on the processor, or a lower rate of the "
            "camera; without a change frames are dropped, and what comes out stays fresh"
            if work.device == "cpu"
            else "this machine cannot run the model on every frame: a smaller model, or a lower "
            "rate of the camera; without a change frames are dropped, and what comes out stays "
            "fresh"
        )
    elif late:
        hints.append(
            f"this machine cannot take every frame, because of '{work.slowest}': let the camera "
            "send smaller pictures, or fewer of them"
        )
    if watched.decoding_is_full:
        hints.append(
            "decoding takes a whole core: use a smaller stream of the camera (most have two), or "
            "--set network.latency=smooth, which decodes on several cores"
        )
    elif watched.timed and watched.delay is not None and watched.delay.grows:
        hints.append(
            "the delay grows before the frames get here: lower the bit rate or size that the "
            "camera sends, or mend the network (cable instead of radio)"
        )
    if info.live and watched.counters.get("corrupt", 0) > 2:
        hints.append(
            "pictures are lost on the way: --set network.transport=tcp where it is udp; a shorter "
            "interval between key frames, set in the camera, ends the damage sooner"
        )
    if info.color.transfer in _HDR:
        hints.append("HDR is not tone-mapped: a detector sees it pale; record in SDR if you can")
    if watched.problem is not None:
        hints.append(f"see to this first: {watched.problem}")
    return hints


def color(tags: ColorTags, size_wh: tuple[int, int]) -> str:
    """Return in words what a stream says of its colours."""
    name = (_MATRICES | _MATRICES_WIDE).get(tags.matrix)
    if name is None:
        width, height = size_wh
        guess = "BT.709" if max(width, height) >= 1280 or min(width, height) > 576 else "BT.601"
        name = f"matrix not given, {guess} assumed from the size"
    levels = {True: "full range", False: "limited range", None: "range not given, limited assumed"}
    hdr = _HDR.get(tags.transfer)
    return f"{name}, {levels[tags.full_range]}" + (f", HDR ({hdr})" if hdr else "")


def _mode(watched: Watched) -> str:
    info = watched.info
    if info.live:
        return "live: frames are dropped, and counted, rather than delayed"
    length = ""
    if info.frame_count is not None:
        length = f", {info.frame_count} frames announced"
    if info.duration_s is not None:
        length += f", {float(info.duration_s):.2f} s"
    return f"offline: every frame is processed{length}"


def _size(watched: Watched) -> str:
    sizes = " then ".join(f"{w}x{h}" for w, h in watched.sizes_wh)
    text = sizes if len(watched.sizes_wh) == 1 else f"{sizes}: it changes on the way"
    media = watched.info.media
    if media is not None and media.rotation:
        text += f", turned by {media.rotation} degrees counter-clockwise as the stream asks"
    return text


def _rate(watched: Watched) -> Rows:
    info, seen = watched.info, watched.tempo
    hz = watched.true_hz
    if hz is None:
        return [("rate", f"{seen.frames} frames: too few to tell")]
    text = f"{hz:.2f} fps measured over {seen.frames} frames"
    announced = info.rate_hz
    if announced is None:
        text += ", none announced"
    elif abs(hz / float(announced) - 1) > _SAME:
        text += (
            f", but {float(announced):.2f} announced: the announcement is wrong, and nothing is "
            "computed from it"
        )
    else:
        text += f", {float(announced):.2f} announced"
    if info.live and watched.timed and watched.hz and abs(watched.hz / hz - 1) > _LATE:
        text += f"; they arrive at {watched.hz:.2f} a second"
    if seen.missing:
        text += f"; {seen.missing} more were not delivered"
    rows = [("rate", text)]
    if not watched.timed:
        rows.append(("times", "the format carries none: frames have those of counting or arrival"))
    elif seen.step_range_s is not None:
        least, most = (1000 * step for step in seen.step_range_s)
        if seen.variable:
            told = f"variable: steps of {least:.1f} to {most:.1f} ms; outputs keep each one"
        elif seen.uneven:
            told = f"constant, with some gaps of up to {most:.1f} ms"
        else:
            told = "constant"
        rows.append(("times", told))
    return rows


def _delay(watched: Watched) -> str:
    moved = watched.delay
    if not watched.timed:
        return "cannot be seen from here: the frames carry no times of their own"
    if moved is None:
        return "watched for too short a time to tell whether it grows"
    rate = abs(moved.slope) * 1000
    if moved.grows and watched.decoding_is_full:
        return f"grows by {rate:.0f} ms a second: decoding cannot keep up with the stream"
    if moved.grows:
        return f"grows by {rate:.0f} ms a second: the frames come slower than their own clock runs"
    if moved.shrinks:
        return (
            f"shrinks by {rate:.0f} ms a second: the sender empties a buffer, or sends a recording "
            "faster than it was made"
        )
    return (
        "constant: what there is of it is buffers, in the camera, the server or network.latency, "
        "and no lack of speed"
    )


def _verdict(expected_hz: float, hz: float, *, live: bool) -> str:
    if not live:
        return f"a minute of it takes about {60 * hz / expected_hz:.0f} s"
    if expected_hz >= _KEEPS_UP * hz:
        return f"it keeps up with the {hz:.1f} frames a second, {expected_hz / hz:.1f} times over"
    return (
        f"it does not keep up: of {hz:.1f} frames a second about {hz - expected_hz:.1f} will be "
        "dropped"
    )
