"""What SOURCE and SINK texts mean, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from stages.addresses import Address, parse_sink, parse_source, stream_name


@pytest.mark.parametrize(
    ("text", "kind", "options", "stream"),
    [
        ("clip.mp4", "file", {"path": "clip.mp4"}, "clip"),
        ("file:///a/clip.mp4", "file", {"path": "/a/clip.mp4"}, "clip"),
        ("a b/my clip (1).mov", "file", {"path": "a b/my clip (1).mov"}, "my_clip_1"),
        ("shots/*.png", "images", {"path": "shots/*.png"}, "shots"),
        ("photo.JPG", "images", {"path": "photo.JPG"}, "photo"),
        ("0", "webcam", {"device": 0}, "camera0"),
        ("12", "webcam", {"device": 12}, "camera12"),
        ("/dev/video2", "webcam", {"device": "/dev/video2"}, "camera2"),
        ("synthetic:shapes?seed=3", "synthetic", {"scene": "shapes", "seed": 3}, "shapes"),
    ],
)
def test_sources(text, kind, options, stream):
    address = parse_source(text)
    assert (address.kind, dict(address.options), address.stream) == (kind, options, stream)


def test_a_folder_is_images(tmp_path):
    address = parse_source(str(tmp_path))
    assert address.kind == "images"
    assert address.stream == stream_name(tmp_path.name)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    path = tmp_path / "clip [1].mp4"
    path.write_bytes(b"x")
    assert parse_source(str(path)).kind == "file"


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "http", "https", "RTSP"])
def test_network_sources_are_named_after_their_host_and_hide_credentials(scheme):
    address = parse_source(f"{scheme}://me:hunter2@camera.lan:8554/1?token=abc123")
    assert (address.kind, address.stream) == ("network", "camera.lan")
    assert "hunter2" not in repr(address)
    assert "abc123" not in repr(address)


def test_unknown_schemes_are_refused_without_showing_credentials():
    with pytest.raises(UsageError, match="did you mean 'rtsps'") as caught:
        parse_source("rtps://me:hunter2@camera/1?token=abc123")
    assert "hunter2" not in str(caught.value)
    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "  ", "file://", "synthetic:nothing"])
def test_sources_that_mean_nothing(text):
    with pytest.raises(UsageError):
        parse_source(text)


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("out.mp4", "video", {"path": "out.mp4"}),
        ("out.MKV", "video", {"path": "out.MKV"}),
        ("a/out.mov", "video", {"path": "a/out.mov"}),
        ("{stream}.jsonl", "jsonl", {"path": "{stream}.jsonl"}),
        ("frames/%06d.jpg", "images", {"path": "frames/%06d.jpg"}),
        ("%d.png", "images", {"path": "%d.png"}),
        ("window", "window", {}),
        ("null", "null", {}),
    ],
)
def test_sinks(text, kind, options):
    address = parse_sink(text)
    assert (address.kind, dict(address.options)) == (kind, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out.mp5", "did you mean '.mp4'?"),
        ("out.json", "did you mean '.jsonl'?"),
        ("windw", "did you mean 'window'?"),
        ("out", "not a known output"),
        ("", "not a known output"),
        ("frames/out.jpg", "need a frame number in their name, for example frames/out-%06d.jpg"),
        ("http://me:hunter2@host/live", "http:// cannot be pushed to"),
    ],
)
def test_sinks_that_mean_nothing_say_what_would(text, message):
    with pytest.raises(UsageError) as caught:
        parse_sink(text)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"), [("a b", "a_b"), ("...", "stream"), ("", "stream"), ("거리", "거리")]
)
def test_stream_names_are_safe(text, name):
    assert stream_name(text) == name


@pytest.mark.parametrize(
    ("text", "options"), [("web", {}), ("web:9000", {"port": 9000}), ("web:0", {"port": 0})]
)
def test_the_web_page_takes_a_port(text, options):
    assert parse_sink(text) == Address("web", options)


def test_an_address_to_serve_at_says_how_that_is_written():
    with pytest.raises(UsageError, match="web:8080") as caught:
        parse_sink("http://me:hunter2@0.0.0.0:80/")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="not a known output"):
        parse_sink("web:port")
