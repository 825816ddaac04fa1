"""The images, jsonl and null sinks on real files."""

import json

import cv2
import numpy as np
import pytest

from pipeline.errors import SinkError, UsageError
from pipeline.frame import Frame, FrameId
from pipeline.stage import RunContext
from stages.sinks.images import ImagesSink, ImagesSinkConfig
from stages.sinks.jsonl import JsonlSink, JsonlSinkConfig
from stages.sinks.null import NullSink, NullSinkConfig
from stages.sinks.record import record_line
from tests.contracts.check_sink import check_sink
from tests.helpers.sink_media import drawn_frames, run_sink, stream_info


def images(path, **options):
    return ImagesSink(ImagesSinkConfig(path=str(path), **options), "images")


def jsonl(path, **options):
    return JsonlSink(JsonlSinkConfig(path=str(path), **options), "jsonl")


def test_contracts(tmp_path):
    frames, infos = drawn_frames(range(5)), [stream_info()]
    check_sink(lambda: images(tmp_path / "%04d.png", overwrite=True), frames, infos)
    check_sink(lambda: jsonl(tmp_path / "o.jsonl", overwrite=True), drawn_frames(range(5)), infos)
    check_sink(lambda: NullSink(NullSinkConfig(), "null"), drawn_frames(range(5)), infos)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_numbered_by_frame(tmp_path, suffix):
    frames = drawn_frames(range(6))[::2]
    run_sink(images(tmp_path / f"%06d.{suffix}"), frames, stream_info())
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{n:06d}.{suffix}" for n in (0, 2, 4)]
    for frame, name in zip(frames, names, strict=True):
        picture = cv2.imread(str(tmp_path / name))
        assert np.abs(picture.astype(int) - frame.image).max() <= (0 if suffix == "png" else 4)


def test_existing_pictures_are_kept_unless_told(tmp_path):
    (tmp_path / "0001.png").write_bytes(b"mine")
    with pytest.raises(SinkError, match=r"0001\.png exists already.*--overwrite"):
        run_sink(images(tmp_path / "%04d.png"), drawn_frames(range(3)), stream_info())
    assert (tmp_path / "0001.png").read_bytes() == b"mine"
    run_sink(images(tmp_path / "%04d.png", overwrite=True), drawn_frames(range(3)), stream_info())
    with pytest.raises(UsageError, match=r"0000\.png exists already"):
        images(tmp_path / "%04d.png").open(RunContext())


def test_frames_after_a_reconnect_replace_nothing(tmp_path):
    first, again = drawn_frames([0])[0], drawn_frames([0])[0]
    again = Frame(FrameId("clip", 1, 0), again.time, again.image)
    run_sink(images(tmp_path / "%d.png"), [first, again], stream_info())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0-e1.png", "0.png"]


def test_jsonl_holds_every_frame_at_once_and_counts_bytes(tmp_path):
    path = tmp_path / "o.jsonl"
    sink = jsonl(path)
    context = RunContext()
    sink.open(context)
    assert not path.exists()
    context.streams["clip"] = stream_info()
    frames = drawn_frames(range(4))
    for n, frame in enumerate(frames, 1):
        sink.process([frame])
        # Already on disk: a kill loses no line.
        assert len(path.read_text("utf-8").splitlines()) == n
    sink.flush()
    sink.close()
    assert path.read_text("utf-8") == "".join(record_line(f) + "\n" for f in frames)
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [0, 1, 2, 3]
    assert sink.outputs()[0].bytes == path.stat().st_size


def test_jsonl_of_no_frames_is_an_empty_file(tmp_path):
    run_sink(jsonl(tmp_path / "o.jsonl"), [], stream_info())
    assert (tmp_path / "o.jsonl").read_bytes() == b""
    run_sink(jsonl(tmp_path / "{stream}.jsonl"), [], stream_info("a"), stream_info("b"))
    assert (tmp_path / "a.jsonl").exists()
    assert (tmp_path / "b.jsonl").exists()


def test_jsonl_takes_several_streams_in_one_file(tmp_path):
    frames = [*drawn_frames([0], name="a"), *drawn_frames([0], name="b")]
    run_sink(jsonl(tmp_path / "o.jsonl"), frames, stream_info("a"), stream_info("b"))
    lines = (tmp_path / "o.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["stream"] for line in lines] == ["a", "b"]
