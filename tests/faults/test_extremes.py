"""Pictures, thresholds, batches and weights at the edge of what there is: the right result, or a
clear error; through the whole command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import run
from pipeline.errors import ModelError
from pipeline.geometry import Letterbox
from stages.decoders.masks import PlaneMasks, PrototypeMasks
from stages.sources.scenes import ShapesScene
from tests.helpers.onnx_models import YOLOV5_ROWS_32, rackfocus_metadata, save

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((1, 1), (1, 5000), (5000, 1), (2, 2), (3, 2), (320, 180), (97, 131))
"""Width and height."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scene(index=0, size_wh=(640, 360)):
    return ShapesScene(7, size_wh, 10).draw(index, Fraction(index, 2))[0]


def put(folder, images, kind="png"):
    """Write pictures into a folder, in this order."""
    folder.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{k:03}.{kind}"), image)


def command(capsys, *arguments, code=0):
    """Run it; return what it said on stderr."""
    given = ["run", *map(str, arguments), "--overwrite"]
    got = run.main(given)
    said = capsys.readouterr().err
    assert got == code, said
    return said


def lines(path="o.jsonl"):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def report():
    return json.loads(Path("r.json").read_text(encoding="utf-8"))


def check_boxes(found, size_wh):
    for one in found:
        x1, y1, x2, y2 = one["xyxy"]
        assert 0 <= x1 <= x2 <= size_wh[0]
        assert 0 <= y1 <= y2 <= size_wh[1]
        assert 0 <= one["score"] <= 1


# -- sizes -----------------------------------------------------------------------------------


@pytest.fixture
def odd(folder):
    """Pictures of all SIZES, with something in them."""
    put(folder / "odd", [cv2.resize(scene(), size) for size in SIZES])
    return folder / "odd"


@pytest.mark.parametrize("threshold", [0, 0.3, 1])
def test_pictures_of_every_size_go_through_in_one_run(odd, capsys, threshold):
    outputs = ["-o", "o.jsonl", "-o", "%06d.png", "--report", "r.json"]
    setting = f"nms.score_threshold={threshold}"
    command(capsys, odd, "--model", "shapes", *outputs, "--set", setting)
    found = lines()
    assert len(found) == len(SIZES)
    assert report()["streams"]["odd"]["frames_out"] == len(SIZES)
    for k, (width, height) in enumerate(SIZES):
        check_boxes(found[k]["detections"], (width, height))
        assert cv2.imread(f"{k:06}.png").shape == (height, width, 3)
    counts = [len(frame["detections"]) for frame in found]
    assert max(counts) <= 300
    if threshold == 1:
        assert counts == [0] * len(SIZES)
    else:
        assert counts[5] >= 3  # the 320x180 one is a scene


@pytest.mark.assets
@pytest.mark.parametrize(
    ("file", "option"),
    [
        ("yolov8n-seg_int8.onnx", "infer.device=cpu"),
        ("yunet_2026may.onnx", "infer.input_size=[320,320]"),
        ("selfie_segmentation.onnx", "infer.decoder=segmentation"),
        ("converted/deeplabv3_257_mv_gpu.onnx", "infer.device=cpu"),
    ],
)
def test_masks_points_and_maps_of_pictures_of_every_size(odd, assets, capsys, file, option):
    from pycocotools import mask as rle

    # So low that there is something everywhere, and everything is drawn.
    settings = ["--set", option, "--set", "nms.score_threshold=0.001"]
    command(
        capsys, odd, "--model", assets / "models" / file, *settings, "-o", "o.jsonl", "-o", "%d.png"
    )
    found = lines()
    boxes = 0
    for k, (width, height) in enumerate(SIZES):
        assert cv2.imread(f"{k}.png").shape == (height, width, 3)
        if "segmentation" in found[k]:
            assert sum(found[k]["segmentation"].values()) == pytest.approx(1, abs=1e-3)
            continue
        check_boxes(found[k]["detections"], (width, height))
        for one in found[k]["detections"]:
            boxes += 1
            if "mask" in one:
                assert one["mask"]["size"] == [height, width]
                assert 0 <= rle.area(one["mask"]) <= width * height
            if "keypoints" in one:
                assert np.isfinite(one["keypoints"]).all()
    assert boxes > 50 or "segmentation" in found[0]


