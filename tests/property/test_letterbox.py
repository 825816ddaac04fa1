"""The way into the model's input and back, for pictures and inputs of any size."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.decoders.decoder import Preprocessing
from stages.fitting import Fitter, plan

SIDES = st.integers(1, 8192)
MODEL = st.integers(1, 1280)
FITS = st.sampled_from(["letterbox", "letterbox_top_left", "stretch"])


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, MODEL, MODEL, FITS)
def test_the_picture_lies_inside_the_input(width, height, model_w, model_h, fit):
    placed = plan((width, height), Preprocessing((model_w, model_h), fit=fit))
    (new_w, new_h), (left, top) = placed.resized_wh, placed.left_top
    assert new_w >= 1
    assert new_h >= 1
    assert left >= 0
    assert top >= 0
    assert left + new_w <= model_w
    assert top + new_h <= model_h
    if fit == "stretch":
        assert (new_w, new_h) == (model_w, model_h)
    else:
        # One side fills the input, up to the pixel that cutting may cost.
        assert new_w >= model_w - 1 or new_h >= model_h - 1
    if fit == "letterbox":
        assert abs((model_w - new_w) - 2 * left) <= 1
        assert abs((model_h - new_h) - 2 * top) <= 1


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, MODEL, MODEL, FITS, st.integers(0, 2**32 - 1))
def test_boxes_come_back_where_they_were(width, height, model_w, model_h, fit, seed):
    letterbox = plan((width, height), Preprocessing((model_w, model_h), fit=fit)).letterbox
    corners = np.random.default_rng(seed).random((5, 2, 2)) * [width, height]
    xyxy = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    back = letterbox.to_source(letterbox.to_model(xyxy))
    # float32 has 24 bits; padding and division each cost a few of them.
    pixel = max(width, height) / min(model_w, model_h)
    np.testing.assert_allclose(back, xyxy, atol=1e-3 * max(1, pixel), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), FITS)
def test_the_whole_picture_maps_to_what_is_not_padding(width, height, fit):
    preprocessing = Preprocessing((64, 48), fit=fit, pad_value=7)
    tensor, letterbox = Fitter(preprocessing).fit(np.full((height, width, 3), 200, np.uint8))
    whole = np.array([[0, 0, width, height]], np.float32)
    x1, y1, x2, y2 = np.round(letterbox.to_model(whole)[0]).astype(int)
    expected = np.full((3, 48, 64), 7, np.float32)
    expected[:, y1:y2, x1:x2] = 200
    assert np.array_equal(tensor, expected)
