"""Masks, keypoints and class maps on their way through the nms stage."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.detections import Mask
from pipeline.errors import ModelError
from pipeline.frame import Frame
from pipeline.stage import RunContext
from stages.decoders.decoder import Candidates, MapSource, MaskSource
from stages.nms import NmsConfig, NmsStage
from tests.contracts.check_stage import check_stage
from tests.helpers.models import FakeModel, TableDecoder, inferred

PERSON = [4, 4, 12, 12, 0.9, 0]
SHIFTED = [4, 5, 12, 13, 0.8, 0]
APART = [20, 2, 28, 10, 0.85, 0]
DOG = [14, 2, 18, 10, 0.7, 1]
PADDING = [2, 20, 12, 30, 0.95, 0]  # below the picture


class RowMasks(MaskSource):
    """Each mask is as wide as its row's number in the table."""

    def __init__(self, rows, made):
        self.rows, self.made = rows, made

    def take(self, rows):
        return RowMasks(self.rows[rows], self.made)

    def cut(self, letterbox, xyxy):
        assert len(xyxy) == len(self.rows)
        self.made.extend(self.rows.tolist())
        return tuple(
            Mask(int(box[0]), int(box[1]), np.ones((1, row + 1), bool))
            for row, box in zip(self.rows.tolist(), xyxy, strict=True)
        )


class ResultDecoder(TableDecoder):
    """Adds a mask and two keypoints to each row; the first keypoint's x is the row's number."""

    def __init__(self, **more):
        super().__init__(**more)
        self.made = []

    def decode(self, outputs, score_threshold):
        found = super().decode(outputs, score_threshold)
        n = len(found.score)
        points = np.zeros((n, 2, 3), np.float32)
        points[:, 0, 0] = np.arange(n)
        points[:, 1] = 3, 40, 0.25
        return Candidates(
            found.xyxy,
            found.score,
            found.class_id,
            found.suppressed,
            RowMasks(np.arange(n), self.made),
            points,
        )


class Halves(MapSource):
    """Left half class 1, right half class 0, in the picture's size."""

    def paint(self, letterbox):
        width, height = letterbox.source_wh
        return np.repeat((np.arange(width) < width // 2)[None], height, 0).astype(np.uint8)

    def lead(self, letterbox, class_id):
        return (self.paint(letterbox) != class_id).astype(np.float32)


class MapDecoder(TableDecoder):
    def decode(self, outputs, score_threshold):
        nothing = np.zeros(0, np.float32)
        return Candidates(
            nothing.reshape(0, 4), nothing, nothing.astype(np.int64), class_map=Halves()
        )


def stage_of(decoder, names=None, **config):
    model = FakeModel(decoder=decoder)
    if names:
        model.class_names = names
    stage = NmsStage(NmsConfig(**config), "nms", model)
    stage.open(RunContext())
    return stage


def detect(rows, decoder=None, **config):
    decoder = decoder or ResultDecoder()
    (frame,) = stage_of(decoder, **config).process(inferred(rows))
    return frame.detections, decoder


def rows_of(found):
    """Which table row each detection's mask and keypoints came from."""
    from_masks = [mask.bits.shape[1] - 1 for mask in found.masks]
    # The letterbox halves the picture.
    from_points = (found.keypoints[:, 0, 0] / 2).tolist()
    assert from_masks == from_points
    return from_masks


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({}, [2, 4, 3]),
        ({"method": "merge"}, [2, 4, 3]),
        ({"method": "soft", "score_threshold": 0.1}, [2, 4, 3, 0]),
        ({"max_detections": 2}, [2]),
        ({"classes": ("dog",)}, [3]),
        ({"class_agnostic": True}, [2, 4, 3]),
    ],
    ids=str,
)
def test_masks_and_keypoints_go_with_their_row(config, rows):
    found, decoder = detect([SHIFTED, PADDING, PERSON, DOG, APART], **config)
    assert rows_of(found) == rows
    # Made for what stays, and for nothing else.
    assert decoder.made == rows


def test_a_graph_that_suppresses_on_its_own_keeps_masks_sorted_by_score():
    found, _ = detect([SHIFTED, PERSON, APART], ResultDecoder(suppressed=True))
    assert rows_of(found) == [1, 2, 0]


def test_keypoints_are_source_pixels_and_are_not_clipped():
    found, _ = detect([PERSON])
    assert found.keypoints.dtype == np.float32
    assert found.keypoints[0, 1].tolist() == [6, 80, 0.25]


def test_nothing_found_has_no_masks_and_no_keypoints_but_their_columns():
    found, _ = detect([])
    assert found.masks == ()
    assert found.keypoints.shape == (0, 2, 3)


@pytest.mark.parametrize("method", ["hard", "soft", "merge"])
def test_contract_with_masks_and_keypoints(method):
    check_stage(
        lambda: NmsStage(NmsConfig(method=method), "nms", FakeModel(decoder=ResultDecoder())),
        lambda: inferred([PERSON, SHIFTED, DOG], 4),
    )


def test_contract_with_a_class_map():
    check_stage(
        lambda: NmsStage(NmsConfig(), "nms", FakeModel(decoder=MapDecoder())),
        lambda: inferred([], 4),
    )


def test_a_class_map_becomes_the_frames_segmentation():
    stage = stage_of(MapDecoder(), ("background", "person"))
    (frame,) = stage.process(inferred([]))
    assert isinstance(frame, Frame)
    assert frame.detections is None  # no detector ran
    assert frame.segmentation.class_names == ("background", "person")
    assert frame.segmentation.class_id.shape == frame.image.shape[:2]
    assert frame.segmentation.shares() == {0: 0.5, 1: 0.5}
    assert frame.nbytes == frame.image.nbytes + frame.segmentation.class_id.nbytes


def test_classes_turns_the_others_into_background():
    names = ("__background__", "person", "dog")
    (frame,) = stage_of(MapDecoder(), names, classes=("person",)).process(inferred([]))
    assert frame.segmentation.shares() == {0: 0.5, 1: 0.5}
    (frame,) = stage_of(MapDecoder(), names, classes=("dog",)).process(inferred([]))
    assert frame.segmentation.shares() == {0: 1.0}
    stage = stage_of(MapDecoder(), ("road", "car"), classes=("car",))
    with pytest.raises(ModelError, match=r"nms.classes: the model has no background"):
        stage.process(inferred([]))
