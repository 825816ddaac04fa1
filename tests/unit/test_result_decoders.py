"""Decoders of masks, keypoints, faces, queries and maps on outputs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.geometry import Letterbox
from stages.decoders.masks import PatchMasks, PlaneMasks
from stages.decoders.names import COCO_80, VOC_21
from stages.decoders.recognise import recognise
from tests.helpers.graphs import describe, zeros

SIDE = 64  # 8*8 + 4*4 + 2*2 = 84 cells
SQUARE = Letterbox((1.0, 1.0), (0.0, 0.0), (SIDE, SIDE), (SIDE, SIDE))
YUNET = {
    f"{part}_{stride}": (1, (SIDE // stride) ** 2, columns)
    for part, columns in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
    for stride in (8, 16, 32)
}
COCO_LABELS = 91


def made(outputs, *, size_wh=(SIDE, SIDE), decoder=None, options=None, names=None, **form):
    graph = describe(outputs, size_wh=size_wh, **form)
    overrides = {"options": options} if options else None
    found = recognise(graph, decoder=decoder, overrides=overrides, class_names=names)
    return found, zeros(graph)


# ---- prototypes


@pytest.mark.parametrize("kind", ["yolov8", "yolov5"])
def test_yolo_masks_come_from_the_kept_rows_coefficients(kind):
    if kind == "yolov8":
        found, outputs = made({"output0": (1, 4 + 2 + 3, 84), "output1": (1, 3, 16, 16)})
        rows = outputs["output0"][0].T
        rows[7] = 20, 30, 20, 30, 0.1, 0.9, 0, 1, 0
        rows[40] = 40, 30, 20, 20, 0.7, 0.2, 0, -1, 0
        rows[41] = 40, 30, 20, 20, 0.01, 0.2, 1, 1, 1
    else:
        found, outputs = made({"output0": (1, 252, 5 + 2 + 3), "output1": (1, 3, 16, 16)})
        rows = outputs["output0"][0]
        rows[7] = 20, 30, 20, 30, 1, 0.1, 0.9, 0, 1, 0
        rows[40] = 40, 30, 20, 20, 1, 0.7, 0.2, 0, -1, 0
        rows[41] = 40, 30, 20, 20, 0.2, 1, 0.2, 1, 1, 1
    # The second prototype: positive in the upper half only.
    outputs["output1"][0, 1] = np.where(np.arange(16)[:, None] < 8, 1, -1)
    assert found.decoder.kind == kind
    candidates = found.decoder.decode(outputs, 0.3)
    np.testing.assert_allclose(candidates.score, [0.9, 0.7], rtol=1e-6)
    upper, lower = candidates.masks.cut(SQUARE, candidates.xyxy)
    assert (upper.x, upper.y, upper.bits.shape) == (10, 15, (30, 20))
    assert upper.bits[:17].all()
    assert not upper.bits[17:].any()
    assert not lower.bits[:12].any()
    assert lower.bits[12:].all()


def test_a_file_without_prototypes_has_no_masks():
    found, outputs = made({"output0": (1, 84, 84)})
    assert found.decoder.decode(outputs, 0.3).masks is None


def test_prototypes_of_another_number_are_an_error():
    found, outputs = made({"output0": (1, 4 + 2 + 3, 84), "output1": (1, 3, 16, 16)})
    outputs["output1"] = np.zeros((1, 4, 16, 16), np.float32)
    with pytest.raises(ModelError, match=r"'output1' must be \(3, any, any\)"):
        found.decoder.decode(outputs, 0.3)


# ---- rcnn


def rcnn_outputs(**more):
    outputs = {
        "boxes": np.array([[4, 5, 24, 35], [8, 8, 16, 16], [1, 1, 9, 9]], np.float32),
        "labels": np.array([1, 3, 2]),
        "scores": np.array([0.9, 0.1, 0.6], np.float32),
    }
    return outputs | more


RCNN = {"boxes": (3, 4), "labels": ((3,), "int64"), "scores": (3,)}


@pytest.mark.parametrize(("side", "source"), [(28, PatchMasks), (SIDE, PlaneMasks)])
def test_rcnn_masks_are_patches_or_planes_of_the_kept_rows(side, source):
    found, _ = made(RCNN | {"masks": (3, 1, side, side)})
    assert found.decoder.kind == "rcnn"
    masks = np.zeros((3, 1, side, side), np.float32)
    masks[2] = 1
    candidates = found.decoder.decode(rcnn_outputs(masks=masks), 0.5)
    assert isinstance(candidates.masks, source)
    assert candidates.class_id.tolist() == [1, 2]
    empty, whole = candidates.masks.cut(SQUARE, candidates.xyxy)
    assert not empty.bits.any()
    assert whole.bits[3, 3]
    assert whole.bits.mean() > 0.5


def test_rcnn_masks_of_a_single_detection_keep_their_axes():
    found, _ = made(RCNN | {"masks": (3, 1, 28, 28)})
    one = {k: v[:1] for k, v in rcnn_outputs(masks=np.ones((3, 1, 28, 28), np.float32)).items()}
    assert len(found.decoder.decode(one, 0.5).masks.cut(SQUARE, one["boxes"])) == 1


def test_rcnn_keypoints_have_scores_from_their_heatmaps_and_names_of_people():
    shapes = {"keypoints": (3, 17, 3), "keypoints_scores": (3, 17)}
    found, _ = made(RCNN | shapes)
    assert found.class_names == ("__background__", "person")
    points = np.arange(3 * 17 * 3, dtype=np.float32).reshape(3, 17, 3)
    heights = np.linspace(-9, 9, 3 * 17, dtype=np.float32).reshape(3, 17)
    outputs = rcnn_outputs(keypoints=points, keypoints_scores=heights)
    outputs["labels"][:] = 1
    candidates = found.decoder.decode(outputs, 0.5)
    np.testing.assert_array_equal(candidates.keypoints[..., :2], points[[0, 2], :, :2])
    expected = 1 / (1 + np.exp(-heights[[0, 2]].astype(np.float64)))
    np.testing.assert_allclose(candidates.keypoints[..., 2], expected, atol=1e-6)
    assert points[0, 0, 2] == 2  # the graph's own array is not written


# ---- yunet


def test_yunet_decodes_box_keypoints_and_score():
    found, outputs = made(YUNET)
    assert (found.decoder.kind, found.class_names) == ("yunet", ("face",))
    pre = found.preprocessing
    assert (pre.pixel_order, pre.fit, pre.pad_value) == ("bgr", "letterbox_top_left", 0)
    # Stride 16, four cells wide: row 2, column 1.
    cell = 2 * 4 + 1
    outputs["cls_16"][0, cell], outputs["obj_16"][0, cell] = 0.81, 0.64
    outputs["bbox_16"][0, cell] = 0.5, -0.25, np.log(2), np.log(3)
    outputs["kps_16"][0, cell] = np.arange(10) / 10
    outputs["cls_8"][0, 0], outputs["obj_8"][0, 0] = 1.2, 0.08  # over 1: clipped before the root
    candidates = found.decoder.decode(outputs, 0.3)
    np.testing.assert_allclose(candidates.score, [0.72], rtol=1e-6)
    cx, cy = 1.5 * 16, 1.75 * 16
    np.testing.assert_allclose(candidates.xyxy, [[cx - 16, cy - 24, cx + 16, cy + 24]], rtol=1e-5)
    expected = (np.arange(10).reshape(5, 2) / 10 + [1, 2]) * 16
    np.testing.assert_allclose(candidates.keypoints[0, :, :2], expected, rtol=1e-5)
    assert (candidates.keypoints[0, :, 2] == 1).all()


def test_yunet_wants_sides_of_32_and_rejects_nan():
    with pytest.raises(ModelError, match="multiples of 32"):
        made(YUNET, size_wh=(60, 60), decoder="yunet")
    found, outputs = made(YUNET)
    outputs["cls_8"][0, 3] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        found.decoder.decode(outputs, 0.3)
    found, outputs = made(YUNET)
    outputs["cls_8"][0, 3] = outputs["obj_8"][0, 3] = 1
    outputs["bbox_8"][0, 3, 2] = 1000
    with pytest.raises(ModelError, match="not finite"):
        found.decoder.decode(outputs, 0.3)


# ---- detr


def slow_detr(boxes, probabilities, threshold, side):
    """Every query and class above the threshold, one after the other."""
    rows = []
    for (cx, cy, w, h), scores in zip(boxes, probabilities, strict=True):
        for class_id, score in enumerate(scores):
            if score >= threshold:
                box = [(cx - w / 2), (cy - h / 2), (cx + w / 2), (cy + h / 2)]
                rows.append((*(np.array(box) * side), score, class_id))
    return np.array(rows)


def check_detr(candidates, expected):
    assert candidates.suppressed
    got = np.column_stack([candidates.xyxy, candidates.score, candidates.class_id])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def queries(n, columns, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 4)).astype(np.float32), rng.normal(-3, 2, (n, columns)).astype(np.float32)


@pytest.mark.parametrize("names", [("pred_boxes", "logits"), ("dets", "labels")], ids=str)
def test_detr_logits_without_a_no_object_column_are_independent(names):
    boxes, logits = queries(100, 80)
    found, _ = made({names[0]: (1, 100, 4), names[1]: (1, 100, 80)})
    assert (found.decoder.kind, found.class_names) == ("detr", COCO_80)
    candidates = found.decoder.decode({names[0]: boxes[None], names[1]: logits[None]}, 0.5)
    table = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = slow_detr(boxes, table, 0.5, SIDE)
    assert len(expected) > len(boxes)  # more pairs than queries: the best stay
    best = np.sort(np.argsort(-expected[:, 4], kind="stable")[:100])
    check_detr(candidates, expected[best])


def test_detr_with_a_no_object_column_is_softmaxed():
    boxes, logits = queries(100, COCO_LABELS + 1)
    found, _ = made({"pred_boxes": (1, 100, 4), "logits": (1, 100, COCO_LABELS + 1)})
    assert len(found.class_names) == COCO_LABELS
    assert found.preprocessing.mean[0] == 123.675
    logits[:, 5] += 6
    logits[::2, -1] += 20
    candidates = found.decoder.decode({"pred_boxes": boxes, "logits": logits}, 0.5)
    raised = np.exp(logits.astype(np.float64))
    table = (raised / raised.sum(axis=1, keepdims=True))[:, :-1]
    expected = slow_detr(boxes, table, 0.5, SIDE)
    assert 10 < len(expected) <= 50
    check_detr(candidates, expected)


def test_detr_of_ultralytics_is_known_by_its_metadata():
    metadata = {
        "names": str(dict(enumerate("abc"))), "stride": "32", "task": "detect",
        "description": "Ultralytics RT-DETR-l model", "imgsz": f"[{SIDE}, {SIDE}]",
    }  # fmt: skip
    boxes, scores = queries(300, 3)
    scores = 1 / (1 + np.exp(-scores))
    found, _ = made({"output0": (1, 300, 7)}, metadata=metadata)
    assert (found.decoder.kind, found.class_names) == ("detr", ("a", "b", "c"))
    joined = np.concatenate([boxes, scores], axis=1)[None]
    check_detr(found.decoder.decode({"output0": joined}, 0.4), slow_detr(boxes, scores, 0.4, SIDE))


def test_detr_chosen_boxes_are_pixels_of_the_input():
    shapes = {"labels": ((1, 300), "int64"), "boxes": (1, 300, 4), "scores": (1, 300)}
    found, outputs = made(shapes)
    assert found.decoder.kind == "detr"
    outputs["boxes"][0, 5], outputs["scores"][0, 5] = (1, 2, 30, 40), 0.8
    outputs["labels"][0, 5] = 7
    check_detr(found.decoder.decode(outputs, 0.5), [[1, 2, 30, 40, 0.8, 7]])


def test_detr_options_say_what_a_file_cannot():
    boxes, scores = queries(100, 5)
    scores = 1 / (1 + np.exp(-scores))
    shapes = {"b": (1, 100, 4), "s": (1, 100, 5)}
    with pytest.raises(ModelError, match=r"could be 'ssd'.* or 'detr'"):
        made(shapes)
    options = {"boxes": "xyxy", "normalised": False, "activation": "none"}
    found, _ = made(shapes, decoder="detr", options=options)
    candidates = found.decoder.decode({"b": boxes, "s": scores}, 0.5)
    query, class_id = np.nonzero(scores >= 0.5)
    np.testing.assert_array_equal(candidates.xyxy, boxes[query])
    assert candidates.class_id.tolist() == class_id.tolist()
    with pytest.raises(ModelError, match=r"activation.*sigmoid, softmax, none"):
        made(shapes, decoder="detr", options={"activation": "tanh"})


def test_detr_logits_read_as_scores_are_refused():
    boxes, logits = queries(100, 5)
    found, _ = made(
        {"b": (1, 100, 4), "s": (1, 100, 5)}, decoder="detr", options={"activation": "none"}
    )
    with pytest.raises(ModelError, match=r"scores must lie in 0..1"):
        found.decoder.decode({"b": boxes, "s": logits + 4}, 0.5)


# ---- segmentation


def test_segmentation_of_tensorflow_is_recognised_and_channels_are_last():
    found, outputs = made({"map": (1, SIDE, SIDE, 21)}, nhwc=True)
    assert (found.decoder.kind, found.class_names) == ("segmentation", VOC_21)
    assert found.preprocessing.mean == (127.5,) * 3
    outputs["map"][0, :, : SIDE // 2, 15] = 1
    outputs["map"][0, :, SIDE // 2 :, 7] = 1
    candidates = found.decoder.decode(outputs, 0.3)
    assert len(candidates.xyxy) == 0
    painted = candidates.class_map.paint(SQUARE)
    assert (painted[:, :32] == 15).all()
    assert (painted[:, 32:] == 7).all()


def test_segmentation_of_torchvision_is_the_output_called_out():
    found, outputs = made({"aux": (1, 21, SIDE, SIDE), "out": (1, 21, SIDE, SIDE)})
    assert found.decoder.kind == "segmentation"
    assert found.preprocessing.mean == (123.675, 116.28, 103.53)
    outputs["aux"][:, 3], outputs["out"][:, 9] = 1, 1
    assert (found.decoder.decode(outputs, 0.3).class_map.paint(SQUARE) == 9).all()


@pytest.mark.parametrize(
    ("shape", "nhwc"),
    [
        ((1, 1, SIDE, SIDE), False),  # depth?
        ((1, SIDE, SIDE, 1), True),
        ((1, 19, SIDE, SIDE), False),  # whose 19 classes, and how is the input made?
        ((1, 21, SIDE, SIDE), False),
        ((1, SIDE // 4, SIDE // 4, 21), True),
    ],
)
def test_maps_that_are_not_certain_need_the_decoders_name(shape, nhwc):
    with pytest.raises(ModelError, match="could be 'segmentation'"):
        made({"map": shape}, nhwc=nhwc)
    found, _ = made({"map": shape}, nhwc=nhwc, decoder="segmentation")
    assert found.decoder.class_count == max(shape[3 if nhwc else 1], 2)


def test_one_plane_is_the_probability_of_class_1():
    found, outputs = made(
        {"a": (1, 256, 256, 1)}, size_wh=(256, 256), nhwc=True, decoder="segmentation"
    )
    assert found.class_names == ("background", "person")
    assert found.preprocessing.scale == (1 / 255,) * 3
    outputs["a"][0, :, :128] = 0.51
    outputs["a"][0, :, 128:] = 0.49
    square = Letterbox((1.0, 1.0), (0.0, 0.0), (256, 256), (256, 256))
    painted = found.decoder.decode(outputs, 0.9).class_map.paint(square)
    assert painted[:, :128].all()
    assert not painted[:, 128:].any()


def test_one_plane_of_logits_needs_the_option_and_says_so():
    shape = {"a": (1, 1, SIDE, SIDE)}
    found, outputs = made(shape, decoder="segmentation")
    assert found.class_names == ("background", "foreground")
    outputs["a"][:] = -5
    with pytest.raises(ModelError, match="threshold: 0"):
        found.decoder.decode(outputs, 0.3)
    found, _ = made(shape, decoder="segmentation", options={"threshold": 0})
    assert not found.decoder.decode(outputs, 0.3).class_map.paint(SQUARE).any()
    assert found.decoder.decode({"a": outputs["a"] + 6}, 0.3).class_map.paint(SQUARE).all()


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ((1, 300, SIDE, SIDE), None, "300 classes"),
        ((1, 21, SIDE, SIDE), {"threshold": 0.3}, "highest wins"),
        ((1, 1, SIDE, SIDE), {"threshold": "low"}, "must be a number"),
    ],
)
def test_maps_that_cannot_be_read_are_errors(shape, options, text):
    with pytest.raises(ModelError, match=text):
        made({"map": shape}, decoder="segmentation", options=options)


def test_a_map_with_nan_is_an_error():
    found, outputs = made({"map": (1, 5, SIDE, SIDE)}, decoder="segmentation")
    outputs["map"][0, 1, 3, 3] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        found.decoder.decode(outputs, 0.3)
