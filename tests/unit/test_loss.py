"""What counts as lost, and choices that cannot work together."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.command import export_model
from exporters.frames import Picture
from exporters.loss import Loss, _add_detections, frames_sha256
from exporters.reduced import Wanted
from pipeline.detections import Detections, Mask
from pipeline.errors import UsageError


def found(*rows):
    """rows: x, y, side, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    x, y, side = table[:, 0], table[:, 1], table[:, 2]
    return Detections(
        np.stack([x, y, x + side, y + side], 1),
        table[:, 3],
        table[:, 4].astype(np.int64),
        class_names=("cat", "dog"),
    )


def compared(want, have):
    loss = Loss()
    _add_detections(loss, "p", want, have)
    return loss


def test_the_same_results_lose_nothing():
    loss = compared(found((0, 0, 10, 0.9, 0), (50, 0, 10, 0.5, 1)), found((0, 0, 10, 0.9, 0)))
    assert (loss.expected, loss.found, loss.same, loss.close) == (2, 1, 1, 1)
    assert loss.loss == pytest.approx(1 - 2 / 3)
    assert loss.differences == ["p: dog 0.500 at (50.0, 0.0, 60.0, 10.0) is not found"]
    both = found((0, 0, 10, 0.9, 0), (50, 0, 10, 0.5, 1))
    assert compared(both, both).loss == 0


def test_nothing_found_by_either_is_no_loss_and_by_one_alone_a_whole_one():
    nothing, something = found(), found((0, 0, 10, 0.9, 0))
    assert compared(nothing, nothing).loss == 0
    assert compared(nothing, something).loss == 1
    assert compared(something, nothing).loss == 1


def test_another_class_is_another_thing():
    loss = compared(found((0, 0, 10, 0.9, 0)), found((0, 0, 10, 0.9, 1)))
    assert (loss.same, loss.loss) == (0, 1)
    assert loss.differences[1].endswith("is found by this file only")


def test_one_detection_answers_for_one_only():
    loss = compared(found((0, 0, 10, 0.9, 0), (1, 0, 10, 0.8, 0)), found((0, 0, 10, 0.9, 0)))
    assert (loss.same, loss.expected, loss.found) == (1, 2, 1)


def test_overlap_and_scores_of_pairs_are_told():
    # 10 wide, moved by 2: IoU 8/12.
    loss = compared(
        found((0, 0, 10, 0.9, 0), (50, 0, 10, 0.5, 0)),
        found((2, 0, 10, 0.8, 0), (50, 0, 10, 0.54, 0)),
    )
    assert (loss.same, loss.close, loss.loss) == (2, 1, 0)
    assert loss.max_score_diff == pytest.approx(0.1, abs=1e-6)
    assert loss.mean_score_diff == pytest.approx(0.07, abs=1e-6)
    assert loss.facts()["results"]["same_at_iou_0.9"] == 1


def test_masks_and_keypoints_of_pairs_are_told_and_are_no_part_of_the_loss():
    def side(width, x):
        return Detections(
            np.array([[0, 0, 10, 10]], np.float32),
            np.array([0.9], np.float32),
            np.array([0]),
            class_names=("cat",),
            masks=(Mask(0, 0, np.ones((10, width), bool)),),
            keypoints=np.array([[[x, 0, 0.9], [5, 5, 0.9]]], np.float32),
        )

    loss = compared(side(10, 0), side(6, 4))
    assert loss.loss == 0
    told = loss.facts()["results"]
    assert told["masks"] == {"mean_iou": pytest.approx(0.6), "min_iou": pytest.approx(0.6)}
    assert told["keypoints"] == {"mean_diff_px": 2.0, "max_diff_px": 4.0}
    lines = "\n".join(loss.lines())
    assert "IoU 0.6000 on average" in lines
    assert "4 at most; not part of the loss" in lines
    boxes_alone = compared(found((0, 0, 9, 0.9, 0)), found((0, 0, 9, 0.9, 0)))
    assert not {"masks", "keypoints"} & boxes_alone.facts()["results"].keys()


def test_of_maps_the_pixels_count():
    loss = Loss(pixels=200, same_pixels=150)
    assert loss.loss == 0.25
    assert loss.facts()["pixels"] == {"same": 150, "all": 200}


def test_the_limit_is_of_the_measure_that_is_there(tmp_path):
    assert Wanted("fp16").limit() < Wanted("int8").limit()
    assert Wanted("int8", data=tmp_path).limit() < Wanted("int8").limit()
    assert Wanted("int8", data=tmp_path, max_loss=0.2).limit() == 0.2
    assert Wanted("int8", max_loss=0.0).limit() == 0


def test_other_pictures_have_another_digest():
    one = Picture("a", np.zeros((4, 6, 3), np.uint8))
    other = Picture("a", np.zeros((6, 4, 3), np.uint8))
    assert frames_sha256([one]) != frames_sha256([other])
    assert frames_sha256([one]) == frames_sha256([Picture("b", one.image)])


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("here.onnx", {"precision": "fp32"}, "is an ONNX file already"),
        ("none.onnx", {"precision": "int8"}, "there is no file"),
        ("here.onnx", {"precision": "int8", "weights": "random"}, "has its own"),
        ("yolox-nano", {"precision": "fp32", "max_loss": 0.1}, "are for --precision fp16 and int8"),
        ("yolox-nano", {"precision": "int8", "max_loss": 5.0}, "a share, 0 to 1"),
        ("yolox-nano", {"precision": "int8", "max_loss": float("nan")}, "a share, 0 to 1"),
    ],
)
def test_choices_that_cannot_work_are_told_before_the_work(
    tmp_path, monkeypatch, name, given, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.onnx").write_bytes(b"")
    plain = {"weights": None, "frames": None, "overwrite": False, "say": print}
    with pytest.raises(UsageError, match=said):
        export_model(name, None, **{**plain, **given})
