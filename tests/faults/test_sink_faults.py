"""Sinks under fire: killed, out of disk, broken sound. What was written must play."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.stage import RunContext
from stages.sinks.images import ImagesSink, ImagesSinkConfig
from stages.sinks.jsonl import JsonlSink, JsonlSinkConfig
from stages.sinks.video import VideoSink, VideoSinkConfig
from tests.helpers.media import make_video
from tests.helpers.sink_media import drawn_frames, read_frames, read_info, run_sink, stream_info

ROOT = Path(__file__).parents[2]

WRITER = """
import sys, time
from fractions import Fraction
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import RunContext, StreamInfo
from pipeline.url import Url
from stages.sinks.video import VideoSink, VideoSinkConfig
from tests.helpers.media import numbered
from tests.helpers.sink_media import PlainSide

path, rate, sound = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sink = VideoSink(VideoSinkConfig(path=path), "video")
context = RunContext()
sink.open(context)
base = Fraction(1, rate)
context.streams["clip"] = StreamInfo("clip", Url("t:"), False, (320, 240), base, Fraction(rate),
                                     side=lambda: PlainSide(sound))
for seq in range(100_000):
    image = numbered(seq, (320, 240))
    sink.process([Frame(FrameId("clip", 0, seq), FrameTime(0, seq, base), image)])
    print(seq, flush=True)
"""


def playable_s(path):
    """Return (end of the last video frame that decodes, of the last audio packet), seconds."""
    ends = []
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            end = Fraction(0)
            stream = getattr(container.streams, kind)[0]
            try:
                for frame in container.decode(stream):
                    end = frame.pts * stream.time_base
            except av.FFmpegError:
                pass  # the cut packet at the end
            ends.append(end)
    return ends


@pytest.mark.parametrize(
    ("suffix", "rate", "frames"),
    [("mp4", 30, 157), ("mp4", 10, 64), ("mkv", 30, 157), ("mov", 5, 33)],
)
def test_killed_while_writing_plays_up_to_two_seconds_before(tmp_path, suffix, rate, frames):
    sound = make_video(tmp_path / "sound.mp4", frames=300, size=(64, 64))
    target = tmp_path / f"out.{suffix}"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, target, str(rate), sound],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in child.stdout:
            given = int(line)
            if given >= frames:
                break
    finally:
        child.send_signal(signal.SIGKILL)
        given = max([given, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait()
        child.stdout.close()
    video_s, audio_s = playable_s(target)
    assert given / rate - video_s <= 2
    assert given / rate - audio_s <= 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def noise(count):
    rng = np.random.default_rng(3)
    frames = drawn_frames(range(count), size=(160, 120))
    return [type(f)(f.id, f.time, rng.integers(0, 256, (120, 160, 3), np.uint8)) for f in frames]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_disk_full_is_a_clear_error_and_what_was_written_plays(small_disk, suffix):
    target = small_disk / f"out.{suffix}"
    sink = VideoSink(VideoSinkConfig(path=str(target)), "video")
    with pytest.raises(SinkError, match=r"disk is full.*can be played"):
        run_sink(sink, noise(200), stream_info(size_wh=(160, 120)))
    given = sink.outputs()[0].frames
    assert 10 < given < 200
    with av.open(str(target)) as container:
        played = 0
        try:
            for _ in container.decode(video=0):
                played += 1
        except av.FFmpegError:
            pass
    assert given - played <= 50


def test_no_room_to_finalise_keeps_the_fragments(small_disk):
    frames = noise(40)
    target = small_disk / "out.mp4"
    sink = VideoSink(VideoSinkConfig(path=str(target), quality=24), "video")
    context = run_sink(sink, frames, stream_info(size_wh=(160, 120)))
    assert target.stat().st_size > 200_000
    assert sink.outputs()[0].details["index"] == "fragments"
    assert any("complete and playable" in note for note in context.notes)
    assert [p.name for p in small_disk.iterdir()] == ["out.mp4"]
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40


def test_disk_full_for_lines_and_pictures(small_disk):
    lines = JsonlSink(JsonlSinkConfig(path=str(small_disk / "o.jsonl")), "jsonl")
    with pytest.raises(SinkError, match=r"failed after .* lines: No space left"):
        run_sink(lines, drawn_frames(range(20_000), size=(2, 2)), stream_info())
    whole = (small_disk / "o.jsonl").read_text("utf-8").rpartition("\n")[0].splitlines()
    assert len(whole) == lines.outputs()[0].frames
    pictures = ImagesSink(ImagesSinkConfig(path=str(small_disk / "%d.png")), "images")
    with pytest.raises(SinkError, match="No space left"):
        run_sink(pictures, noise(20), stream_info())


class BrokenSide:
    """A side reader whose file breaks off in the middle."""

    def __init__(self, reader, after):
        self.reader = reader
        self.after = after
        self.tracks = reader.tracks
        self.chapters = ()
        self.closed = False

    def packets(self):
        for count, packet in enumerate(self.reader.packets()):
            if count == self.after:
                raise av.InvalidDataError(1094995529, "Invalid data found")
            yield packet

    def close(self):
        self.closed = True
        self.reader.close()


@pytest.mark.parametrize("after", [0, 20])
def test_sound_that_breaks_off_is_said_and_the_video_goes_on(tmp_path, after):
    clip = make_video(tmp_path / "in.mp4", frames=50)
    info = read_info(clip)
    broken = BrokenSide(info.side(), after)
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video")
    context = run_sink(sink, read_frames(clip), replace(info, side=lambda: broken))
    assert broken.closed
    assert any("end early" in note for note in context.notes)
    assert sink.outputs()[0].details["tracks"][0]["packets"] == after
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_folder_that_vanishes_before_the_first_frame(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    sink = VideoSink(VideoSinkConfig(path=str(folder / "out.mp4")), "video")
    context = RunContext()
    sink.open(context)
    folder.rmdir()
    context.streams["clip"] = stream_info()
    with pytest.raises(Exception, match="does not exist"):
        sink.process(drawn_frames([0]))
    sink.flush()
    sink.close()
    assert sink.outputs() == []
