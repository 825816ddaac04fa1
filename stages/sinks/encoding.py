"""BGR pictures to encoded video packets: size, colour, key frames and delay.

Imports av and cv2, so it is imported itself only when a video sink opens. One thread at a time.
"""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any, Final, cast

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import DeviceError, UsageError
from pipeline.frame import U8
from pipeline.stage import ColorTags
from stages.sinks.containers import ENCODERS

LOOKAHEAD_S: Final = 0.4
"""Media time that an encoder may look ahead, hence hold back: a kill loses it. x264 without any
lookahead makes files twice as large (1329 against 661 kB for 250 frames of a static camera); five
frames of it win nearly all of that."""
MAX_LOOKAHEAD: Final = 10
_GUESSED_HZ: Final = Fraction(30)

# H.273 code points.
_BT709: Final = 1
_UNSPECIFIED: Final = 2
_BT601: Final = frozenset({5, 6})
# Players take pictures from 1280 columns or above 576 lines for BT.709 (mpv's rule), and so does
# the file source when it decodes.
_HD_COLUMNS: Final = 1280
_SD_LINES: Final = 576


def check_encoder(name: str, sink: str) -> None:
    """Check that an encoder is there and, on a GPU, that it opens.

    Raises:
        UsageError: this PyAV has no such encoder.
        DeviceError: the encoder needs a GPU that is not there.
    """
    try:
        context = cast(VideoCodecContext, av.CodecContext.create(name, "w"))
    except (av.FFmpegError, ValueError) as error:
        raise UsageError(
            f"{sink}: the encoder {name} is not in this build of PyAV (av {av.__version__})"
        ) from error
    if not name.endswith("_nvenc"):
        return
    context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
    context.time_base = Fraction(1, 25)
    try:
        context.open()
    except av.FFmpegError as error:
        raise DeviceError(
            f"{sink}: {name} needs an NVIDIA GPU with a working driver, and it did not open "
            f"({error.strerror or error}); choose codec: h264 to encode on the CPU"
        ) from error


def output_colors(source: ColorTags, size_wh: tuple[int, int]) -> ColorTags:
    """Return the tags that the output is made with: BT.601 or BT.709, limited range, always said.

    The source's matrix is kept where it is one of the two. Without one, players guess by the size,
    so the same guess is written down. Wide gamut and HDR become BT.709.
    """
    if source.matrix == _UNSPECIFIED:
        standard = _BT709 if size_wh[0] >= _HD_COLUMNS or size_wh[1] > _SD_LINES else 6
    elif source.matrix in _BT601:
        standard = source.matrix
    else:
        standard = _BT709
    primaries = source.primaries if source.primaries in {_BT709, *_BT601} else standard
    # BT.601 and BT.709 share the transfer curve; 13 is sRGB, 4 and 5 plain gamma.
    transfer = source.transfer if source.transfer in {1, 4, 5, 6, 13} else min(standard, 6)
    transfer = 6 if transfer == 5 and source.transfer not in {5} else transfer
    return ColorTags(standard, primaries, transfer, full_range=False)