@pytest.mark.parametrize(
    ("codec", "size_wh", "written_wh"),
    [
        ("h264", (1, 1), (2, 2)),
        ("h264", (1, 5000), (2, 5000)),
        ("h264", (5000, 1), (5000, 2)),
        ("vp9", (1, 1), (1, 1)),
        ("hevc", (15, 17), (16, 18)),
        ("av1", (3, 4), (4, 4)),
    ],
)
def test_a_video_of_tiny_pictures_plays(folder, capsys, codec, size_wh, written_wh):
    put(folder / "in", [np.full((*size_wh[::-1], 3), 40 * k, np.uint8) for k in range(3)])
    command(
        capsys, "in", "--model", "shapes", "-o", "o.mkv", "--report", "r.json", "--set",
        f"video.codec={codec}",
    )  # fmt: skip
    with av.open("o.mkv") as video:
        shown = [(frame.width, frame.height) for frame in video.decode(video=0)]
    assert shown == [written_wh] * 3
    details = report()["outputs"][0]["details"]
    assert details.get("padded_from_wh") == (None if size_wh == written_wh else list(size_wh))


@pytest.mark.parametrize(
    ("codec", "size_wh", "said"),
    [
        ("hevc", (1, 1), "hevc takes no pictures of 1x1, only of 16x16 to .*: h264, vp9"),
        ("av1", (2, 100), r"only of 4x4 to 16384x8704 pixels; codecs that do: h264, vp9"),
        ("h264", (16386, 2), r"only of 1x1 to 16384x16384 pixels; codecs that do: vp9"),
    ],
)
def test_a_size_that_a_codec_cannot_take_is_told_with_codecs_that_can(
    folder, capsys, codec, size_wh, said
):
    put(folder / "in", [np.zeros((*size_wh[::-1], 3), np.uint8)])
    told = command(
        capsys, "in", "--model", "shapes", "-o", "o.mkv", "--set", f"video.codec={codec}", code=1
    )
    assert re.search(said, told), told
    assert not Path("o.mkv").exists()


