"""Colour conversion against the definition in H.273, in floating point."""

import itertools

import av
import numpy as np
import pytest

from stages.sources.color import Converter, color_tags, guess_matrix, quarter_turns

WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
BLOCK = 8


def reference(planes, matrix, full, bits):
    """(h, w, 3) float64 BGR 0..255 of full-size Y, Cb, Cr planes."""
    luma, cb, cr = (plane.astype(np.float64) for plane in planes)
    unit = 1 << (bits - 8)
    top = (1 << bits) - 1
    if full:
        y, b, r = luma / top, (cb - 128 * unit) / top, (cr - 128 * unit) / top
    else:
        y = (luma - 16 * unit) / (219 * unit)
        b, r = ((c - 128 * unit) / (224 * unit) for c in (cb, cr))
    kr, kb = WEIGHTS[matrix]
    red, blue = y + 2 * (1 - kr) * r, y + 2 * (1 - kb) * b
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([blue, green, red], axis=-1) * 255, 0, 255)


def make_frame(planes, pix_fmt, bits, matrix, full):
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pix_fmt)
    dtype = np.uint8 if bits == 8 else np.uint16
    for plane, values in zip(frame.planes, planes, strict=False):
        step_y, step_x = -(-height // plane.height), -(-width // plane.width)
        values = values[::step_y, ::step_x]
        buffer = np.zeros((plane.height, plane.line_size // np.dtype(dtype).itemsize), dtype)
        buffer[:, : values.shape[1]] = values
        plane.update(buffer.tobytes())
    frame.colorspace = matrix
    frame.color_range = 2 if full else 1
    return frame


def blocks(rng, low, high, size):
    width, height = size
    shape = (-(-height // BLOCK), -(-width // BLOCK))
    return np.kron(rng.integers(low, high, shape), np.ones((BLOCK, BLOCK), int))[:height, :width]


def error(pix_fmt, matrix, full, size=(128, 96), low=16, high=236, chroma=(16, 241), bits=8):
    unit = 1 << (bits - 8)
    rng = np.random.default_rng(3)
    planes = [blocks(rng, low * unit, high * unit, size)]
    planes += [blocks(rng, chroma[0] * unit, chroma[1] * unit, size) for _ in range(2)]
    image = Converter().bgr(make_frame(planes, pix_fmt, bits, matrix, full))
    assert image.shape == (size[1], size[0], 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    wrong = np.abs(image - reference(planes, matrix, full, bits))
    height, width = (side // BLOCK * BLOCK for side in (size[1], size[0]))
    cells = wrong[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    # At the edges of a block chroma is interpolated: a choice, not an error.
    return cells[:, 2:-2, :, 2:-2].max()


FORMATS = [
    ("yuv420p", 8), ("yuv422p", 8), ("yuv444p", 8),
    ("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv444p10le", 10),
]  # fmt: skip


@pytest.mark.parametrize(("pix_fmt", "bits"), FORMATS)
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [6, 1, 9], ids=["bt601", "bt709", "bt2020"])
def test_pixels_are_within_two_of_the_definition(pix_fmt, bits, matrix, full):
    assert error(pix_fmt, matrix, full, bits=bits) <= 2.0


@pytest.mark.parametrize("size", [(321, 241), (320, 241), (321, 240), (66, 50), (1280, 720)])
def test_odd_and_large_sizes_are_as_exact(size):
    assert error("yuv420p", 1, full=False, size=size) <= 2.0


def test_full_range_luma_is_used_to_its_ends():
    assert error("yuv420p", 6, full=True, low=0, high=256) <= 2.0
    assert error("yuvj420p", 6, full=True, low=0, high=256) <= 2.0


def test_the_yardstick_would_notice_a_wrong_matrix_or_range():
    rng = np.random.default_rng(3)
    planes = [blocks(rng, 16, 236, (64, 64)) for _ in range(3)]
    right = reference(planes, 1, full=False, bits=8)
    for matrix, full in itertools.product((1, 6, 9), (False, True)):
        if (matrix, full) != (1, False):
            assert np.abs(right - reference(planes, matrix, full, 8)).max() > 10


def test_an_unnamed_matrix_is_chosen_by_size_as_players_do():
    assert guess_matrix(640, 480) == 6
    assert guess_matrix(720, 576) == 6
    assert guess_matrix(1280, 720) == 1
    assert guess_matrix(1280, 536) == 1
    assert guess_matrix(1080, 1920) == 1
    rng = np.random.default_rng(3)
    for size, matrix in (((320, 240), 6), ((1280, 720), 1)):
        planes = [blocks(rng, 16, 236, size) for _ in range(3)]
        frame = make_frame(planes, "yuv444p", 8, 2, full=False)
        wrong = np.abs(Converter().bgr(frame) - reference(planes, matrix, full=False, bits=8))
        assert wrong.max() <= 2.0


def test_gray_is_stretched_when_it_says_that_it_is_limited():
    luma = np.tile(np.arange(16, 236, dtype=np.uint8), (32, 1))
    limited = Converter().bgr(make_frame([luma], "gray", 8, 2, full=False))
    assert limited[0, 0].tolist() == [0, 0, 0]
    assert limited[0, -1].tolist() == [255, 255, 255]
    full = Converter().bgr(make_frame([luma], "gray", 8, 2, full=True))
    assert np.array_equal(full[..., 1], luma)


def test_rgb_is_only_reordered():
    rgb = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    assert np.array_equal(Converter().bgr(frame), rgb[..., ::-1])


def test_one_converter_takes_frames_of_changing_kind():
    converter = Converter()
    rng = np.random.default_rng(1)
    for pix_fmt, size, matrix, full in (
        ("yuv420p", (64, 48), 1, False), ("yuv420p", (96, 64), 1, False),
        ("yuv444p", (96, 64), 6, True), ("yuv420p", (64, 48), 9, False),
    ):  # fmt: skip
        planes = [blocks(rng, 60, 190, size) for _ in range(3)]
        image = converter.bgr(make_frame(planes, pix_fmt, 8, matrix, full))
        cells = np.abs(image - reference(planes, matrix, full, 8))[3:5, 3:5]
        assert cells.max() <= 2.0


def test_tags_say_what_the_frame_says():
    frame = av.VideoFrame(16, 16, "yuv420p")
    tags = color_tags(frame)
    assert (tags.matrix, tags.full_range) == (2, None)
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = 9, 1, 9, 16
    tags = color_tags(frame)
    assert (tags.matrix, tags.primaries, tags.transfer, tags.full_range) == (9, 9, 16, False)
    assert color_tags(av.VideoFrame(16, 16, "yuvj420p")).full_range is True


@pytest.mark.parametrize(
    ("degrees", "turn"), [(0, 0), (90, 90), (-90, 270), (180, 180), (-180, 180), (89, 90), (2, 0)]
)
def test_rotations_are_quarter_turns(degrees, turn):
    assert quarter_turns(degrees) == turn
