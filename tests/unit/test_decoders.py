"""Each decoder on outputs made by hand: where a box lands, what is dropped, what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.errors import ModelError
from stages.decoders.recognise import recognise
from tests.helpers.graphs import describe, zeros

# Names out of order and no batch axis, as one published export has them.
NANODET = {
    "a": (2704, 32),
    "b": (676, 80),
    "c": (169, 32),
    "d": (2704, 80),
    "e": (676, 32),
    "f": (169, 80),
}
PICODET = {f"box{n}": (1, n, 32) for n in (2704, 676, 169, 49)} | {
    f"cls{n}": (1, n, 80) for n in (2704, 676, 169, 49)
}
TFLITE = {
    "TFLite_Detection_PostProcess": (1, 10, 4),
    "TFLite_Detection_PostProcess:1": (1, 10),
    "TFLite_Detection_PostProcess:2": (1, 10),
    "TFLite_Detection_PostProcess:3": (1,),
}
RCNN = {"boxes": (None, 4), "labels": ((None,), "int64"), "scores": (None,)}


def made(outputs, decoder=None, overrides=None, **form):
    graph = describe(outputs, **form)
    found = recognise(graph, decoder=decoder, overrides=overrides)
    return found.decoder, zeros(graph)


def check_one(candidates, xyxy, score, class_id, tolerance=1e-3):
    assert candidates.xyxy.dtype == candidates.score.dtype == np.float32
    assert candidates.class_id.dtype == np.int64
    np.testing.assert_allclose(candidates.xyxy, [xyxy], atol=tolerance)
    np.testing.assert_allclose(candidates.score, [score], atol=1e-6)
    assert candidates.class_id.tolist() == [class_id]


def yolox():
    decoder, outputs = made({"output": (1, 3549, 85)})
    # Second level (26 wide, stride 16): row 3, column 5.
    row = outputs["output"][0, 52 * 52 + 3 * 26 + 5]
    row[:5] = 0.5, 0.25, np.log(2), np.log(3), 0.9
    row[5 + 7] = 0.8
    return (
        decoder,
        outputs,
        ((5.5 * 16 - 16, 3.25 * 16 - 24, 5.5 * 16 + 16, 3.25 * 16 + 24), 0.72, 7),
    )


def yolov5():
    decoder, outputs = made({"output0": (1, 10647, 85)})
    outputs["output0"][0, 9000, :5] = 100, 50, 40, 20, 0.5
    outputs["output0"][0, 9000, 5 + 79] = 1.0
    return decoder, outputs, ((80, 40, 120, 60), 0.5, 79)


def yolov8():
    decoder, outputs = made({"output0": (1, 84, 3549)})
    outputs["output0"][0, :4, 3548] = 100, 50, 40, 20
    outputs["output0"][0, 4 + 2, 3548] = 0.6
    return decoder, outputs, ((80, 40, 120, 60), 0.6, 2)


def yolov8_segment():
    decoder, outputs = made({"output0": (1, 116, 3549), "output1": (1, 32, 104, 104)})
    outputs["output0"][0, :4, 7] = 100, 50, 40, 20
    outputs["output0"][0, 4 + 79, 7] = 0.6
    outputs["output0"][0, 84:, 7] = 5.0  # coefficients: no class, however large
    return decoder, outputs, ((80, 40, 120, 60), 0.6, 79)


def end2end():
    decoder, outputs = made({"output0": (1, 300, 6)})
    outputs["output0"][0, 299] = 1, 2, 30, 40, 0.9, 16
    return decoder, outputs, ((1, 2, 30, 40), 0.9, 16)


def nanodet():
    decoder, outputs = made(NANODET)
    cell = 4 * 26 + 6
    outputs["b"][cell, 3] = 0.7
    sides = np.full((4, 8), -50.0, np.float32)
    sides[[0, 1, 2, 3], [1, 2, 3, 4]] = 50  # all the weight on one bin
    outputs["e"][cell] = sides.ravel()
    x, y = 6 * 16 + 7.5, 4 * 16 + 7.5
    return decoder, outputs, ((x - 16, y - 32, x + 48, y + 64), 0.7, 3)


def picodet():
    decoder, outputs = made(PICODET)
    outputs["cls49"][0, 8, 79] = 0.7  # stride 64, row 1, column 1; uniform: 3.5 bins a side
    return decoder, outputs, ((96 - 224, 96 - 224, 96 + 224, 96 + 224), 0.7, 79)


def fastestv2():
    decoder, outputs = made({"845": (605, 95)}, size_wh=(352, 352))
    row = outputs["845"][22 * 22 + 2 * 11 + 3]
    row[4:8] = 0.5, 0.5, 0.5, 0.25  # second anchor
    row[12 + 1] = 0.8
    row[15 + 4] = 0.5
    x, y, w, h = 3.5 * 32, 2.5 * 32, 131.57, 214.55 / 4
    return decoder, outputs, ((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 0.4, 4)


def tensorflow_lite():
    decoder, outputs = made(TFLITE, size_wh=(300, 200), dtype="uint8", nhwc=True)
    boxes, classes, scores, count = outputs.values()
    boxes[0, :2] = 0.1, 0.2, 0.5, 0.9
    classes[0, :2] = 2
    scores[0, :2] = 0.75
    count[0] = 1  # the second is filling
    return decoder, outputs, ((60, 20, 270, 100), 0.75, 2)


def tensorflow():
    names = ("num_detections", "detection_scores", "detection_classes", "detection_boxes")
    shapes = ((1,), (1, 5), (1, 5), (1, 5, 4))
    decoder, outputs = made(
        dict(zip(names, shapes, strict=True)), size_wh=(300, 200), dtype="uint8", nhwc=True
    )
    outputs["detection_boxes"][0, 0] = 0.1, 0.2, 0.5, 0.9
    outputs["detection_classes"][0, 0] = 3  # car, counted from 1
    outputs["detection_scores"][0, 0] = 0.75
    outputs["num_detections"][0] = 5
    return decoder, outputs, ((60, 20, 270, 100), 0.75, 2)


def ultraface():
    decoder, outputs = made({"scores": (1, 4420, 2), "boxes": (1, 4420, 4)}, size_wh=(320, 240))
    outputs["scores"][0, :, 0] = 1  # background
    outputs["scores"][0, 4000] = 0.2, 0.8
    outputs["boxes"][0, 4000] = 0.1, 0.2, 0.5, 0.9
    return decoder, outputs, ((32, 48, 160, 216), 0.8, 0)


def ssd_pixels():
    options = {"options": {"normalised": False, "background": False}}
    shapes = {"conf": (1, 100, 3), "loc": (1, 100, 4)}
    decoder, outputs = made(shapes, decoder="ssd", overrides=options)
    outputs["conf"][0, 9, 0] = 0.8
    outputs["loc"][0, 9] = 1, 2, 30, 40
    return decoder, outputs, ((1, 2, 30, 40), 0.8, 0)


def rcnn():
    decoder, _ = made(RCNN)
    outputs = {
        "boxes": np.array([[1, 2, 30, 40], [0, 0, 5, 5]], np.float32),
        "labels": np.array([3, 1]),
        "scores": np.array([0.9, 0.1], np.float32),
    }
    return decoder, outputs, ((1, 2, 30, 40), 0.9, 3)


CASES = [
    yolox, yolov5, yolov8, yolov8_segment, end2end, nanodet, picodet, fastestv2, tensorflow_lite,
    tensorflow, ultraface, ssd_pixels, rcnn,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_box_lands_where_it_should(case):
    decoder, outputs, expected = case()
    check_one(decoder.decode(outputs, 0.3), *expected)


@pytest.mark.parametrize("case", CASES)
def test_threshold_is_inclusive_and_nothing_is_a_result(case):
    decoder, outputs, (_, score, _) = case()
    found = decoder.decode(outputs, 0.3)
    assert len(decoder.decode(outputs, float(found.score[0])).score) == 1
    nothing = decoder.decode(outputs, score + 0.01)
    assert nothing.xyxy.shape == (0, 4)
    assert nothing.xyxy.dtype == nothing.score.dtype == np.float32
    assert nothing.class_id.dtype == np.int64


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_not_modified(case):
    decoder, outputs, _ = case()
    before = {name: array.copy() for name, array in outputs.items()}
    for array in outputs.values():
        array.setflags(write=False)
    decoder.decode(outputs, 0.3)
    for name, array in before.items():
        np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize("case", CASES)
def test_nan_is_an_error_and_never_just_no_box(case):
    decoder, outputs, _ = case()
    for array in outputs.values():
        if array.dtype == np.float32:
            array[...] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        decoder.decode(outputs, 0.3)


@pytest.mark.parametrize("case", CASES)
def test_a_box_that_is_not_finite_is_an_error(case):
    decoder, outputs, _ = case()
    for name, array in outputs.items():
        if array.shape[-1] in (4, 32):
            array[...] = np.inf
        elif name in ("output", "output0") and array.shape[-1] in (6, 85):
            array[..., :4] = np.inf
        elif name == "output0":
            array[:, :4] = np.inf
        elif name == "845":
            array[:, :12] = np.inf
    with pytest.raises(ModelError, match="finite"):
        decoder.decode(outputs, 0.3)


@pytest.mark.parametrize("case", CASES)
def test_an_output_of_another_shape_or_name_is_an_error_that_names_it(case):
    decoder, outputs, _ = case()
    for name, array in outputs.items():
        if array.ndim > 1:  # more rows, more columns, another batch
            with pytest.raises(ModelError, match=r"must be \(.*got"):
                decoder.decode({**outputs, name: array[..., :-1]}, 0.3)
            with pytest.raises(ModelError, match=r"gave no output"):
                decoder.decode({n: a for n, a in outputs.items() if n != name}, 0.3)
            return


@pytest.mark.parametrize("case", [yolox, yolov5, yolov8, nanodet, picodet, fastestv2, ultraface])
def test_half_precision_outputs_decode(case):
    decoder, outputs, (_, score, class_id) = case()
    found = decoder.decode({n: a.astype(np.float16) for n, a in outputs.items()}, 0.3)
    assert found.xyxy.dtype == np.float32
    np.testing.assert_allclose(found.score, [score], atol=1e-3)
    assert found.class_id.tolist() == [class_id]


def test_suppressed_is_said_by_the_graphs_that_remove_overlaps():
    says = {case.__name__: case()[0].decode(case()[1], 0.3).suppressed for case in CASES}
    assert {name for name, said in says.items() if said} == {
        "end2end", "tensorflow_lite", "tensorflow", "rcnn",
    }  # fmt: skip


def test_boxes_are_not_clipped_to_the_input():
    decoder, outputs, _ = yolov8()
    outputs["output0"][0, :4, 3548] = 2, 414, 40, 20
    check_one(decoder.decode(outputs, 0.3), (-18, 404, 22, 424), 0.6, 2)


def test_a_rounding_error_above_one_is_clipped():
    decoder, outputs, _ = yolov8()
    outputs["output0"][0, 6, 3548] = np.float32(1.0000001)
    assert decoder.decode(outputs, 0.3).score.tolist() == [1.0]


def test_logits_are_refused():
    decoder, outputs, _ = yolov8()
    outputs["output0"][0, 6, 3548] = 4.2
    with pytest.raises(ModelError, match=r"0\.\.1, got .*4\.2.*sigmoid"):
        decoder.decode(outputs, 0.3)


def test_a_class_without_a_name_is_an_error():
    decoder, outputs, _ = end2end()
    outputs["output0"][0, 299, 5] = 80
    with pytest.raises(ModelError, match=r"80\.\.80.*0\.\.79.*class_names"):
        decoder.decode(outputs, 0.3)


def test_equal_class_scores_go_to_the_first():
    decoder, outputs, _ = yolov8()
    outputs["output0"][0, 4 + 60, 3548] = 0.6
    assert decoder.decode(outputs, 0.3).class_id.tolist() == [2]


@pytest.mark.parametrize("size", [(416, 416), (640, 384), (100, 60)])
def test_grids_follow_oblong_and_uneven_inputs(size):
    width, height = size
    rows = sum(-(-width // s) * -(-height // s) for s in (8, 16, 32))
    decoder, outputs = made({"output": (1, rows, 6)}, size_wh=size)
    outputs["output"][0, -1, 4:] = 1  # the last cell of the coarsest level: bottom right
    x, y = (-(-width // 32) - 1) * 32, (-(-height // 32) - 1) * 32
    check_one(decoder.decode(outputs, 0.5), (x - 16, y - 16, x + 16, y + 16), 1, 0)


def test_decoding_costs_little():
    """3549 cells of 80 classes, 20 of them found: well below the millisecond that is allowed."""
    decoder, outputs, _ = yolox()
    outputs["output"][0, :20, 4:] = 0.9
    spent = []
    for _ in range(20):
        start = time.perf_counter()
        decoder.decode(outputs, 0.3)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.001
