"""Same input, model and config, same answer: whatever the queues hold and however many threads run.

And what is found belongs to the frame it was found in: every picture, line and box of an output
carries the number of its own frame.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from dataclasses import replace

import av
import numpy as np
import pytest

from pipeline.detections import Detections
from pipeline.frame import Frame
from pipeline.runner import Pipeline
from pipeline.stage import Batching, Stage
from pipeline.wiring import QueueOptions
from stages.sinks.images import ImagesSink, ImagesSinkConfig
from stages.sinks.jsonl import JsonlSink, JsonlSinkConfig
from stages.sinks.video import VideoSink, VideoSinkConfig
from stages.sources.file import FileConfig, FileSource
from tests.helpers.media import make_video, read_number

WAYS = list(itertools.product((1, 4, 16), ("per_stage", "single"), (1, 2)))


@pytest.fixture
def hashes(monkeypatch, tmp_path, capsys):
    """Run the program over a source in every way; return the set of hashes and of line files."""
    import run

    monkeypatch.chdir(tmp_path)

    def collect(*arguments):
        found, lines = set(), set()
        for capacity, threads, infer in WAYS:
            code = run.main([
                "run", *map(str, arguments), "-o", "out.jsonl", "--report", "r.json", "--overwrite",
                "--quiet", "--device", "cpu", "--set", f"queues.capacity={capacity}",
                "--set", f"queues.threads={threads}",
                "--set", f"infer.threads={infer}",
                "--set", f"preprocess.queue={capacity == 4}", "--set", "nms.queue=false",
            ])  # fmt: skip
            assert code == 0, capsys.readouterr().err
            found.add(json.loads((tmp_path / "r.json").read_text())["detections_sha256"])
            lines.add((tmp_path / "out.jsonl").read_bytes())
        return found, lines

    return collect


def count_boxes(lines):
    return sum(len(json.loads(line)["detections"]) for line in lines.splitlines())


def test_the_synthetic_scene_gives_the_same_detections_in_every_way(hashes):
    found, lines = hashes("synthetic:shapes?size=320x240&frames=12&seed=5")
    assert len(found) == len(lines) == 1, found
    assert count_boxes(lines.pop()) > 12


@pytest.mark.assets
def test_a_real_clip_gives_the_same_detections_in_every_way(hashes, assets):
    found, lines = hashes(
        assets / "video" / "car-detection.mp4",
        "--model", assets / "models" / "yolox_nano_iinfer.onnx",
        "--max-frames", 20, "--set", "nms.score_threshold=0.03",
    )  # fmt: skip
    assert len(found) == len(lines) == 1, found
    assert count_boxes(lines.pop()) > 20


def test_several_sources_have_one_hash_however_their_frames_interleave(monkeypatch, tmp_path):
    import run

    monkeypatch.chdir(tmp_path)
    scenes = [f"synthetic:shapes?size=96x96&frames=12&seed={seed}" for seed in (1, 2, 3)]
    found, orders = set(), set()
    for capacity in (1, 2, 4, 8, 16):
        done = run.main([
            "run", *scenes, "--device", "cpu", "-o", "out.jsonl", "--report", "r.json", "--quiet",
            "--overwrite", "--set", f"queues.capacity={capacity}",
        ])  # fmt: skip
        assert done == 0
        found.add(json.loads((tmp_path / "r.json").read_text())["detections_sha256"])
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        orders.add(tuple(json.loads(line)["stream"] for line in lines))
    assert len(orders) > 1, "the test shows nothing: the frames always came in one order"
    assert len(found) == 1


class Jittery(Stage):
    """Takes its time, holds frames back, gives them in clumps, and finds in each picture a box
    whose place says which number the picture carries."""

    accepts = produces = Frame

    def __init__(self, name, seed):
        self.name = name
        self.counters = {}
        self.batching = Batching(4, 0.005)
        self._random = random.Random(seed)
        self._held = []

    def process(self, items):
        time.sleep(self._random.choice((0, 0, 0, 0.001, 0.004)))
        self._held += [self._found(frame) for frame in items]
        keep = self._random.randrange(4)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(out) :]
        return out

    def flush(self):
        out, self._held = self._held, []
        return out

    def _found(self, frame):
        number = read_number(frame.image)
        box = np.array([[number, 0, number + 1, 1]], np.float32)
        one = Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), ("n",))
        return replace(frame, detections=one)


@pytest.mark.parametrize("threads", ["per_stage", "single"])
@pytest.mark.parametrize("capacity", [1, 4])
def test_every_box_line_and_picture_belongs_to_its_frame(tmp_path, threads, capacity):
    count = 120
    clip = make_video(tmp_path / "clip.mp4", frames=count, size=(128, 128), audio=True)
    (tmp_path / "pictures").mkdir()
    sinks = [
        VideoSink(VideoSinkConfig(path=str(tmp_path / "out.mp4")), "video"),
        JsonlSink(JsonlSinkConfig(path=str(tmp_path / "out.jsonl")), "jsonl"),
        ImagesSink(ImagesSinkConfig(path=str(tmp_path / "pictures" / "%04d.png")), "images"),
    ]
    result = Pipeline(
        [FileSource(FileConfig(path=str(clip)), "clip")],
        [Jittery("one", 1), Jittery("two", 2)],
        sinks,
        live=False,
        queues=QueueOptions(capacity, threads=threads),
    ).run()
    assert result.exit_code == 0, result.reason
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(count))
    assert [line["detections"][0]["xyxy"][0] for line in lines] == list(range(count))
    with av.open(str(tmp_path / "out.mp4")) as container:
        shown = [
            (float(frame.pts * frame.time_base), read_number(frame.to_ndarray(format="bgr24")))
            for frame in container.decode(video=0)
        ]
    assert [number for _, number in shown] == list(range(count))
    assert [at for at, _ in shown] == pytest.approx([line["time_s"] for line in lines], abs=1e-4)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == count
    for picture in pictures:
        with av.open(str(picture)) as container:
            image = next(container.decode(video=0)).to_ndarray(format="bgr24")
        assert read_number(image) == int(picture.stem)
