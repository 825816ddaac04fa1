"""Which video, audio and subtitle codecs each output container keeps, and who encodes what.

Tables only: no media library, so that configs can be checked quickly. Safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import le
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pipeline.errors import SinkError, UsageError


@dataclass(frozen=True, slots=True)
class Container:
    """What one container format takes."""

    format: str
    """FFmpeg's muxer."""
    video: frozenset[str]
    """Values of the option `codec`."""
    audio: frozenset[str]
    """FFmpeg codec names that are copied; every other is transcoded."""
    audio_encoder: str
    """Encoder for audio that cannot be copied."""
    subtitles: frozenset[str]
    fragmented: bool
    """True: written in fragments and finalised with the index in front. False: any prefix of the
    file is readable as it is."""


_ALL_VIDEO: Final = frozenset({"h264", "h264_nvenc", "hevc", "vp9", "av1"})

CONTAINERS: Final[Mapping[str, Container]] = MappingProxyType(
    {
        ".mp4": Container(
            "mp4",
            _ALL_VIDEO,
            # Vorbis can be stored too, but hardly a player of mp4 expects it.
            frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}),
            "aac",
            frozenset({"mov_text"}),
            fragmented=True,
        ),
        ".mov": Container(
            "mov",
            frozenset({"h264", "h264_nvenc", "hevc"}),
            frozenset(
                {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le"}
                | {"pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_alaw", "pcm_mulaw"}
            ),
            "aac",
            frozenset({"mov_text"}),
            fragmented=True,
        ),
        ".mkv": Container(
            "matroska",
            _ALL_VIDEO,
            frozenset(
                {"aac", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "opus", "vorbis", "alac"}
                | {"flac", "tta", "wavpack", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le"}
                | {"pcm_f32le", "pcm_f64le", "pcm_s16be", "pcm_s24be", "pcm_s32be"}
            ),
            "libopus",
            frozenset({"subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle"}),
            fragmented=False,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Encoder:
    """How one `codec` is encoded."""

    name: str
    """FFmpeg's encoder."""
    preset: str
    quality: int
    """Default of the option `quality`, on the encoder's own scale (lower is better)."""
    needs_even: bool
    """Width and height must be even (4:2:0 of H.264 and HEVC cannot crop a single line)."""
    least_px: int = 1
    """Shortest side that the encoder opens with, tried out with those in PyAV 18."""
    most_wh: tuple[int, int] = (65535, 65535)
    """Largest width and height, likewise; of NVENC, whose limits the GPU sets, nothing is said."""


ENCODERS: Final[Mapping[str, Encoder]] = MappingProxyType(
    {
        "h264": Encoder("libx264", "veryfast", 23, needs_even=True, most_wh=(16384, 16384)),
        "h264_nvenc": Encoder("h264_nvenc", "p4", 23, needs_even=True),
        "hevc": Encoder("libx265", "veryfast", 26, needs_even=True, least_px=16),
        "vp9": Encoder("libvpx-vp9", "7", 33, needs_even=False),
        "av1": Encoder("libsvtav1", "10", 35, needs_even=True, least_px=4, most_wh=(16384, 8704)),
    }
)


def check_size(codec: str, size_wh: tuple[int, int], sink: str) -> None:
    """Check that pictures of a size can be encoded; odd sides are made even before.

    Raises:
        SinkError: they are too small or too large; the text names codecs that take them.
    """
    if _takes(ENCODERS[codec], size_wh):
        return
    encoder, (width, height) = ENCODERS[codec], size_wh
    least, most = encoder.least_px, "x".join(map(str, encoder.most_wh))
    others = [
        name
        for name, other in ENCODERS.items()
        if _takes(other, size_wh) and not name.endswith("_nvenc")  # whose limits the GPU sets
    ]
    remedy = f"codecs that do: {', '.join(others)}" if others else "write pictures (f/%06d.png)"
    raise SinkError(
        f"{sink}: {codec} takes no pictures of {width}x{height}, only of {least}x{least} to {most} "
        f"pixels; {remedy}"
    )


def _takes(encoder: Encoder, size_wh: tuple[int, int]) -> bool:
    even = [side + side % 2 if encoder.needs_even else side for side in size_wh]
    return min(even) >= encoder.least_px and all(map(le, even, encoder.most_wh))


def container_for(path: str, codec: str, sink: str) -> Container:
    """Return the container that the path's ending names.

    Raises:
        UsageError: no such container, or it cannot hold the codec.
    """
    suffix = Path(path).suffix.lower()
    container = CONTAINERS.get(suffix)
    if container is None:
        known = ", ".join(CONTAINERS)
        raise UsageError(f"{sink}: cannot tell the format of {path}: it must end in one of {known}")
    if codec not in container.video:
        raise UsageError(
            f"{sink}: {suffix} files cannot hold {codec}; "
            f"choose one of {', '.join(sorted(container.video))} or write .mkv"
        )
    return container
