"""The file source on real files, made here or real clips, compared with FFmpeg's own prober."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.stage import End, RunContext
from stages.sources.file import FileConfig, FileSource
from tests.contracts.check_source import check_source, read_all
from tests.helpers.media import add_subtitles, ffmpeg, make_video, numbered, probe, read_number


def read_file(path, **options):
    """Return (info, frames, outcome, source, notes) of a whole file."""
    source = FileSource(FileConfig(path=str(path), **options), "clip")
    context = RunContext()
    info = source.open(context)
    frames, outcome = read_all(source)
    source.close()
    return info, frames, outcome, source, context.notes


def stamps(frames):
    return [frame.time.pts for frame in frames]


def numbers(frames):
    return [read_number(frame.image) for frame in frames]


def test_it_keeps_the_contract_of_a_source(tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=12, size=(64, 64))
    check_source(lambda: FileSource(FileConfig(path=str(path)), "clip"))


KINDS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.mov": {},
    "h264.flv": {},
    "h264.ts": {},
    "h264.avi": {},
    "hevc.mp4": {"codec": "libx265"},
    "hevc10.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "mpeg4b.mp4": {"codec": "mpeg4"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "pal.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_comes_out_once_in_display_order(tmp_path, name):
    path = make_video(tmp_path / name, frames=30, **KINDS[name])
    info, frames, outcome, source, _ = read_file(path)
    assert numbers(frames) == list(range(30))
    assert outcome == End()
    assert info.size_wh == (320, 240)
    assert source.counters["corrupt"] == source.counters["concealed"] == 0
    times = [frame.time.media_s for frame in frames]
    assert all(b > a for a, b in itertools.pairwise(times))
    # AVI writers leave a place empty behind the first frame.
    late = Fraction(1, 25) if name.endswith(".avi") else 0
    assert abs((times[-1] - times[0]) - Fraction(29, 25)) <= late + Fraction(1, 1000)
    if name != "h264.avi":
        assert source.counters["pts_repaired"] == 0


@pytest.mark.needs_ffmpeg
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pts": [0, 1, 2, 10, 11, 40, 41, 90], "time_base": Fraction(1, 100)},
        {"start": 40},
        {"rate": Fraction(30000, 1001)},
        {"rate": Fraction(240), "b_frames": 0},
        {"b_frames": 3, "gop": 50},
    ],
    ids=["cfr", "vfr", "late start", "29.97", "240", "b-frames"],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_timestamps_are_the_containers_own(tmp_path, suffix, options):
    path = make_video(tmp_path / f"a.{suffix}", frames=20, size=(128, 96), **options)
    info, frames, _, source, _ = read_file(path)
    seen = probe(path)
    assert stamps(frames) == seen["pts"]
    assert info.time_base == seen["time_base"]
    assert info.rate_hz == seen["rate"]
    assert source.counters["pts_repaired"] == 0


@pytest.mark.needs_ffmpeg
def test_what_an_edit_list_hides_is_not_emitted(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", frames=60, audio=False)
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "0.6", "-i", whole, "-t", "1", "-c", "copy", cut)
    _, frames, outcome, _, _ = read_file(cut)
    seen = probe(cut)
    assert len(frames) == seen["frames"]
    assert stamps(frames) == seen["pts"]
    assert numbers(frames)[0] == 15  # 0.6 s at 25 fps, not the key frame before it
    assert outcome == End()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    path = make_video(tmp_path / "a.mp4", frames=4, size=(192, 128), rotation=rotation)
    info, frames, _, _, notes = read_file(path)
    assert info.size_wh == frames[0].size_wh == (192, 128)
    assert numbers(frames) == [0, 1, 2, 3]
    assert any(f"rotation {rotation}" in note for note in notes) == bool(rotation)


@pytest.mark.parametrize("size", [(321, 241), (97, 64), (64, 97)])
def test_odd_sizes_keep_every_column_and_row(tmp_path, size):
    path = make_video(tmp_path / "a.webm", frames=3, size=size, codec="libvpx-vp9", audio=False)
    info, frames, _, _, _ = read_file(path)
    assert info.size_wh == size
    wrong = np.abs(frames[1].image.astype(int) - numbered(1, size)).mean()
    assert wrong < 12  # lossy coding and chroma subsampling


def test_one_pixel_is_a_picture(tmp_path):
    path = make_video(
        tmp_path / "a.mkv", frames=3, size=(1, 1), codec="ffv1", pix_fmt="yuv444p", audio=False,
        images=[np.full((1, 1, 3), value, np.uint8) for value in (0, 128, 255)],
    )  # fmt: skip
    _, frames, _, _, _ = read_file(path)
    assert [int(frame.image[0, 0, 1]) for frame in frames] == pytest.approx([0, 128, 255], abs=2)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("matrix", "sws"), [(1, 1), (6, 5), (9, 9)], ids=["709", "601", "2020"])
def test_colours_survive_coding_and_decoding(tmp_path, matrix, sws, full):
    bars = [
        (0, 0, 0),
        (255, 255, 255),
        (200, 40, 30),
        (40, 190, 60),
        (30, 50, 210),
        (128, 128, 128),
    ]
    image = np.zeros((64, 64 * len(bars), 3), np.uint8)
    for k, bar in enumerate(bars):
        image[:, 64 * k : 64 * (k + 1)] = bar
    tags = {"colorspace": sws, "color_range": 2 if full else 1}
    path = make_video(
        tmp_path / "a.mp4", images=[image] * 2, color=tags, audio=False, codec_options={"crf": "1"}
    )
    if matrix != sws:
        tags = {**tags, "colorspace": matrix}
    info, frames, _, _, _ = read_file(path)
    assert info.color.full_range is full
    for k, bar in enumerate(bars):
        middle = frames[0].image[16:48, 64 * k + 16 : 64 * k + 48].reshape(-1, 3)
        # 2 for our conversion, 1 for the encoder's input, which is rounded to 8 bits as well.
        assert np.abs(middle.mean(axis=0) - bar).max() <= 3, bar


def test_a_size_that_changes_changes_the_frames(tmp_path):
    parts = [
        make_video(tmp_path / f"{k}.ts", frames=10, size=size, audio=False, b_frames=0)
        for k, size in enumerate([(320, 240), (192, 128)])
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    info, frames, _, source, _ = read_file(joined)
    assert [f.size_wh for f in frames] == [(320, 240)] * 10 + [(192, 128)] * 10
    assert numbers(frames) == [*range(10), *range(10)]
    assert info.size_wh == (320, 240)
    times = stamps(frames)
    assert all(b > a for a, b in itertools.pairwise(times))
    # The second part's clock starts over: moved behind the first, once, and marked.
    assert [f.id.seq for f in frames if f.discontinuity] == [10]
    assert source.counters["pts_repaired"] == 1


@pytest.mark.parametrize(("marks", "best"), [((1, 1), 1), ((1, 0), 0), ((0, 1), 1)])
def test_the_best_stream_or_the_one_asked_for_is_read(tmp_path, marks, best):
    import av

    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size, mark in zip(((128, 96), (256, 192)), marks, strict=True):
            stream = container.add_stream("libx264", rate=25)
            stream.disposition = av.stream.Disposition(mark)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            streams.append(stream)
        for k in range(5):
            for stream in streams:
                picture = numbered(k, (stream.width, stream.height))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert read_file(path)[0].size_wh == ((128, 96), (256, 192))[best]
    info, frames, _, _, _ = read_file(path, stream=0)
    assert info.size_wh == (128, 96)
    assert numbers(frames) == list(range(5))
    with pytest.raises(SourceError, match="no video stream 2; there are 0: video h264 128x96, 1:"):
        read_file(path, stream=2)


@pytest.mark.needs_ffmpeg
def test_a_cover_picture_is_no_video(tmp_path):
    song = make_video(tmp_path / "a.mp4", frames=20)
    cover = tmp_path / "cover.png"
    ffmpeg("-i", song, "-frames:v", "1", "-vf", "scale=1280:960", cover)
    both = tmp_path / "both.mp4"
    maps = ("-map", "0", "-map", "1", "-c", "copy", "-c:v:1", "png")
    ffmpeg("-i", song, "-i", cover, *maps, "-disposition:v:1", "attached_pic", both)
    info, frames, _, _, _ = read_file(both)
    assert info.size_wh == (320, 240)
    assert len(frames) == 20
    only = tmp_path / "only.m4a"
    maps = ("-map", "0:a", "-map", "1", "-c", "copy", "-disposition:v", "attached_pic")
    ffmpeg("-i", song, "-i", cover, *maps, only)
    with pytest.raises(SourceError, match=r"no video stream \(found: audio aac, video png.*cover"):
        read_file(only)


@pytest.mark.needs_ffmpeg
def test_side_packets_are_the_files_own(tmp_path):
    chapters = [
        {
            "id": 1,
            "start": 0,
            "end": 1000,
            "time_base": Fraction(1, 1000),
            "metadata": {"title": "a"},
        },
        {"id": 2, "start": 1000, "end": 2000, "time_base": Fraction(1, 1000), "metadata": {}},
    ]
    plain = make_video(tmp_path / "plain.mkv", audio=2, chapters=chapters)
    path = add_subtitles(plain, tmp_path / "a.mkv", [(0.2, 0.8, "one"), (1.0, 1.5, "two")])
    info = read_file(path)[0]
    assert info.side is not None
    reader = info.side()
    assert [(t.kind, t.codec) for t in reader.tracks] == [
        ("audio", "aac"), ("audio", "aac"), ("subtitle", "subrip"),
    ]  # fmt: skip
    assert reader.tracks[2].language == "eng"
    chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in reader.chapters]
    assert chapters == [(start, end) for start, end, _ in probe(path)["chapters"]]
    assert len(chapters) == 2
    packets = list(reader.packets())
    seen = probe(path)
    bases = seen["audio_time_bases"] + seen["subtitle_time_bases"]
    for index, expected in enumerate(seen["audio"] + seen["subtitles"]):
        ours = [p for p in packets if p.stream == index]
        assert [p.start_s for p in ours] == [pts * bases[index] for pts, _ in expected]
        assert [_md5(p.payload) for p in ours] == [digest for _, digest in expected]
    starts = [p.start_s for p in packets]
    assert max(a - b for a, b in itertools.pairwise(starts)) < 1, "interleaved as in the file"
    reader.close()
    reader.close()


def _md5(packet):
    import hashlib

    return "MD5:" + hashlib.md5(bytes(packet), usedforsecurity=False).hexdigest()


def test_a_silent_file_has_no_side(tmp_path):
    assert read_file(make_video(tmp_path / "a.mp4", frames=5, audio=False))[0].side is None


def test_thread_counts_do_not_change_the_pixels(tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=25, size=(160, 120))
    first, second = (read_file(path, threads=n)[1] for n in (1, 4))
    assert stamps(first) == stamps(second)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


@pytest.mark.assets
@pytest.mark.needs_ffmpeg
@pytest.mark.parametrize(
    "name",
    [
        "imageio_realshort.mp4",
        "decord_corrupted.mp4",
        "decord_flipping_a_pancake.mkv",
        "mediapipe_h264_aac.flv",
        "mediapipe_vp8_vorbis.mkv",
        "torchcodec/nasa_13013.mp4",
        "torchcodec/nasa_13013_rotated.mp4",
        "torchcodec/nasa_13013_hdr.mp4",
        "torchcodec/av1_video.mkv",
        "torchcodec/h265_video.mp4",
        "torchcodec/h265_10bits.mp4",
        "torchcodec/discard_first_keyframe.mp4",
        "torchcodec/testsrc2_mpeg4.avi",
        "torchcodec/testsrc2_vp8.webm",
        "torchcodec/testsrc2_odd_height_and_width_vp9.mp4",
        "torchcodec/bt601_full_range.mp4",
    ],
)
def test_real_clips_give_what_ffprobe_counts(assets, name):
    path = assets / "video" / name
    info, frames, outcome, source, _ = read_file(path)
    # The larger of this clip's two streams is its second.
    seen = probe(path, stream=1 if name.endswith("nasa_13013.mp4") else 0)
    assert len(frames) == seen["frames"]
    assert stamps(frames) == seen["pts"]
    assert outcome == End(), "a whole file must not be called cut off"
    assert info.time_base == seen["time_base"]
    assert source.counters["pts_repaired"] == 0


@pytest.mark.assets
def test_avi_with_b_frames_is_the_mp4_of_the_same_pictures(assets):
    limit = 60
    read = {}
    for suffix in ("avi", "mp4"):
        path = assets / "video" / f"vtest_gk.{suffix}"
        source = FileSource(FileConfig(path=str(path)), "clip")
        source.open(RunContext())
        read[suffix], _ = read_all(source, limit=limit)
        counters = dict(source.counters)
        source.close()
        if suffix == "avi":
            assert counters["pts_repaired"] > 0
    # 10 fps in both; the AVI's clock stands one frame later.
    times = {suffix: [f.time.media_s for f in frames] for suffix, frames in read.items()}
    assert [t - Fraction(1, 10) for t in times["avi"]] == times["mp4"]
    # Coded apart, so not equal: but nearer to their own frame than to the next.
    for k in range(limit - 1):
        ours = read["avi"][k].image.astype(int)
        own, other = (np.abs(ours - read["mp4"][i].image).mean() for i in (k, k + 1))
        assert own < 1.5
        assert own < other
