"""Preprocessing against slow, obvious versions of what the models' own code does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.stage import RunContext
from stages.decoders.decoder import Preprocessing
from stages.fitting import Fitter, plan
from stages.preprocess import PreprocessConfig, PreprocessStage
from tests.contracts.check_stage import check_stage
from tests.helpers.models import FakeModel, frames, picture

SIZES = [(768, 432), (321, 241), (100, 700), (416, 416), (1, 1), (5, 1), (37, 416)]


def fit(image, **form):
    return Fitter(Preprocessing(**{"size_wh": (416, 416), **form})).fit(image)


def yolox_reference(image, size_wh):
    """What YOLOX's own preproc does."""
    padded = np.full((size_wh[1], size_wh[0], 3), 114, np.uint8)
    r = min(size_wh[1] / image.shape[0], size_wh[0] / image.shape[1])
    new_w, new_h = max(int(image.shape[1] * r), 1), max(int(image.shape[0] * r), 1)
    padded[:new_h, :new_w] = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    return padded.transpose(2, 0, 1).astype(np.float32)


def ultralytics_reference(image, size_wh):
    """What Ultralytics' letterbox does, then RGB and 0..1."""
    h, w = image.shape[:2]
    r = min(size_wh[1] / h, size_wh[0] / w)
    new = max(round(w * r), 1), max(round(h * r), 1)
    dw, dh = (size_wh[0] - new[0]) / 2, (size_wh[1] - new[1]) / 2
    if (w, h) != new:
        image = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
    top, bottom = round(dh - 0.1), round(dh + 0.1)
    left, right = round(dw - 0.1), round(dw + 0.1)
    border = cv2.copyMakeBorder(
        image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
    return border[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize("model_wh", [(416, 416), (320, 192)])
def test_top_left_letterbox_is_yolox_bit_for_bit(size_wh, model_wh):
    image = picture(*size_wh)
    tensor, _ = fit(image, size_wh=model_wh, fit="letterbox_top_left", pixel_order="bgr")
    assert np.array_equal(tensor, yolox_reference(image, model_wh))


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize("model_wh", [(416, 416), (640, 384)])
def test_centred_letterbox_is_ultralytics(size_wh, model_wh):
    image = picture(*size_wh)
    tensor, _ = fit(image, size_wh=model_wh, scale=(1 / 255,) * 3)
    # x * (1 / 255) and x / 255 differ in the last bit.
    np.testing.assert_allclose(tensor, ultralytics_reference(image, model_wh), rtol=0, atol=1e-7)


def test_stretch_with_mean_and_scale_per_channel():
    image = picture(50, 20)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    tensor, letterbox = fit(
        image, size_wh=(64, 32), fit="stretch", mean=mean, scale=tuple(1 / s for s in std)
    )
    resized = cv2.resize(image, (64, 32), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    expected = (resized.astype(np.float64) - mean) / std
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)
    assert letterbox.scale_xy == (64 / 50, 32 / 20)
    assert letterbox.pad_xy == (0, 0)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("pixel_order", ["bgr", "rgb"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layout_order_and_dtype(layout, pixel_order, dtype):
    image = picture(16, 8)
    tensor, _ = fit(image, size_wh=(16, 8), layout=layout, pixel_order=pixel_order, dtype=dtype)
    expected = image if pixel_order == "bgr" else image[:, :, ::-1]
    expected = expected if layout == "nhwc" else expected.transpose(2, 0, 1)
    assert tensor.dtype == dtype
    assert tensor.flags["C_CONTIGUOUS"]
    assert np.array_equal(tensor, expected.astype(dtype))


def test_padding_is_normalised_like_the_picture():
    tensor, _ = fit(picture(40, 10), pad_value=50, mean=(10, 20, 30), scale=(2, 2, 2))
    assert tensor[:, 0, 0].tolist() == [80, 60, 40]


def test_an_odd_remainder_goes_right_and_below():
    placed = plan((100, 51), Preprocessing((100, 100)))
    assert placed.left_top == (0, 24)
    assert placed.resized_wh == (100, 51)


def test_boxes_map_back_with_the_true_scale_of_each_axis():
    placed = plan((1000, 333), Preprocessing((100, 100), fit="letterbox_top_left"))
    assert placed.resized_wh == (100, 33)
    assert placed.letterbox.scale_xy == (0.1, 33 / 333)


def test_an_8k_picture_fits():
    image = np.zeros((4320, 7680, 3), np.uint8)
    image[:, 3840:] = 255
    tensor, _ = fit(image, size_wh=(64, 64), fit="stretch")
    assert tensor[:, :, :31].max() == 0
    assert tensor[:, :, 33:].min() == 255


def test_pictures_that_are_views_are_read_right():
    image = picture(60, 40)
    for view in (image[:, ::-1], image[::-1], image[:, :, ::-1], image[5:25, 7:51]):
        expected, _ = fit(np.ascontiguousarray(view))
        assert np.array_equal(fit(view)[0], expected)


def test_a_change_of_size_leaves_nothing_of_the_last_picture():
    fitter = Fitter(Preprocessing((32, 32)))
    wide, tall = picture(64, 16), picture(16, 64)
    first = fitter.fit(wide)[0].copy()
    fitter.fit(tall)
    again = fitter.fit(wide)[0]
    assert np.array_equal(first, again)
    assert np.array_equal(first, Fitter(Preprocessing((32, 32))).fit(wide)[0])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tensors_are_not_shared(layout, dtype):
    model = FakeModel(Preprocessing((32, 32), layout=layout, dtype=dtype, pixel_order="bgr"))
    stage = PreprocessStage(PreprocessConfig(), "preprocess", model)
    stage.open(RunContext())
    first, second = stage.process(frames(2))
    kept = first.tensor.copy()
    stage.process(frames(3)[2:])
    assert not np.shares_memory(first.tensor, second.tensor)
    assert np.array_equal(first.tensor, kept)
    stage.close()


def test_contract():
    check_stage(
        lambda: PreprocessStage(PreprocessConfig(), "preprocess", FakeModel()), lambda: frames(4)
    )


def test_process_needs_open():
    stage = PreprocessStage(PreprocessConfig(), "preprocess", FakeModel())
    with pytest.raises(RuntimeError, match="not open"):
        stage.process(frames(1))
