"""Checks of output paths, and of pairs that cannot work."""

import pytest

from pipeline.errors import SinkError, UsageError
from stages.sinks import paths
from stages.sinks.containers import container_for
from stages.sinks.images import ImagesSinkConfig
from stages.sinks.window import WindowSink, WindowSinkConfig, has_display
from tests.helpers.sink_media import run_sink, stream_info


def test_stream_name_is_made_safe():
    assert paths.for_stream("out-{stream}.mp4", "rtsp://cam/1 a") == "out-rtsp_cam_1_a.mp4"
    assert paths.for_stream("{stream}.mp4", "../..") == "stream.mp4"
    assert paths.for_stream("{stream}.mp4", "골목") == "골목.mp4"


def test_missing_folder_folder_and_existing_file(tmp_path):
    with pytest.raises(UsageError, match=r"folder .*nowhere does not exist; create it"):
        paths.check_target(str(tmp_path / "nowhere" / "o.mp4"), overwrite=True, sink="video")
    with pytest.raises(UsageError, match="is a folder"):
        paths.check_target(str(tmp_path), overwrite=True, sink="video")
    file = tmp_path / "o.mp4"
    file.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        paths.check_target(str(file), overwrite=False, sink="video")
    paths.check_target(str(file), overwrite=True, sink="video")


def test_input_is_recognised_behind_links_and_other_spellings(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"x")
    (tmp_path / "soft.mp4").symlink_to(clip)
    (tmp_path / "hard.mp4").hardlink_to(clip)
    info = stream_info(path=str(clip))
    for name in ("clip.mp4", "soft.mp4", "hard.mp4", "../" + tmp_path.name + "/clip.mp4"):
        with pytest.raises(UsageError, match="is the input of stream 'clip'"):
            paths.check_not_source(str(tmp_path / name), [info], sink="video")
    paths.check_not_source(str(tmp_path / "other.mp4"), [info], sink="video")


def test_several_streams_need_a_placeholder():
    with pytest.raises(SinkError, match=r"e\.g\. out/v-\{stream\}\.mp4"):
        paths.check_streams("out/v.mp4", ["a", "b"], sink="video")
    with pytest.raises(SinkError, match="rename one"):
        paths.check_streams("v-{stream}.mp4", ["a b", "a/b"], sink="video")
    paths.check_streams("v-{stream}.mp4", ["a", "b"], sink="video")


def test_containers_refuse_what_they_cannot_hold():
    with pytest.raises(UsageError, match=r"\.mov files cannot hold vp9"):
        container_for("o.mov", "vp9", "video")
    with pytest.raises(UsageError, match=r"must end in one of \.mp4"):
        container_for("o.wmv", "h264", "video")


@pytest.mark.parametrize("path", ["frames/a.jpg", "f/%d-%d.jpg", "f/%d%.jpg", "f/%06d.bmp"])
def test_image_patterns_are_checked(path):
    with pytest.raises(ValueError, match="must"):
        ImagesSinkConfig(path=path)


def test_window_without_a_screen_is_an_error_not_an_abort(monkeypatch):
    assert has_display({"DISPLAY": ":0"}, "linux")
    assert has_display({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    assert has_display({}, "win32")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UsageError, match=r"no screen.*-o out\.mp4"):
        run_sink(WindowSink(WindowSinkConfig(), "window"), [])
