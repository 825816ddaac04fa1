"""The video sink against an independent prober: times, sound, colours, sizes, containers."""

from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest

from pipeline.errors import SinkError, UsageError
from pipeline.frame import Frame, FrameId, FrameTime
from pipeline.stage import ColorTags, RunContext
from stages.sinks.video import VideoSink, VideoSinkConfig
from tests.contracts.check_sink import check_sink
from tests.helpers.media import add_subtitles, ffmpeg, make_video, probe, read_number
from tests.helpers.sink_media import drawn_frames, read_frames, read_info, run_sink, stream_info

pytestmark = pytest.mark.needs_ffmpeg
FAST = {"overwrite": True, "preset": "ultrafast"}


def convert(source, target, *, frames=None, infos=None, **options):
    """Run `source` through a video sink; returns (its probe, the output's, sink, context)."""
    sink = VideoSink(VideoSinkConfig(path=str(target), **(FAST | options)), "video")
    frames = read_frames(source) if frames is None else frames
    context = run_sink(sink, frames, *(infos or [read_info(source)]))
    return probe(source), probe(target), sink, context


def seconds(probed, key="pts"):
    return [pts * probed["time_base"] for pts in probed[key]]


def audio(probed, track=0):
    base = probed["audio_time_bases"][track]
    return [(pts * base, digest) for pts, digest in probed["audio"][track]]


def digests(probed):
    return [[digest for _, digest in track] for track in probed["audio"]]