def test_an_8k_picture_gives_the_boxes_of_a_small_one_twelve_times_as_large(folder, capsys):
    small = scene()
    put(folder / "small", [small])
    put(folder / "large", [cv2.resize(small, (7680, 4320), interpolation=cv2.INTER_CUBIC)], "jpg")
    command(capsys, "small", "--model", "shapes", "-o", "small.jsonl")
    command(capsys, "large", "--model", "shapes", "-o", "large.jsonl")
    ((few,), (many,)) = (lines(f"{name}.jsonl") for name in ("small", "large"))
    # Those that are sure: resampling may move one across the threshold.
    expected = [one for one in few["detections"] if one["score"] > 0.6]
    got = [one for one in many["detections"] if one["score"] > 0.5]
    assert len(expected) >= 5
    assert len(expected) <= len(got) <= len(few["detections"])
    for one in expected:
        near = min(
            got, key=lambda g: np.abs(np.subtract(g["xyxy"], np.multiply(one["xyxy"], 12))).max()
        )
        assert near["class_id"] == one["class_id"]
        np.testing.assert_allclose(np.divide(near["xyxy"], 12), one["xyxy"], atol=2.0)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("file", "limit_mb"),
    [
        # Measured: 330 MB for boxes alone; masks are a byte a pixel of their boxes; a map is
        # made of two planes of float32 (265 MB) however many classes there are.
        ("yolov8n-seg_int8.onnx", 650),
        ("converted/deeplabv3_257_mv_gpu.onnx", 900),
    ],
)
def test_memory_of_an_8k_picture_is_bounded(folder, assets, file, limit_mb):
    picture = cv2.imread(str(assets / "datasets/coco128_train/images/000000000036.jpg"))
    put(folder / "in", [cv2.resize(picture, (7680, 4320))], "jpg")
    arguments = ["run", "in", "--model", str(assets / "models" / file), "-o", "o.jsonl"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments, "--report", "r.json"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = lines()
    assert "person" in json.dumps(line)
    assert 100 < report()["throughput"]["peak_rss_mb"] < limit_mb


# -- nothing, and too much -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_nothing_found_is_a_result_everywhere(folder, capsys, batch):
    """Lines without boxes, untouched pictures, a whole video, and a report that says so."""
    black = [np.zeros((90, 160, 3), np.uint8)] * 6
    put(folder / "in", black)
    command(
        capsys, "in", "--model", "shapes", "-o", "o.jsonl", "-o", "%d.png", "-o", "o.mp4",
        "--report", "r.json", "--set", f"infer.batch={batch}",
    )  # fmt: skip
    assert [frame["detections"] for frame in lines()] == [[]] * 6
    for k in range(6):
        assert not cv2.imread(f"{k}.png").any()
    with av.open("o.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 6
        stream = video.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(6, 25)
    told = report()
    assert told["stages"]["nms"]["counters"] == {
        "cut_by_max_detections": 0,
        "outside_picture": 0,
    }
    assert {output["frames"] for output in told["outputs"]} == {6}


def test_a_limit_that_cuts_is_counted_for_each_frame_and_told_once(folder, capsys):
    put(folder / "in", [scene(k) for k in range(4)])
    said = command(
        capsys, "in", "--model", "shapes", "-o", "o.jsonl", "--report", "r.json",
        "--set", "nms.score_threshold=0", "--set", "nms.max_detections=5",
    )  # fmt: skip
    assert [len(frame["detections"]) for frame in lines()] == [5] * 4
    assert report()["stages"]["nms"]["counters"]["cut_by_max_detections"] == 4
    assert said.count("max_detections 5 cut detections off, first in in/0/0") == 1
    assert said.count("cut detections off") == 1
    for frame in lines():
        scores = [one["score"] for one in frame["detections"]]
        assert scores == sorted(scores, reverse=True)


def test_every_batch_gives_the_same_results_whatever_the_number_of_frames(folder, capsys):
    """11 frames of mixed sizes in batches of 1 to 8: the last batch is never full but for 1."""
    put(folder / "in", [cv2.resize(scene(k), SIZES[5 + k % 2]) for k in range(11)])
    results = {}
    for batch in range(1, 9):
        command(
            capsys, "in", "--model", "shapes", "-o", "o.jsonl", "--set", f"infer.batch={batch}",
            "--set", "infer.batch_wait_s=0.05",
        )  # fmt: skip
        results[batch] = [frame["detections"] for frame in lines()]
    alone = results.pop(1)
    assert [len(alone), min(map(len, alone)) >= 1, sum(map(len, alone)) > 40] == [11, True, True]
    for batch, found in results.items():
        for one, other in zip(alone, found, strict=True):
            assert [d["class_id"] for d in one] == [d["class_id"] for d in other], batch
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a["xyxy"], b["xyxy"], atol=0.02)
                assert a["score"] == pytest.approx(b["score"], abs=2e-4)


# -- numbers that are none -------------------------------------------------------------------


def graph(path, change):
    """Write a detector that finds one thing, after `change` nodes have made 'level' of 'mean'.

    'level', (1, 1, 1), is multiplied with 0 and added to every output, so that it shows only where
    it is no number.
    """
    from onnx import TensorProto, helper

    table = np.zeros((1, YOLOV5_ROWS_32, 6), np.float32)
    table[0, 0] = 16, 16, 8, 8, 0.9, 1.0
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        *change(helper.make_node),
        helper.make_node("Mul", ["level", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "table"], ["output"]),
    ]
    constants = {"zero": 0.0, "one": 1.0, "hundred": 100.0}
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(table.shape))],
        {"table": table, **{k: np.full((1, 1, 1), v, np.float32) for k, v in constants.items()}},
        rackfocus_metadata(["thing"]),
    )


