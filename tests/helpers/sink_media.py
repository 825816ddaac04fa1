"""Feeds real media to sinks without the project's own sources: frames, side packets, stream info.

Written plainly on PyAV, so that a fault of a source cannot hide one of a sink.
"""

from __future__ import annotations

import time
from fractions import Fraction

import av
import numpy as np

from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import ColorTags, RunContext, SidePacket, SideTrack, StreamInfo
from pipeline.url import Url


class PlainSide:
    """A `SideReader` over every audio and subtitle stream of a file."""

    def __init__(self, path):
        self.container = av.open(str(path))
        self.streams = [s for s in self.container.streams if s.type in {"audio", "subtitle"}]
        self.tracks = [SideTrack(s.type, s.codec_context.name, s.language, s) for s in self.streams]
        self.chapters = self.container.chapters()

    def packets(self):
        places = {s.index: i for i, s in enumerate(self.streams)}
        for packet in self.container.demux(self.streams):
            if packet.pts is not None:
                place = places[packet.stream.index]
                yield SidePacket(place, packet.pts * packet.time_base, packet)

    def close(self):
        self.container.close()


def read_info(path, name="clip", *, live=False, side=True):
    """Return a file's `StreamInfo`."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        context = stream.codec_context
        others = [s for s in container.streams if s.type in {"audio", "subtitle"}]
        return StreamInfo(
            name=name,
            uri=Url(str(path)),
            live=live,
            size_wh=(stream.width, stream.height),
            time_base=stream.time_base,
            rate_hz=stream.average_rate,
            frame_count=stream.frames or None,
            duration_s=None
            if stream.duration is None
            else (stream.duration + (stream.start_time or 0)) * stream.time_base,
            color=ColorTags(
                int(context.colorspace), int(context.color_primaries), int(context.color_trc)
            ),
            side=(lambda: PlainSide(path)) if side and (others or container.chapters()) else None,
            path=str(path),
        )


def read_frames(path, name="clip"):
    """Yield a file's frames."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        for seq, picture in enumerate(container.decode(stream)):
            stamp = FrameTime(time.monotonic_ns(), picture.pts, stream.time_base, picture.duration)
            yield Frame(FrameId(name, 0, seq), stamp, picture.to_ndarray(format="bgr24"))


def drawn_frames(pts, *, time_base=Fraction(1, 25), size=(64, 48), name="clip", image=None, **more):
    """Return frames with the given timestamps (None allowed), captured 40 ms apart."""
    frames = []
    for seq, stamp in enumerate(pts):
        gray = np.full((size[1], size[0], 3), (seq * 16) % 256, np.uint8)
        when = FrameTime(seq * 40_000_000, stamp, time_base)
        frames.append(Frame(FrameId(name, 0, seq), when, gray if image is None else image, **more))
    return frames


def stream_info(name="clip", *, time_base=Fraction(1, 25), rate=Fraction(25), **more):
    """Return the `StreamInfo` of a drawn stream."""
    values = {"uri": Url("test:"), "live": False, "size_wh": (64, 48), **more}
    return StreamInfo(name=name, time_base=time_base, rate_hz=rate, **values)


def run_sink(sink, frames, *infos, flush=True):
    """Open `sink`, feed it, flush and close it; returns its context."""
    context = RunContext()
    sink.open(context)
    context.streams.update({info.name: info for info in infos})
    try:
        for frame in frames:
            sink.process([frame])
        if flush:
            sink.flush()
    finally:
        sink.close()
    return context