def assert_same_times(source, output):
    tick = output["time_base"]
    ours, theirs = seconds(output), seconds(source)
    assert len(ours) == len(theirs)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= tick


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_times_and_two_audio_tracks_are_kept(tmp_path, suffix):
    clip = make_video(tmp_path / "in.mp4", frames=40, rate=Fraction(30000, 1001), audio=2)
    source, output, sink, context = convert(clip, tmp_path / f"out.{suffix}")
    assert output["frames"] == 40
    assert_same_times(source, output)
    assert digests(output) == digests(source)
    for track in (0, 1):
        offsets = [
            a - b for (a, _), (b, _) in zip(audio(output, track), audio(source, track), strict=True)
        ]
        assert max(map(abs, offsets)) <= output["audio_time_bases"][track]
    length, wanted = (p["duration_s"] or p["container_duration_s"] for p in (output, source))
    assert abs(length - wanted) <= Fraction(1001, 30000)
    assert context.notes == []
    details = sink.outputs()[0].details
    assert details["start_shift_s"] == 0
    assert [track["handling"] for track in details["tracks"]] == ["copied", "copied"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(tmp_path, suffix):
    pts = [0, 40, 55, 90, 400, 401, 1200, 1210, 1900, 2600]
    clip = make_video(tmp_path / "in.mkv", frames=10, pts=pts, time_base=Fraction(1, 1000))
    source, output, *_ = convert(clip, tmp_path / f"out.{suffix}")
    assert [float(t) for t in seconds(source)] == [p / 1000 for p in pts]
    assert_same_times(source, output)
    assert digests(output) == digests(source)


def test_late_start_is_kept_and_a_very_late_one_moves_to_zero_with_its_sound(tmp_path):
    # 0.24 s, and 90 s as a recording of a broadcast has.
    clip = make_video(tmp_path / "late.mp4", frames=30, start=6)
    source, output, sink, _ = convert(clip, tmp_path / "out.mp4")
    assert_same_times(source, output)
    assert sink.outputs()[0].details["start_shift_s"] == 0
    moved = tmp_path / "moved.mkv"
    ffmpeg("-i", clip, "-c", "copy", "-output_ts_offset", "90", moved)
    source, output, sink, _ = convert(moved, tmp_path / "out2.mp4")
    shift = sink.outputs()[0].details["start_shift_s"]
    assert -90.3 < shift < -89.7
    apart = [float(a - b) for a, b in zip(seconds(output), seconds(source), strict=True)]
    assert max(abs(d - shift) for d in apart) < 0.001
    assert digests(output) == digests(source)
    sound = [float(a - b) for (a, _), (b, _) in zip(audio(output), audio(source), strict=True)]
    assert max(abs(d - shift) for d in sound) < 0.001


def test_a_run_cut_short_ends_its_audio_with_the_video(tmp_path):
    clip = make_video(tmp_path / "in.mp4", frames=75)
    whole = probe(clip)
    for suffix in ("mp4", "mkv"):
        _, output, sink, _ = convert(
            clip, tmp_path / f"out.{suffix}", frames=islice(read_frames(clip), 25)
        )
        assert output["frames"] == 25
        kept = [entry for entry in audio(whole) if entry[0] < 1]
        assert digests(output)[0] == [digest for _, digest in kept]
        assert sink.outputs()[0].details["audio_ends_with_video"] is True
        assert sink.outputs()[0].duration_s == pytest.approx(1)


def test_audio_longer_than_the_video_is_kept_whole(tmp_path):
    clip = tmp_path / "long.mp4"
    sound = ("-f", "lavfi", "-i", "sine=duration=3")
    picture = ("-f", "lavfi", "-i", "testsrc=duration=1:size=64x64:rate=25")
    ffmpeg(*picture, *sound, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", clip)
    source, output, *_ = convert(clip, tmp_path / "out.mp4")
    assert digests(output) == digests(source)
    assert audio(output)[-1][0] > Fraction(29, 10)


def test_audio_the_container_cannot_hold_is_transcoded_and_said(tmp_path):
    clip = make_video(tmp_path / "in.mkv", frames=50, audio_codec="libopus")
    source, output, sink, context = convert(clip, tmp_path / "out.mov")
    assert output["audio_codecs"] == ["aac"]
    assert any("opus audio cannot be copied into mov" in note for note in context.notes)
    assert sink.outputs()[0].details["tracks"][0]["handling"] == "transcoded to aac"
    end = audio(output)[-1][0]
    assert abs(end - audio(source)[-1][0]) < Fraction(6, 100)
    with av.open(str(tmp_path / "out.mov")) as container:
        tone = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    # The 440 Hz sine is still there, not silence or noise.
    spectrum = np.abs(np.fft.rfft(tone[4800:52800] * np.hanning(48000)))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_aac_with_adts_headers_is_copied_without_them(tmp_path, suffix):
    clip = make_video(tmp_path / "in.ts", frames=30, audio_codec="aac")
    source, output, sink, context = convert(clip, tmp_path / f"out.{suffix}")
    assert context.notes == []
    assert sink.outputs()[0].details["tracks"][0]["adts_headers"] == "removed"
    assert len(output["audio"][0]) == len(source["audio"][0])
    sound = []
    for path in (clip, tmp_path / f"out.{suffix}"):
        with av.open(str(path)) as container:
            sound.append(np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], 1))
    length = min(part.shape[1] for part in sound)
    assert length > 40_000
    assert np.array_equal(sound[0][:, -length:], sound[1][:, -length:])


def test_subtitles_and_chapters(tmp_path):
    chapters = [
        {
            "id": 1,
            "start": 0,
            "end": 1000,
            "time_base": Fraction(1, 1000),
            "metadata": {"title": "a"},
        },
        {
            "id": 2,
            "start": 1000,
            "end": 2000,
            "time_base": Fraction(1, 1000),
            "metadata": {"title": "b"},
        },
    ]
    text = [(0.2, 0.8, "one"), (1.2, 1.8, "two")]
    for suffix in ("mp4", "mkv"):
        plain = make_video(tmp_path / f"plain.{suffix}", frames=50, chapters=chapters)
        clip = add_subtitles(plain, tmp_path / f"in.{suffix}", text)
        source, output, _, context = convert(clip, tmp_path / f"out.{suffix}")
        assert output["subtitle_codecs"] == source["subtitle_codecs"]
        assert output["subtitle_languages"] == ["eng"]
        kept = [[digest for _, digest in track] for track in output["subtitles"]]
        assert kept == [[digest for _, digest in track] for track in source["subtitles"]]
        assert len(output["chapters"]) == 2
        for ours, theirs in zip(output["chapters"], source["chapters"], strict=True):
            assert ours[2] == theirs[2]
            assert [float(t) for t in ours[:2]] == pytest.approx(
                [float(t) for t in theirs[:2]], abs=0.001
            )
        assert context.notes == []
    _, output, _, context = convert(tmp_path / "in.mkv", tmp_path / "cross.mp4")
    assert output["subtitles"] == []
    assert any("mp4 cannot hold the subrip subtitles" in note for note in context.notes)


