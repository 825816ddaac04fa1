"""What the parity certificate sees of masks, keypoints and class maps, on made answers."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.certificate import certify
from exporters.frames import Picture
from exporters.matching import keypoint_distances, mask_iou, partners, same_place
from exporters.outcome import KEYPOINT_PX, MASK_IOU, TENSOR_TOLERANCE, TIE_SHARE
from pipeline.detections import Mask
from pipeline.geometry import Letterbox
from stages.decoders.decoder import Candidates, Decoder, Preprocessing
from stages.decoders.masks import PatchMasks, ScoreMap, ThresholdMap
from tests.helpers.models import FakeModel

SIZE = 200
BOXES = np.array([[20, 20, 120, 140], [60, 100, 180, 190]], np.float32)


class PartsDecoder(Decoder):
    """Reads boxes as they are, with masks, keypoints or a map where they are given."""

    kind = "rcnn"
    class_count = 2

    def decode(self, outputs, score_threshold):
        if "map" in outputs:
            empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            return Candidates(*empty, class_map=ScoreMap(outputs["map"][0]))
        boxes = outputs["boxes"]
        masks = outputs.get("masks")
        return Candidates(
            boxes,
            np.array([0.9, 0.8], np.float32),
            np.zeros(2, np.int64),
            suppressed=True,
            masks=None if masks is None else PatchMasks(masks, boxes),
            keypoints=outputs.get("keypoints"),
        )


class File(FakeModel):
    """A file that gives the same answer to every picture."""

    def __init__(self, answer, *, kind="rcnn", batch=1):
        decoder = PartsDecoder()
        decoder.kind = kind
        super().__init__(Preprocessing((SIZE, SIZE)), decoder=decoder)
        self.answer = answer
        self.sizes = []

    def run(self, tensors):
        self.sizes.append(tensors[0].shape[1:])
        return [dict(self.answer) for _ in tensors]


def compare(got, expected, *, kind="rcnn", **given):
    picture = Picture("street", np.zeros((SIZE, SIZE, 3), np.uint8))
    file = File(got, kind=kind)
    options = {"dynamic_batch": False, **given}
    return certify(lambda _: dict(expected), file, [picture], **options)


def soft_disc():
    """Return a 28 x 28 patch of probabilities that pass 0.5 on a circle."""
    y, x = np.mgrid[:28, :28] - 13.5
    return (1 / (1 + np.exp(np.hypot(x, y) - 9))).astype(np.float32)


MASKS = {"boxes": BOXES, "masks": np.stack([soft_disc()] * 2)}


def test_equal_masks_hold_and_are_counted():
    outcome = compare(MASKS, MASKS)
    assert outcome.holds
    assert outcome.detections == 2
    results = outcome.facts()["results"]
    assert results["masks"]["compared"] == 2
    assert results["masks"]["min_iou"] == 1
    assert "keypoints" not in results
    assert "masks     2 compared" in "\n".join(outcome.lines())


def test_masks_of_nearly_equal_probability_hold():
    outcome = compare({**MASKS, "masks": MASKS["masks"] + np.float32(2e-3)}, MASKS)
    assert outcome.holds
    assert MASK_IOU <= outcome.masks.min_iou < 1


@pytest.mark.parametrize(
    "masks",
    [
        np.roll(MASKS["masks"], 1, axis=2),
        MASKS["masks"].transpose(0, 2, 1)[:, ::-1] * np.float32([[[1.1]], [[1.5]]]),
        MASKS["masks"] * 0,
    ],
    ids=["a cell to the right", "larger", "empty"],
)
def test_masks_that_differ_are_told(masks):
    outcome = compare({**MASKS, "masks": masks}, MASKS)
    assert not outcome.holds
    assert outcome.problems[0].startswith("street: the mask of cat 0.")
    assert "has IoU 0." in outcome.problems[0]


def test_a_mask_that_rounding_moves_is_excused_once_but_not_always():
    # With its border of a cell, a mask over 20..76 ends at 78 and begins at 19: whole pixels.
    stripes = np.zeros((28, 28), np.float32)
    stripes[:, ::2] = 1
    want = {"boxes": np.float32([[20, 20, 75.9995, 140], BOXES[1]]), "masks": MASKS["masks"].copy()}
    want["masks"][0] = stripes
    have = {**want, "boxes": want["boxes"] + np.float32([[0, 0, 1e-3, 0], [0, 0, 0, 0]])}
    outcome = compare(have, want)
    assert outcome.holds
    assert len(outcome.masks.moved) == 1
    assert outcome.max_box_diff_px < 0.0011
    twice = [{key: value[[0, 0]] for key, value in side.items()} for side in (have, want)]
    outcome = compare(*twice)
    assert not outcome.holds
    assert "2 masks differ, 1 may by rounding" in outcome.problems[-1]


def points(count=17):
    x, y = np.meshgrid(np.linspace(30, 110, count), [50.0, 150.0])
    return np.stack((x, y, np.full_like(x, 0.7)), axis=2).astype(np.float32)


POINTS = {"boxes": BOXES, "keypoints": points()}


def with_point(row, k, value):
    keypoints = points()
    keypoints[row, k] = value
    return {"boxes": BOXES, "keypoints": keypoints}


def test_keypoints_are_compared():
    outcome = compare(with_point(0, 0, [30.05, 50, 0.7004]), POINTS)
    assert outcome.holds
    facts = outcome.facts()["results"]["keypoints"]
    assert facts["compared"] == 34
    assert facts["max_diff_px"] == pytest.approx(0.05, abs=1e-4)
    assert facts["max_score_diff"] == pytest.approx(4e-4, abs=1e-6)
    assert "keypoints 34 compared" in "\n".join(outcome.lines())


def test_a_keypoint_of_another_score_is_no_tie():
    outcome = compare(with_point(1, 3, [45, 150, 0.71]), POINTS)
    assert outcome.problems[0].startswith("street: keypoint 3 of cat 0.800")


def test_one_keypoint_may_lie_in_another_cell_but_not_all():
    one = compare(with_point(1, 3, [150, 110, 0.7]), POINTS)
    assert one.holds
    assert len(one.keypoints.moved) == 1
    everywhere = {**POINTS, "keypoints": points() + np.float32([2 * KEYPOINT_PX, 0, 0])}
    shifted = compare(everywhere, POINTS)
    assert not shifted.holds
    assert "34 keypoints differ, 1 may by ties" in shifted.problems[-1]


def scores():
    """Return (1, 3, h, w) scores of three upright stripes."""
    x = np.arange(SIZE)
    planes = np.stack([-np.abs(x - centre) / 20 for centre in (30, 100, 170)])
    return np.repeat(planes[:, None, :], SIZE, axis=1)[None].astype(np.float32)


def compare_maps(got, expected, **given):
    return compare({"map": got}, {"map": expected}, kind="segmentation", **given)


def test_equal_maps_hold_and_say_how_many_pixels():
    outcome = compare_maps(scores(), scores())
    assert outcome.holds
    results = outcome.facts()["results"]
    assert results["pixels"] == SIZE * SIZE
    assert results["agreement"] == 1
    assert results["classes_seen"] == 3
    assert "detections" not in results
    assert outcome.facts()["tensors"]["max_abs_diff"] == 0


def test_ties_are_counted_and_few_hold():
    want, have = scores(), scores()
    # One row of pixels on the border of two stripes, equal but for less than the tolerance.
    want[0, :2, 50, 65], have[0, :2, 50, 65] = [[-1.0, -1.0001], [-1.0001, -1.0]]
    outcome = compare_maps(have, want)
    assert outcome.max_scaled_diff < TENSOR_TOLERANCE
    assert outcome.maps.differing == 1
    assert outcome.holds
    assert outcome.facts()["results"]["ties"] == 1
    want, have = np.zeros_like(want), np.zeros_like(have)
    have[0, 1] += 1e-5
    flat = compare_maps(have, want)
    assert not flat.holds
    assert "pixels are ties and have another class" in flat.problems[0]
    assert f"{TIE_SHARE:g} of them may" in flat.problems[0]


def test_a_pixel_of_another_class_that_is_no_tie_is_told(monkeypatch):
    """Where a decoder would paint other classes than the scores say."""
    honest = ScoreMap.paint

    def paint(self, letterbox):
        painted = honest(self, letterbox)
        if self.scores[0, 0, 0] == np.float32(-1.5001):
            painted[7, 7] = 2
        return painted

    monkeypatch.setattr(ScoreMap, "paint", paint)
    have = scores()
    have[0, 0, 0, 0] = -1.5001
    outcome = compare_maps(have, scores())
    assert outcome.problems[0].startswith("street: 1 of 40000 pixels have another class")


def test_channels_in_another_order_fail_by_their_tensor():
    outcome = compare_maps(scores()[:, [1, 0, 2]], scores())
    assert "'map' differs by" in outcome.problems[0]
    assert outcome.maps is None


def test_a_graph_of_any_size_is_tried_at_a_second_one():
    picture = Picture("street", np.zeros((SIZE, SIZE, 3), np.uint8))
    file = File({"map": scores()}, kind="segmentation")
    seen = []

    def network(batch):
        seen.append(batch.shape)
        return {"map": scores()}

    outcome = certify(network, file, [picture], dynamic_batch=False, dynamic_size=True)
    assert outcome.input_sizes_wh == [(200, 200), (126, 126)]
    assert seen == [(1, 3, 200, 200), (1, 3, 126, 126)]
    assert file.sizes == [(200, 200), (126, 126)]
    assert outcome.maps.compared == 2


def test_a_second_size_with_another_answer_is_told():
    class Rounding(File):
        def run(self, tensors):
            off = 0 if tensors[0].shape[1] == SIZE else 0.1
            return [{"map": scores() + np.float32(off)} for _ in tensors]

    picture = Picture("street", np.zeros((SIZE, SIZE, 3), np.uint8))
    file = Rounding({}, kind="segmentation")
    outcome = certify(
        lambda _: {"map": scores()}, file, [picture], dynamic_batch=False, dynamic_size=True
    )
    assert len(outcome.problems) == 1
    assert outcome.problems[0].startswith("street (at 126x126): 'map' differs")


def test_mask_iou_counts_pixels_of_the_picture():
    one = Mask(10, 10, np.ones((10, 10), np.bool_))
    assert mask_iou(one, Mask(10, 10, one.bits)) == 1
    assert mask_iou(one, Mask(15, 10, one.bits)) == pytest.approx(50 / 150)
    assert mask_iou(one, Mask(20, 10, one.bits)) == 0
    assert mask_iou(one, Mask(12, 14, np.ones((2, 3), np.bool_))) == pytest.approx(6 / 100)
    nothing = Mask(0, 0, np.zeros((0, 0), np.bool_))
    assert (mask_iou(nothing, nothing), mask_iou(one, nothing)) == (1, 0)
    assert same_place(one, Mask(10, 10, ~one.bits))
    assert not same_place(one, Mask(11, 10, one.bits))


def test_partners_are_of_the_same_class_and_score():
    boxes, score = BOXES[[0, 0, 0]], np.array([0.5, 0.5, 0.6], np.float32)
    kind = np.array([1, 0, 0])
    match, iou = partners((BOXES[:1], score[:1], np.array([0])), (boxes, score, kind))
    assert (match[0], iou[0]) == (1, 1)


def test_keypoints_apart_are_measured_in_pixels():
    apart, off = keypoint_distances(np.float32([[0, 0, 0.5]]), np.float32([[3, 4, 0.25]]))
    assert (apart[0], off[0]) == (5, 0.25)


def test_lead_is_the_best_score_minus_the_other_class_s():
    letterbox = Letterbox((1.0, 1.0), (0.0, 0.0), (SIZE, SIZE), (SIZE, SIZE))
    source = ScoreMap(scores()[0])
    other = np.full((SIZE, SIZE), 2, np.uint8)
    lead = source.lead(letterbox, other)
    expected = scores()[0].max(axis=0) - scores()[0, 2]
    np.testing.assert_allclose(lead, expected, atol=1e-5)
    plane = ThresholdMap(np.full((4, 4), 0.7, np.float32), 0.5)
    small = Letterbox((1.0, 1.0), (0.0, 0.0), (4, 4), (4, 4))
    other = np.zeros((4, 4), np.uint8)
    other[1, 1] = 1  # the same class as the plane's
    lead = plane.lead(small, other)
    assert lead[1, 1] == 0
    assert lead[0, 0] == pytest.approx(0.2, abs=1e-6)
