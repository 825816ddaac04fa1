"""Makes test videos whose frames say which they are, and probes files with FFmpeg's own tools.

Nothing here uses the code under test: videos are written with PyAV, the reference is `ffprobe`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

NUMBER_BITS = 16
COLUMNS = 8
AUDIO_CODECS = {"webm": "libopus", "avi": "libmp3lame", "gif": None}
FAST = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libsvtav1": {"preset": "10", "crf": "20", "svtav1-params": "lp=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def numbered(number, size=(320, 240)):
    """Return a (h, w, 3) uint8 BGR picture that carries `number` in its upper quarter.

    Two rows of eight cells, dark 0 and bright 1, most significant bit first; below them a gradient
    and a bar that moves with the number. Survives lossy coding from 64 x 64 pixels up.
    """
    width, height = size
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(30, 220, width).astype(np.uint8)[None, :]
    image[..., 1] = np.linspace(40, 200, height).astype(np.uint8)[:, None]
    image[..., 2] = 90
    left = (number * 7) % max(1, width - width // 8)
    image[height // 2 :, left : left + max(1, width // 8)] = (40, 60, 230)
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, COLUMNS)
        value = 235 if number >> (NUMBER_BITS - 1 - bit) & 1 else 20
        rows = slice(row * height // 8, (row + 1) * height // 8)
        image[rows, column * width // COLUMNS : (column + 1) * width // COLUMNS] = value
    return image


def read_number(image):
    """Return the number that `numbered` put into a picture, whatever its size now is."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(NUMBER_BITS):
        row, column = divmod(bit, COLUMNS)
        y = int((row + 0.5) * height / 8)
        x = int((column + 0.5) * width / COLUMNS)
        dy, dx = max(1, height // 40), max(1, width // 40)
        number = number << 1 | int(image[y - dy : y + dy, x - dx : x + dx].mean() > 128)
    return number


def stills(path, numbers):
    """Frames of a clip by number, BGR."""
    import cv2

    clip, images = cv2.VideoCapture(str(path)), []
    for index in range(max(numbers) + 1):
        assert clip.grab()
        if index in numbers:
            images.append(clip.retrieve()[1])
    clip.release()
    return images


def make_video(
    path,
    *,
    frames=50,
    size=(320, 240),
    rate=Fraction(25),
    codec="libx264",
    pix_fmt="yuv420p",
    audio=True,
    pts: Sequence[int] | None = None,
    b_frames=2,
    gop=12,
    time_base=None,
    start=0,
    rotation=0,
    images=None,
    chapters=(),
    format=None,
    container_options=None,
    codec_options=None,
    color=None,
    audio_codec=None,
    audio_rate=48000,
):
    """Write a video of numbered frames and return its path as a `Path`.

    Args:
        size: (width, height) as displayed, rotation applied.
        pts: one timestamp a frame in `time_base` ticks, display order; by default equally spaced.
        time_base: by default 1/rate. mp4 and mov keep a multiple of it, mkv has 1/1000, ts 1/90000.
        start: ticks of `time_base` added to every video timestamp; audio starts at 0.
        rotation: degrees counter-clockwise that a player turns the stored picture by.
        images: own pictures, (h, w, 3) uint8 BGR as displayed, instead of the numbered ones.
        audio: number of sine tracks (440 Hz, 880 Hz ...), or True for one.
        color: codec context fields: colorspace, color_range, color_primaries, color_trc; pixels
            are made with the first two.
        chapters: dicts as `Container.chapters()` gives them.
    """
    path = Path(path)
    rate = Fraction(rate)
    base = 1 / rate if time_base is None else Fraction(time_base)
    pictures = None if images is None else list(images)
    count = frames if pictures is None else len(pictures)
    if pts is None:
        pts = [round(k / rate / base) for k in range(count)]
    count = min(count, len(pts))
    stamps = [pts[k] + start for k in range(count)]
    shown = size if pictures is None else pictures[0].shape[1::-1]
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = shown[::-1] if rotation % 180 else shown
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        stream.time_base = context.time_base = base
        context.gop_size = gop
        context.thread_count = 1
        options = dict(FAST.get(codec, {}))
        if codec in {"libx264", "libx265", "mpeg4", "mpeg2video"}:
            context.max_b_frames = b_frames
            if b_frames and codec == "libx264":
                # The preset turns B-frames off and places them by content: ask for the pattern.
                options |= {"bf": str(b_frames), "b_strategy": "0"}
        context.options = options | (codec_options or {})
        for key, value in (color or {}).items():
            setattr(context, key, value)
        if rotation:
            stream.set_display_rotation(rotation)
        name = audio_codec or AUDIO_CODECS.get(format or path.suffix[1:], "aac")
        tracks = [
            container.add_stream(name, rate=audio_rate, layout="mono")
            for _ in range(int(audio) if name else 0)
        ]
        if chapters:
            container.set_chapters(list(chapters))
        length_s = (stamps[-1] * base + 1 / rate) if stamps else Fraction(0)
        tones = [_tone(audio_rate, 440 * (i + 1), length_s) for i in range(len(tracks))]
        sounds = sorted(
            ((sound.pts, i, sound) for i, tone in enumerate(tones) for sound in tone),
            key=lambda entry: entry[:2],
        )
        for k in range(count):
            while sounds and Fraction(sounds[0][0], audio_rate) <= stamps[k] * base:
                _, i, sound = sounds.pop(0)
                container.mux(tracks[i].encode(sound))
            picture = numbered(k, shown) if pictures is None else pictures[k]
            frame = _encodable(np.rot90(picture, -(rotation // 90)), pix_fmt, color or {})
            frame.pts, frame.time_base = stamps[k], base
            container.mux(stream.encode(frame))
        for _, i, sound in sounds:
            container.mux(tracks[i].encode(sound))
        for each in (stream, *tracks):
            container.mux(each.encode(None))
    return path


def _encodable(picture, pix_fmt, color):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
    if pix_fmt == "bgr24":
        return frame
    return frame.reformat(
        format=pix_fmt,
        dst_colorspace=color.get("colorspace", 5),
        dst_color_range=color.get("color_range", 1),
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
    )


def _tone(rate, hertz, length_s):
    """Yield mono frames of 1024 samples of a sine."""
    total = int(length_s * rate)
    for first in range(0, total, 1024):
        at = np.arange(first, min(first + 1024, total))
        wave = (np.sin(2 * np.pi * hertz * at / rate) * 0.3 * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        yield frame


def ffmpeg(*arguments):
    """Run `ffmpeg` quietly, overwriting; arguments may be paths."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def add_subtitles(video, output, cues, *, codec=None):
    """Copy `video` to `output` with one text track; `cues` are (start_s, end_s, text)."""
    output = Path(output)
    text = output.with_suffix(".srt")
    text.write_text(
        "\n".join(
            f"{k}\n{_clock(start)} --> {_clock(end)}\n{line}\n"
            for k, (start, end, line) in enumerate(cues, 1)
        ),
        encoding="utf-8",
    )
    codec = codec or ("mov_text" if output.suffix in {".mp4", ".mov"} else "srt")
    maps = ("-map", "0", "-map", "1", "-c", "copy", "-c:s", codec)
    ffmpeg("-i", video, "-i", text, *maps, "-metadata:s:s:0", "language=eng", output)
    return output


def _clock(seconds):
    whole, milli = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{milli:03}"


def probe(path, *, stream=0, decode=True):
    """Ask `ffprobe` about a file; needs the programs, so mark the test `needs_ffmpeg`.

    Returns a dict:
        frames: decoded frames of video stream `stream` (None with decode=False)
        pts: best-effort timestamps of those frames, `time_base` ticks, decoder's output order
        packets_pts: timestamps of its packets that are not discarded, sorted
        time_base: Fraction; rate: average, Fraction; start_s, duration_s: Fraction or None
        size_wh, codec, pix_fmt, color (space, primaries, transfer, range), rotation (ccw degrees)
        container_duration_s: Fraction or None
        audio, subtitles: one list per stream of (pts, md5) of its packets, file order
        audio_codecs, subtitle_codecs, languages; audio_time_bases: list of Fraction
        chapters: list of (start_s, end_s, title)
    """
    general = _ffprobe(path, "-show_streams", "-show_format", "-show_chapters")
    streams = general.get("streams", [])
    attached = ("disposition", "attached_pic")
    videos = [s for s in streams if s["codec_type"] == "video" and not s[attached[0]][attached[1]]]
    video = videos[stream]
    packets = _ffprobe(path, "-show_packets", "-show_data_hash", "md5").get("packets", [])
    result = {
        "time_base": Fraction(video["time_base"]),
        "rate": _rate(video.get("avg_frame_rate")),
        "start_s": _seconds(video.get("start_time")),
        "duration_s": _seconds(video.get("duration")),
        "container_duration_s": _seconds(general["format"].get("duration")),
        "size_wh": (video["width"], video["height"]),
        "codec": video["codec_name"],
        "pix_fmt": video.get("pix_fmt"),
        "color": {
            "space": video.get("color_space"),
            "primaries": video.get("color_primaries"),
            "transfer": video.get("color_transfer"),
            "range": video.get("color_range"),
        },
        "rotation": next(
            (s["rotation"] for s in video.get("side_data_list", ()) if "rotation" in s), 0
        ),
        "packets_pts": sorted(
            int(p["pts"])
            for p in packets
            if p["stream_index"] == video["index"] and "pts" in p and "D" not in p["flags"]
        ),
        "chapters": [
            (Fraction(c["start_time"]), Fraction(c["end_time"]), c.get("tags", {}).get("title"))
            for c in general.get("chapters", ())
        ],
        "frames": None,
        "pts": None,
    }
    for kind, key in (("audio", "audio"), ("subtitle", "subtitles")):
        chosen = [s for s in streams if s["codec_type"] == kind]
        result[key] = [
            [
                (int(p["pts"]) if "pts" in p else None, p["data_hash"])
                for p in packets
                if p["stream_index"] == s["index"]
            ]
            for s in chosen
        ]
        result[f"{kind}_codecs"] = [s["codec_name"] for s in chosen]
        result[f"{kind}_time_bases"] = [Fraction(s["time_base"]) for s in chosen]
        result[f"{kind}_languages"] = [s.get("tags", {}).get("language") for s in chosen]
    if decode:
        entries = "frame=best_effort_timestamp"
        which = ("-select_streams", str(video["index"]), "-show_frames", "-show_entries", entries)
        shown = _ffprobe(path, *which).get("frames", [])
        result["frames"] = len(shown)
        result["pts"] = [
            int(f["best_effort_timestamp"]) if "best_effort_timestamp" in f else None for f in shown
        ]
    return result


def _ffprobe(path, *arguments):
    command = ["ffprobe", "-v", "quiet", "-of", "json", *arguments, str(path)]
    return json.loads(subprocess.run(command, check=False, capture_output=True).stdout or "{}")


def _rate(text):
    return None if not text or text.endswith("/0") else Fraction(text)


def _seconds(text):
    return None if text in {None, "N/A"} else Fraction(text)