@pytest.mark.parametrize(
    ("tags", "size", "names"),
    [
        (ColorTags(6, 6, 6), (64, 64), ("smpte170m", "smpte170m", "smpte170m")),
        (ColorTags(5, 5, 6), (64, 64), ("bt470bg", "bt470bg", "smpte170m")),
        (ColorTags(1, 1, 1), (64, 64), ("bt709", "bt709", "bt709")),
        (ColorTags(), (64, 64), ("smpte170m", "smpte170m", "smpte170m")),
        (ColorTags(), (64, 578), ("bt709", "bt709", "bt709")),
        (ColorTags(9, 9, 16), (64, 64), ("bt709", "bt709", "bt709")),
    ],
)
def test_colours_are_tagged_and_the_numbers_follow_the_tags(tmp_path, tags, size, names):
    bgr = np.array([40, 90, 200])
    image = np.full((size[1], size[0], 3), bgr, np.uint8)
    frames = drawn_frames(range(3), image=image)
    target = tmp_path / "out.mp4"
    sink = VideoSink(VideoSinkConfig(path=str(target), quality=1), "video")
    run_sink(sink, frames, stream_info(size_wh=size, color=tags))
    color = probe(target)["color"]
    assert (color["space"], color["primaries"], color["transfer"]) == names
    assert color["range"] == "tv"
    # BT.601 and BT.709, section 3 of each: luma weights of red and blue.
    red, blue = (0.2126, 0.0722) if names[0] == "bt709" else (0.299, 0.114)
    b, g, r = bgr / 255
    y = red * r + (1 - red - blue) * g + blue * b
    expected = (
        16 + 219 * y,
        128 + 224 * (b - y) / (2 * (1 - blue)),
        128 + 224 * (r - y) / (2 * (1 - red)),
    )
    with av.open(str(target)) as container:
        planes = next(container.decode(video=0)).planes
        found = [np.frombuffer(plane, np.uint8)[plane.line_size * 4 + 8] for plane in planes]
    assert found == pytest.approx(expected, abs=1.5)


def test_odd_sizes_are_padded_and_said(tmp_path):
    image = (
        np.random.default_rng(1).integers(0, 256, (1, 1, 3), np.uint8).repeat(35, 0).repeat(33, 1)
    )
    target = tmp_path / "out.mp4"
    sink = VideoSink(VideoSinkConfig(path=str(target), quality=1), "video")
    context = run_sink(sink, drawn_frames(range(3), image=image), stream_info(size_wh=(33, 35)))
    assert probe(target)["size_wh"] == (34, 36)
    assert sink.outputs()[0].details["padded_from_wh"] == [33, 35]
    assert any("33x35 is written as 34x36" in note for note in context.notes)
    with av.open(str(target)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="bgr24").astype(int)
    assert np.abs(picture[:, -1] - picture[:, 16]).max() <= 4


def test_a_size_that_changes_is_fitted_into_the_first(tmp_path):
    frames = drawn_frames([0, 1], size=(64, 64)) + drawn_frames([0, 0, 2, 3], size=(32, 128))[2:]
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video")
    run_sink(sink, frames, stream_info(size_wh=(64, 64)))
    probed = probe(tmp_path / "out.mp4")
    assert (probed["frames"], probed["size_wh"]) == (4, (64, 64))
    assert sink.counters == {"resized": 2}


def test_pts_that_repeat_or_lack_are_repaired_and_counted(tmp_path):
    frames = drawn_frames([0, 1, 1, None, 4])
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mkv")), "video")
    run_sink(sink, frames, stream_info())
    assert seconds(probe(tmp_path / "out.mkv")) == [Fraction(n, 25) for n in (0, 1, 2, 3, 4)]
    assert sink.counters == {"pts_nudged": 1, "pts_by_arrival": 1}