def test_weights_that_are_nan_are_refused_before_anything_is_written(folder, capsys):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(ROOT / "models" / "weights" / "shapes.onnx"))
    kernel = next(i for i in model.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(kernel).copy()
    values.flat[0] = np.nan
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    onnx.save(model, "nan.onnx")
    put(folder / "in", [scene()])
    said = command(capsys, "in", "--model", "nan.onnx", "-o", "o.jsonl", "-o", "o.mp4", code=2)
    assert "nan.onnx: output 'output' holds NaN in 27216 of 27216 values whatever" in said
    assert "weights are damaged" in said
    assert not Path("o.jsonl").exists()
    assert not Path("o.mp4").exists()


def test_nan_on_one_picture_only_ends_the_run_at_that_frame(folder, capsys):
    """As half precision that overflows: the frames before it are kept."""
    # The root of mean - 100: no number for the third picture, which is dark.
    graph(
        folder / "dark.onnx",
        lambda node: [
            node("Sub", ["mean", "hundred"], ["above"]),
            node("Sqrt", ["above"], ["level"]),
        ],
    )
    put(folder / "in", [np.full((32, 32, 3), v, np.uint8) for v in (200, 150, 20, 200)])
    settings = ["--set", "infer.scale=[1,1,1]"]
    said = command(
        capsys, "in", "--model", "dark.onnx", "-o", "o.jsonl", *settings, "--report", "r.json",
        code=1,
    )  # fmt: skip
    assert "nms.process failed at frame in/0/2: model dark: yolov5: 63 of 63 scores are NaN" in said
    assert [len(frame["detections"]) for frame in lines()] == [1, 1]
    assert report()["failures"][0]["frame"] == "in/0/2"


def test_a_graph_that_divides_by_the_picture_s_contrast_is_no_damaged_one(folder, capsys):
    """0 / 0 on the gray picture of the trial; every real picture has contrast."""
    graph(
        folder / "contrast.onnx",
        lambda node: [
            node("ReduceMax", ["images"], ["high"], axes=[1, 2, 3], keepdims=0),
            node("ReduceMin", ["images"], ["low"], axes=[1, 2, 3], keepdims=0),
            node("Sub", ["high", "low"], ["range"]),
            node("Div", ["range", "range"], ["level1"]),
            node("Mul", ["level1", "one"], ["level"]),
        ],
    )
    put(folder / "in", [scene()])
    command(capsys, "in", "--model", "contrast.onnx", "-o", "o.jsonl")
    assert [len(frame["detections"]) for frame in lines()] == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["prototypes", "planes"])
def test_masks_that_are_no_numbers_are_no_empty_masks(kind, value):
    fitted = Letterbox((1.0, 1.0), (0.0, 0.0), (32, 32), (32, 32))
    source = (
        PrototypeMasks(np.ones((1, 1), np.float32), np.full((1, 8, 8), value, np.float32))
        if kind == "prototypes"
        else PlaneMasks(np.full((1, 32, 32), value, np.float32))
    )
    with pytest.raises(ModelError, match="masks are not finite"):
        source.cut(fitted, np.array([[4, 4, 20, 20]], np.float32))


@pytest.mark.needs_torch
def test_nan_weights_are_not_exported(folder, capsys):
    torch = pytest.importorskip("torch")
    from models.yolo import published

    network = published((416, 416), depth=0.33, width=0.25, depthwise=True)
    state = network.inner.state_dict()
    state["backbone.backbone.stem.conv.bn.bias"][3] = torch.nan
    torch.save(state, "nan.pth")
    assert run.main(["export", "yolox-nano", "--weights", "nan.pth", "-o", "out.onnx"]) == 2
    assert "hold values that are not finite, first in inner.backbone" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["nan.pth"]
