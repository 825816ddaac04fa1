"""Files that are damaged, cut off or no video: one clear outcome each; nothing readable is lost."""

import itertools
import random

import pytest

from pipeline.errors import SourceError
from pipeline.stage import End, Lost, RunContext
from stages.sources.file import FileConfig, FileSource
from tests.contracts.check_source import read_all
from tests.helpers.media import make_video, probe, read_number

FASTSTART = {"movflags": "faststart"}


def read_file(path):
    source = FileSource(FileConfig(path=str(path)), "clip")
    context = RunContext()
    source.open(context)
    frames, outcome = read_all(source)
    source.close()
    return frames, outcome, source.counters, context.notes


def refusal(path):
    source = FileSource(FileConfig(path=str(path)), "clip")
    with pytest.raises(SourceError) as caught:
        source.open(RunContext())
    source.close()
    return str(caught.value)


def test_missing_file(tmp_path):
    (tmp_path / "street.mp4").touch()
    text = refusal(tmp_path / "stret.mp4")
    assert "does not exist" in text
    assert "in that directory there is street.mp4" in text


def test_missing_directory(tmp_path):
    assert "is not there either" in refusal(tmp_path / "no" / "a.mp4")


def test_directory(tmp_path):
    assert "is a directory" in refusal(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.bin", "a"])
def test_text_is_no_video(tmp_path, name):
    (tmp_path / name).write_text("not a video\n" * 500)
    text = refusal(tmp_path / name)
    assert str(tmp_path / name) in text
    assert "not a video" in text


def test_random_bytes_are_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(random.Random(1).randbytes(20_000))
    refusal(tmp_path / "a.mp4")


def test_sound_is_no_video(tmp_path):
    import av
    import numpy as np

    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as container:
        track = container.add_stream("aac", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 48000
        container.mux(track.encode(sound))
        container.mux(track.encode(None))
    assert "no video stream (found: audio aac)" in refusal(path)


def test_an_interrupted_recording_is_named_as_one(tmp_path):
    whole = make_video(tmp_path / "whole.mp4").read_bytes()  # its index is at the end
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "without its index" in refusal(tmp_path / "cut.mp4")


def test_a_stream_without_one_readable_picture(tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=10, container_options=FASTSTART, audio=False)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    assert "not one picture" in refusal(path)


CUTS = {
    "h264.mp4": {"container_options": FASTSTART},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container_options": FASTSTART},
    "h264.mkv": {},
    "vp8.webm": {"codec": "libvpx"},
    "h264.flv": {},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "hevc.mp4": {"codec": "libx265", "container_options": FASTSTART},
}


@pytest.mark.needs_ffmpeg
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("share", [0.3])
def test_a_cut_off_file_gives_its_readable_frames_and_then_lost(tmp_path, name, share):
    whole = make_video(tmp_path / name, frames=100, **CUTS[name])
    assert read_file(whole)[1] == End()
    data = whole.read_bytes()
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(data[: int(len(data) * share)])
    frames, outcome, counters, _ = read_file(cut)
    assert isinstance(outcome, Lost)
    assert "cut off" in outcome.reason
    assert str(cut) in outcome.reason
    assert len(frames) == probe(cut)["frames"]
    if cut.suffix in {".mp4", ".mov"}:
        there = len(frames) + counters["corrupt"]
        assert f"it has {there} of 100 frames" in outcome.reason, "every packet is accounted for"
    # The last pictures may be painted over by the decoder; those before are whole.
    assert [read_number(f.image) for f in frames[:-4]] == list(range(len(frames) - 4))


@pytest.mark.needs_ffmpeg
@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "mpeg4.avi", "mjpeg.mov"])
@pytest.mark.parametrize("seed", [1])
def test_flipped_bytes_cost_no_more_than_the_pictures_they_hit(tmp_path, name, seed):
    path = make_video(tmp_path / name, frames=100, **CUTS.get(name, {}))
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(15):
        data[rng.randrange(len(data) // 4, len(data) * 3 // 4)] ^= 0xFF
    path.write_bytes(data)
    frames, outcome, _, _ = read_file(path)
    assert len(frames) >= 90
    assert read_number(frames[-1].image) == 99, "reading must go on behind the damage"
    times = [f.time.pts for f in frames]
    assert all(b > a for a, b in itertools.pairwise(times))
    assert isinstance(outcome, End | Lost)


def test_a_damaged_packet_is_counted_and_the_rest_delivered(tmp_path):
    path = make_video(tmp_path / "a.mov", frames=20, codec="mjpeg", pix_fmt="yuvj420p", audio=False)
    import av

    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[7]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    frames, outcome, counters, notes = read_file(path)
    assert [read_number(f.image) for f in frames] == [k for k in range(20) if k != 7]
    assert [f.id.seq for f in frames] == list(range(19))
    assert counters["corrupt"] == 1
    assert outcome == End()
    assert "clip: 1 damaged packets skipped" in notes


@pytest.mark.needs_ffmpeg
@pytest.mark.parametrize("threads", [1, 0, 8])
def test_damage_in_the_last_packets_costs_no_picture_behind_it(tmp_path, threads):
    path = make_video(tmp_path / "a.mov", frames=20, codec="mjpeg", pix_fmt="yuvj420p", audio=False)
    import av

    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in (packets[-3],):
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    source = FileSource(FileConfig(path=str(path), threads=threads), "clip")
    source.open(RunContext())
    frames, _ = read_all(source)
    source.close()
    assert [read_number(f.image) for f in frames] == [*range(17), 18, 19]
    assert source.counters["corrupt"] == 1


@pytest.mark.assets
def test_the_corrupted_clip_of_decord(assets):
    frames, outcome, counters, notes = read_file(assets / "video" / "decord_corrupted.mp4")
    assert len(frames) == 49
    assert outcome == End()
    assert counters["corrupt"] == 1
    assert any("1 damaged packets skipped" in note for note in notes)