def test_frames_without_any_pts_go_by_arrival(tmp_path):
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video")
    run_sink(sink, drawn_frames([None] * 5), stream_info(live=True))
    assert seconds(probe(tmp_path / "out.mp4")) == [Fraction(n, 25) for n in range(5)]


@pytest.mark.parametrize(
    ("codec", "suffix"), [("hevc", "mp4"), ("vp9", "mp4"), ("av1", "mp4"), ("av1", "mkv")]
)
def test_other_codecs(tmp_path, codec, suffix):
    clip = make_video(tmp_path / "in.mp4", frames=20)
    source, output, *_ = convert(clip, tmp_path / f"out.{suffix}", codec=codec, preset=None)
    assert output["codec"] == codec
    assert_same_times(source, output)
    assert digests(output) == digests(source)
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        numbers = [read_number(f.to_ndarray(format="bgr24")) for f in container.decode(video=0)]
    assert numbers == list(range(20))


def test_index_is_in_front_and_no_rotation_is_left(tmp_path):
    clip = make_video(tmp_path / "in.mp4", frames=10, rotation=90, size=(64, 96))
    images = [
        Frame(f.id, f.time, np.ascontiguousarray(np.rot90(f.image))) for f in read_frames(clip)
    ]
    _, output, sink, _ = convert(clip, tmp_path / "out.mp4", frames=images)
    assert output["rotation"] == 0
    assert output["size_wh"] == (64, 96)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    assert sink.outputs()[0].details["index"] == "front"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_two_streams_two_files(tmp_path):
    frames = drawn_frames(range(3), name="a") + drawn_frames(range(2), name="b")
    infos = [stream_info("a"), stream_info("b")]
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "{stream}.mp4")), "video")
    run_sink(sink, frames, *infos)
    assert probe(tmp_path / "a.mp4")["frames"] == 3
    assert probe(tmp_path / "b.mp4")["frames"] == 2
    shared = VideoSink(VideoSinkConfig(path=str(tmp_path / "o.mp4")), "video")
    with pytest.raises(SinkError, match=r"put \{stream\} into the path"):
        run_sink(shared, frames, *infos)


def test_input_is_never_overwritten(tmp_path):
    clip = make_video(tmp_path / "in.mp4", frames=5)
    before = clip.read_bytes()
    with pytest.raises(UsageError, match="is the input of stream 'clip'"):
        convert(clip, clip)
    assert clip.read_bytes() == before


def test_nothing_is_written_before_the_first_frame(tmp_path):
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video")
    sink.open(RunContext())
    sink.flush()
    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert sink.outputs() == []


def test_close_without_flush_leaves_all_frames_readable(tmp_path):
    clip = make_video(tmp_path / "in.mp4", frames=60)
    for suffix in ("mp4", "mkv"):
        target = tmp_path / f"out.{suffix}"
        sink = VideoSink(VideoSinkConfig(path=str(target), **FAST), "video")
        run_sink(sink, read_frames(clip), read_info(clip), flush=False)
        assert probe(target)["frames"] == 60


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_contract(tmp_path, suffix):
    config = VideoSinkConfig(path=str(tmp_path / f"out.{suffix}"), **FAST)
    check_sink(lambda: VideoSink(config, "video"), drawn_frames(range(6)), [stream_info()])


@pytest.mark.assets
@pytest.mark.parametrize("name", ["car-detection.mp4", "mediapipe_h264_aac.flv", "vtest_gk.mp4"])
def test_real_clips(tmp_path, assets, name):
    clip = assets / "video" / name
    frames = (
        Frame(f.id, f.time, np.ascontiguousarray(f.image[::4, ::4])) for f in read_frames(clip)
    )
    source, output, *_ = convert(clip, tmp_path / "out.mp4", frames=frames)
    assert_same_times(source, output)
    assert digests(output) == digests(source)
    assert abs(audio(output)[100][0] - audio(source)[100][0]) < Fraction(1, 1000)


def test_frame_of_an_unannounced_stream(tmp_path):
    sink = VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video")
    sink.open(RunContext())
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(SinkError, match="no source announced"):
        sink.process([Frame(FrameId("x", 0, 0), FrameTime(0, 0, Fraction(1, 25)), image)])
    sink.close()
