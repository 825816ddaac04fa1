"""What is recognised, what is refused with the choices, and whose word goes first."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import ModelError
from stages.decoders.names import COCO_80, COCO_90, COCO_91, VOC_20
from stages.decoders.recognise import FAMILIES, recognise
from tests.helpers.graphs import describe

NAMES_80 = str(dict(enumerate(COCO_80)))
YOLOX = {"output": (1, 3549, 85)}


def ultralytics(names, **more):
    return {"names": str(names), "stride": "32", "author": "Ultralytics", **more}


def ours(**changes):
    return {
        "rackfocus": json.dumps(
            {
                "schema": 1,
                "task": "detect",
                "decoder": "yolox",
                "preprocessing": {"pixel_order": "rgb", "pad_value": 0, "scale": [0.5, 0.5, 0.5]},
                "class_names": ["circle", "square"],
            }
            | changes
        )
    }


@pytest.mark.parametrize(
    ("outputs", "form", "kind", "count"),
    [
        (YOLOX, {}, "yolox", 80),
        ({"output0": (1, 10647, 85)}, {}, "yolov5", 80),
        ({"o": (1, 25200, 7)}, {"size_wh": (640, 640)}, "yolov5", 2),
        (
            {"output": (1, 10647, 85), "a": (1, 3, 52, 52, 85), "b": (1, 3, 26, 26, 85)},
            {},
            "yolov5",
            80,
        ),
        ({"output0": (1, 10647, 117), "output1": (1, 32, 104, 104)}, {}, "yolov5", 80),
        ({"output0": (1, 84, 3549)}, {}, "yolov8", 80),
        ({"output0": (1, 5, 3549)}, {}, "yolov8", 1),
        ({"output0": (1, 116, 3549), "output1": (1, 32, 104, 104)}, {}, "yolov8", 80),
        ({"output0": (1, 300, 6)}, {}, "yolo-end2end", 80),
        (
            {"scores": (1, 4420, 2), "boxes": (1, 4420, 4)},
            {"size_wh": (320, 240)},
            "ssd",
            1,
        ),
        ({"845": (605, 95)}, {"size_wh": (352, 352)}, "yolo-fastestv2", 80),
        (
            {"12": (100, 4), "13": ((100,), "int64"), "14": (100,), "15": (100, 1, 28, 28)},
            {},
            "rcnn",
            91,
        ),
    ],
)
def test_recognised_by_outputs_alone(outputs, form, kind, count):
    found = recognise(describe(outputs, **form))
    assert found.decoder.kind == kind
    assert found.decoder.class_count == len(found.class_names) == count
    assert kind in found.reason


@pytest.mark.parametrize(
    ("outputs", "metadata"),
    [
        ({"o": (1, 257, 257, 21)}, None),  # a segmentation map
        ({"o": (1, 1, 416, 416)}, None),
        ({"o": (1, 1000)}, None),
        ({"outputs": (1, 3549, 85)}, None),  # YOLOv6: decoded in YOLOX's shape
        ({"output": (1, 3549, 84)}, None),  # YOLOX of 79 classes, or a transposed yolov8 of 80
        ({"o": (1, 100, 6)}, None),  # finished boxes in an unknown order
        ({"output0": (1, 56, 3549)}, None),  # pose, or 52 classes
        ({"a": (1, 3000, 4), "b": (1, 3000, 21)}, None),  # SSD: normalised? background?
        ({"a": (1, 3549, 1), "b": (1, 3549, 1), "c": (1, 3549, 4)}, None),
        ({"845": (605, 17)}, {"size": (352, 352)}),  # fastestv2 with anchors of its own
    ],
)
def test_what_is_not_certain_lists_choices_and_what_was_seen(outputs, metadata):
    form = {"size_wh": metadata["size"]} if metadata else {}
    with pytest.raises(ModelError) as caught:
        recognise(describe(outputs, **form))
    text = str(caught.value)
    assert all(kind in text for kind in FAMILIES)
    assert "decoder:" in text
    for name, shape in outputs.items():
        assert f"{name} float32[{','.join(map(str, shape))}]" in text


def test_a_near_miss_names_what_it_could_be():
    with pytest.raises(ModelError, match=r"could be 'yolox'.* or 'yolov5'"):
        recognise(describe({"outputs": (1, 3549, 85)}))


def test_the_choice_settles_an_ambiguity():
    graph = describe({"outputs": (1, 3549, 85)})
    assert recognise(graph, decoder="yolov5").decoder.kind == "yolov5"
    assert recognise(graph, decoder="yolox").decoder.kind == "yolox"


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_choice_that_does_not_fit_says_expected_and_seen(kind):
    with pytest.raises(ModelError) as caught:
        recognise(describe({"o": (1, 7, 5)}), decoder=kind)
    assert FAMILIES[kind].form in str(caught.value)
    assert "o float32[1,7,5]" in str(caught.value)


def test_an_unknown_choice_lists_the_known():
    with pytest.raises(ModelError, match=r"'yolo11'.*yolox, yolov5, yolov8"):
        recognise(describe(YOLOX), decoder="yolo11")


@pytest.mark.parametrize(
    "names", [dict(enumerate("abc")), list("abc"), {2: "c", 0: "a", 1: "b"}], ids=str
)
def test_ultralytics_names_are_read(names):
    graph = describe({"output0": (1, 7, 3549)}, metadata=ultralytics(names, task="detect"))
    assert recognise(graph).class_names == ("a", "b", "c")


def test_ultralytics_size_is_height_first_and_fills_an_open_input():
    metadata = ultralytics(list("abc"), imgsz="[320, 640]")
    graph = describe({"output0": (1, 7, 4200)}, size_wh=(None, None), metadata=metadata)
    assert recognise(graph).preprocessing.size_wh == (640, 320)


def test_ultralytics_end2end_metadata_is_evidence():
    graph = describe({"dets": (1, 100, 6)}, metadata=ultralytics(["a"], end2end="True"))
    found = recognise(graph)
    assert (found.decoder.kind, found.class_names) == ("yolo-end2end", ("a",))


@pytest.mark.parametrize("task", ["pose", "obb", "classify"])
def test_other_tasks_are_refused_by_name(task):
    graph = describe({"output0": (1, 56, 3549)}, metadata=ultralytics(["p"], task=task))
    with pytest.raises(ModelError, match=f"task '{task}'"):
        recognise(graph)


@pytest.mark.parametrize(
    "names", ["__import__('os').getcwd()", "{0: 'a', 2: 'b'}", "[]", "[1, 2]", "{"]
)
def test_ultralytics_names_that_cannot_be_read_are_errors_and_never_run(names):
    graph = describe({"output0": (1, 7, 3549)}, metadata={"names": names, "stride": "32"})
    with pytest.raises(ModelError, match="names"):
        recognise(graph)


def test_metadata_and_graph_that_disagree_are_an_error():
    graph = describe({"output0": (1, 7, 3549)}, metadata=ultralytics(list("ab")))
    with pytest.raises(ModelError, match=r"names 2 classes.*scores 3"):
        recognise(graph)


def test_a_segmentation_file_of_ultralytics_is_recognised():
    graph = describe(
        {"output0": (1, 116, 3549), "output1": (1, 32, 104, 104)},
        metadata={"names": NAMES_80, "stride": "32", "task": "segment"},
    )
    found = recognise(graph)
    assert (found.decoder.kind, found.class_names) == ("yolov8", COCO_80)


def test_our_own_metadata_goes_before_shapes():
    # The output's name alone would not be certain.
    found = recognise(describe({"o": (1, 3549, 7)}, metadata=ours()))
    assert found.decoder.kind == "yolox"
    assert found.class_names == ("circle", "square")
    pre = found.preprocessing
    assert (pre.pixel_order, pre.pad_value, pre.scale) == ("rgb", 0, (0.5, 0.5, 0.5))
    assert pre.fit == "letterbox_top_left"
    assert "metadata" in found.reason


def test_our_metadata_carries_the_decoders_options():
    metadata = ours(decoder="ssd", options={"normalised": False, "background": False})
    found = recognise(describe({"s": (1, 9, 2), "b": (1, 9, 4)}, metadata=metadata))
    assert found.options == {"normalised": False, "background": False}
    assert found.decoder.class_count == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": 2}, "schema 2"),
        ({"task": "depth"}, "'depth'"),
        ({"decoder": "yolo99"}, "yolo99"),
        ({"decoder": None}, "broken"),
        ({"class_names": [1, 2]}, "broken"),
        ({"preprocessing": {"colour": "rgb"}}, "colour"),
        ({"preprocessing": {"fit": "crop"}}, "letterbox_top_left"),
        ({"preprocessing": {"size_wh": [320, 320]}}, "320x320"),
        ({"class_names": ["one"]}, "names 1 classes"),
    ],
)
def test_our_metadata_that_is_broken_or_newer_is_an_error(changes, text):
    with pytest.raises(ModelError, match=text):
        recognise(describe({"o": (1, 3549, 7)}, metadata=ours(**changes)))


def test_our_metadata_that_is_not_json_is_an_error():
    with pytest.raises(ModelError, match="JSON"):
        recognise(describe(YOLOX, metadata={"rackfocus": "{"}))


def test_class_names_must_be_as_many_as_the_graph_scores():
    with pytest.raises(ModelError, match=r"3 class names.*80 classes"):
        recognise(describe(YOLOX), class_names=("a", "b", "c"))


def test_class_names_given_go_before_the_files():
    graph = describe({"output0": (1, 6, 3549)}, metadata=ultralytics(["a", "b"]))
    assert recognise(graph, class_names=["x", "y"]).class_names == ("x", "y")


def test_class_names_come_from_a_table_by_count_or_are_numbered():
    def names(count):
        return recognise(describe({"output": (1, 3549, 5 + count)})).class_names

    assert names(80) == COCO_80
    assert names(20) == VOC_20
    assert names(3) == ("class 0", "class 1", "class 2")


def test_tables_agree_with_each_other():
    assert len(COCO_80) == len(set(COCO_80)) == 80
    assert len(COCO_90) == 90
    assert [n for n in COCO_90 if not n.startswith("unused")] == list(COCO_80)
    # COCO's published ids.
    for published, name in ((1, "person"), (13, "stop sign"), (44, "bottle"), (90, "toothbrush")):
        assert COCO_91[published] == COCO_90[published - 1] == name


def test_overrides_go_last():
    found = recognise(
        describe(YOLOX),
        overrides={
            "pixel_order": "rgb", "fit": "stretch", "pad_value": 7, "mean": [1, 2, 3],
            "scale": 1 / 255, "layout": None, "input_size": (416, 416),
        },
    )  # fmt: skip
    pre = found.preprocessing
    assert (pre.pixel_order, pre.fit, pre.pad_value) == ("rgb", "stretch", 7)
    assert pre.mean == (1, 2, 3)
    assert pre.scale == (1 / 255,) * 3
    assert pre.layout == "nchw"


def test_input_size_fills_an_open_input():
    graph = describe(YOLOX, size_wh=(None, None))
    with pytest.raises(ModelError, match="input_size"):
        recognise(graph)
    found = recognise(graph, overrides={"input_size": (416, 416)})
    assert found.preprocessing.size_wh == (416, 416)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"colour": "rgb"}, "colour"),
        ({"fit": "crop"}, "stretch"),
        ({"input_size": (320, 320)}, "416 x 416"),
        ({"input_size": 416}, "input_size"),
        ({"mean": [1, 2]}, "mean"),
        ({"pad_value": 300}, "0..255"),
        ({"dtype": "uint8"}, "float32"),
        ({"layout": "nhwc"}, "nhwc"),
        ({"options": {"anchors": 3}}, "anchors"),
        ({"options": {"strides": "8"}}, "strides"),
    ],
)
def test_overrides_that_cannot_work_are_errors(overrides, text):
    with pytest.raises(ModelError, match=text):
        recognise(describe(YOLOX), decoder="yolox", overrides=overrides)


def test_preprocessing_follows_the_graphs_layout_and_dtype():
    pre = recognise(describe(YOLOX, dtype="float16", nhwc=True)).preprocessing
    assert (pre.layout, pre.dtype) == ("nhwc", "float16")
    graph = describe({"output0": (1, 84, 3549)}, dtype="uint8")
    assert recognise(graph).preprocessing.scale == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "outputs", "expected"),
    [
        ("yolox", YOLOX, ("letterbox_top_left", 114, "bgr", 1.0)),
        ("yolov5", {"o": (1, 10647, 85)}, ("letterbox", 114, "rgb", 1 / 255)),
        ("yolov8", {"o": (1, 84, 3549)}, ("letterbox", 114, "rgb", 1 / 255)),
        ("yolo-end2end", {"o": (1, 300, 6)}, ("letterbox", 114, "rgb", 1 / 255)),
        ("yolo-fastestv2", {"o": (845, 95)}, ("stretch", 114, "bgr", 1 / 255)),
        (
            "rcnn",
            {"b": (9, 4), "l": ((9,), "int64"), "s": (9,)},
            ("letterbox_top_left", 114, "rgb", 1 / 255),
        ),
    ],
)
def test_documented_preprocessing(kind, outputs, expected):
    pre = recognise(describe(outputs), decoder=kind).preprocessing
    assert (pre.fit, pre.pad_value, pre.pixel_order, pre.scale[0]) == expected


def test_a_graph_without_a_picture_input_is_refused():
    with pytest.raises(ModelError, match="one input for colour pictures"):
        recognise(describe(YOLOX, size_wh=(416, 416)).__class__((), describe(YOLOX).outputs))
    with pytest.raises(ModelError, match="int64"):
        recognise(describe(YOLOX, dtype="int64"))