class VideoEncoder:
    """One video track of a container."""

    def __init__(
        self,
        container: OutputContainer,
        codec: str,
        *,
        size_wh: tuple[int, int],
        time_base: Fraction,
        rate_hz: Fraction | None,
        colors: ColorTags,
        preset: str | None,
        quality: int | None,
        keyframe_interval_s: float,
        threads: int,
        low_delay: bool = False,
    ) -> None:
        encoder = ENCODERS[codec]
        self.encoder = encoder.name
        self.source_wh = size_wh
        """Size of the pictures as they came first."""
        even = encoder.needs_even
        self.size_wh = (
            (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2) if even else size_wh
        )
        """Size of the encoded picture."""
        self.resized = 0
        """Frames of another size than the first, fitted into it."""
        self._colors = colors
        self._interval_ticks = max(1, int(Fraction(keyframe_interval_s) / time_base))
        self._key_at: int | None = None
        self._durations: dict[int, int] = {}
        self._time_base = time_base
        self._reformatter = VideoReformatter()
        hertz = rate_hz or _GUESSED_HZ
        ahead = 0 if low_delay else min(MAX_LOOKAHEAD, int(hertz * Fraction(LOOKAHEAD_S)))
        options = _options(
            encoder.name,
            preset or encoder.preset,
            encoder.quality if quality is None else quality,
            ahead,
        )
        if low_delay and encoder.name == "libx264":
            options["tune"] = "zerolatency"
        stream = cast(VideoStream, container.add_stream(encoder.name, rate=hertz, options=options))
        context = stream.codec_context
        stream.width, stream.height = self.size_wh
        stream.pix_fmt = "yuv420p"
        stream.time_base = context.time_base = time_base
        context.thread_count = threads
        # Only a ceiling: key frames are asked for by media time, since the rate may vary.
        context.gop_size = max(1, round(hertz * Fraction(keyframe_interval_s) * 2))
        # No reordering: decode order is display order, so no timestamp has to be shifted, and
        # nothing is held back. Costs about 15 % in size.
        context.max_b_frames = 0
        context.colorspace = colors.matrix
        context.color_primaries = colors.primaries
        context.color_trc = colors.transfer
        context.color_range = ColorRange.MPEG
        if encoder.name == "libx265" and container.format.name in {"mp4", "mov"}:
            context.codec_tag = "hvc1"  # QuickTime plays no other
        self.stream = stream

    def encode(self, image: U8, pts: int, duration: int) -> list[Packet[Any]]:
        """Encode a (h, w, 3) uint8 BGR picture; returns the packets that are ready, 0 or more."""
        if image.shape[1::-1] != self.source_wh:
            image = _fit(image, self.source_wh)
            self.resized += 1
        width, height = self.size_wh
        if image.shape[1::-1] != self.size_wh:
            image = cv2.copyMakeBorder(
                image, 0, height - image.shape[0], 0, width - image.shape[1], cv2.BORDER_REPLICATE
            )
        bgr = VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "bgr24")
        frame = self._reformatter.reformat(
            bgr,
            format="yuv420p",
            # Without accurate rounding every value is cut off: half a level darker on average.
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            dst_colorspace=self._colors.matrix,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=self._colors.transfer,
            dst_color_primaries=self._colors.primaries,
            threads=1,
        )
        frame.pts, frame.time_base = pts, self._time_base
        frame.duration = duration
        if self._key_at is None or pts - self._key_at >= self._interval_ticks:
            frame.pict_type = PictureType.I
            self._key_at = pts
        self._durations[pts] = duration
        return self._timed(self.stream.encode(frame))

    def drain(self) -> list[Packet[Any]]:
        """Return the packets that were held back; nothing can be encoded afterwards."""
        return self._timed(self.stream.encode(None))

    def _timed(self, packets: list[Packet[Any]]) -> list[Packet[Any]]:
        """Give packets their frames' durations.

        libvpx leaves them out, and an mp4 whose last packet has none hides its last frame.
        """
        for packet in packets:
            if packet.pts is not None and packet.pts in self._durations:
                packet.duration = self._durations.pop(packet.pts)
        return packets


def _options(name: str, preset: str, quality: int, ahead: int) -> dict[str, str]:
    """Return an encoder's private options: constant quality, and no more delay than `ahead`."""
    if name == "libx264":
        return {
            "preset": preset,
            "crf": str(quality),
            "rc-lookahead": str(ahead),
            "forced-idr": "1",
        }
    if name == "libx265":
        params = f"log-level=error:bframes=0:rc-lookahead={ahead}:frame-threads=1:open-gop=0"
        return {
            "preset": preset,
            "crf": str(quality),
            "forced-idr": "1",
            "x265-params": params if ahead else f"{params}:b-adapt=0:scenecut=0",
        }
    if name == "libvpx-vp9":
        return {
            "deadline": "realtime",
            "cpu-used": preset,
            "crf": str(quality),
            "b": "0",
            "lag-in-frames": "0",
            "row-mt": "1",
        }
    if name == "libsvtav1":
        # Its library prints to stderr unless told otherwise: errors only.
        os.environ.setdefault("SVT_LOG", "1")
        # Low-delay prediction: the default structure holds back tens of frames.
        params = "pred-struct=1:lookahead=0"
        return {"preset": preset, "crf": str(quality), "svtav1-params": params}
    return {
        "preset": preset,
        "rc": "vbr",
        "cq": str(quality),
        "b": "0",
        "delay": "0",
        "forced-idr": "1",
    }


def _fit(image: U8, size_wh: tuple[int, int]) -> U8:
    """Return `image` scaled into a picture of `size_wh`, aspect kept, black around it."""
    width, height = size_wh
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(
        image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return canvas
