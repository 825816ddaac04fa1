"""Pictures with masks: what is read from them, and what is wrong with broken ones."""

from __future__ import annotations

import numpy as np
import pytest

from models.train.__main__ import main
from models.train.instances_data import (
    InstancesData,
    Pair,
    find_pairs,
    flipped,
    read_masks,
)
from pipeline.errors import SourceError, UsageError
from stages.decoders.decoder import Preprocessing

SMALL = Preprocessing((96, 48), fit="letterbox_top_left", pixel_order="rgb")


def write(path, array):
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


@pytest.fixture
def folder(tmp_path):
    """a10.png shows a bright rectangle, a2.png nothing."""
    picture = np.full((60, 80, 3), 30, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    picture[20:50, 10:30] = 220
    mask[20:50, 10:30] = 7
    write(tmp_path / "images" / "a10.png", picture)
    write(tmp_path / "masks" / "a10.png", mask)
    write(tmp_path / "images" / "a2.png", picture)
    write(tmp_path / "masks" / "a2.png", np.zeros((60, 80), np.uint8))
    return tmp_path


def test_each_number_is_an_object_with_the_extent_of_its_pixels(tmp_path):
    mask = np.zeros((6, 9), np.uint16)
    mask[0, 0] = 300  # one pixel, in a corner
    mask[2:5, 3:7] = 2
    mask[3, 4] = 0  # a hole
    mask[5, 8] = mask[1, 7] = 9  # two parts, one object
    found = read_masks(write(tmp_path / "m.png", mask))
    assert found.xyxy.tolist() == [[3, 2, 7, 5], [7, 1, 9, 6], [0, 0, 1, 1]]
    assert found.xyxy.dtype == np.float32
    for bits, number in zip(found.bits, (2, 9, 300), strict=True):
        np.testing.assert_array_equal(bits, mask == number)


def test_a_mask_of_zeros_has_no_object(tmp_path):
    found = read_masks(write(tmp_path / "m.png", np.zeros((6, 9), np.uint8)))
    assert (found.xyxy.shape, found.bits.shape) == ((0, 4), (0, 6, 9))


def test_an_object_may_fill_the_picture(tmp_path):
    found = read_masks(write(tmp_path / "m.png", np.full((6, 9), 3, np.uint8)))
    assert found.xyxy.tolist() == [[0, 0, 9, 6]]
    assert found.bits.all()


def test_pictures_come_in_natural_order_with_their_masks(folder):
    pairs = find_pairs(folder)
    assert [p.picture.name for p in pairs] == ["a2.png", "a10.png"]
    assert [p.masks.name for p in pairs] == ["a2.png", "a10.png"]
    assert find_pairs(folder, 1) == pairs[:1]
    assert InstancesData(pairs, SMALL).count_objects() == 1


def test_picture_box_and_mask_stay_aligned_in_the_input_and_in_its_mirror(folder):
    sample = InstancesData(find_pairs(folder), SMALL)[1]
    # 80x60 into 96x48: scaled by 0.8 to 64x48, at the left; the rest is padding.
    np.testing.assert_allclose(sample.xyxy, [[8, 16, 24, 40]], atol=1e-5)
    for one, box in ((sample, (8, 16, 24, 40)), (flipped(sample), (72, 16, 88, 40))):
        np.testing.assert_allclose(one.xyxy, [box], atol=1e-5)
        x1, y1, x2, y2 = box
        inside = np.zeros((48, 96), bool)
        inside[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(one.masks[0] > 0.5, inside)
        np.testing.assert_array_equal(one.tensor[0] > 125, inside)
        assert one.tensor.flags.c_contiguous
        assert one.masks.flags.c_contiguous


def test_a_picture_without_objects_is_a_sample_without_rows(folder):
    sample = InstancesData(find_pairs(folder), SMALL)[0]
    assert (sample.xyxy.shape, sample.masks.shape) == ((0, 4), (0, 48, 96))


def test_a_folder_of_another_layout_is_refused(folder):
    with pytest.raises(UsageError, match=r"no folder .*nowhere/images: expected images/ and masks"):
        find_pairs(folder / "nowhere")
    (folder / "masks" / "a2.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 pictures .* first .*images/a2\.png: expected"):
        find_pairs(folder)
    for name in ("a2.png", "a10.png"):
        (folder / "images" / name).unlink()
    with pytest.raises(UsageError, match=r"images: there are no pictures"):
        find_pairs(folder)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 9, 3), np.uint8), "3 channels of uint8: expected one channel"),
        (np.zeros((6, 9), np.float32), "1 channels of float32: expected one channel"),
        (None, "cannot be read as a picture of masks"),
    ],
)
def test_a_broken_mask_file_is_named(tmp_path, array, message):
    path = tmp_path / "m.tif"
    if array is None:
        path.write_bytes(b"no picture")
    else:
        write(path, array)
    with pytest.raises(SourceError, match=message) as caught:
        read_masks(path)
    assert str(caught.value).startswith(str(path))


def test_broken_pairs_are_found_before_training(folder):
    pairs = find_pairs(folder)
    with pytest.raises(UsageError, match=r"none of the 1 mask files has an obj.* first .*a2\.png"):
        InstancesData(pairs[:1], SMALL).count_objects()
    write(folder / "masks" / "a2.png", np.zeros((80, 60), np.uint8))
    with pytest.raises(SourceError, match=r"masks/a2\.png is 60x80, but .*images/a2\.png is 80x60"):
        InstancesData(pairs, SMALL).count_objects()
    broken = folder / "images" / "a10.png"
    broken.write_bytes(b"")
    with pytest.raises(SourceError, match=r"images/a10\.png cannot be read as a picture"):
        InstancesData([Pair(broken, pairs[1].masks)], SMALL).count_objects()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere"], 2, "error: there is no folder nowhere/images"),
        (["--data", ".", "--pictures", "0"], 2, "error: --pictures 0: expected 1 or more"),
    ],
)
def test_the_command_tells_what_is_wrong(arguments, code, message, capsys):
    assert main(["instances", *arguments]) == code
    assert message in capsys.readouterr().err
