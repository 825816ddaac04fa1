"""What the parity certificate sees, on made answers of a network and a file."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.certificate import certify
from exporters.frames import Picture
from exporters.matching import SCORE_TOLERANCE
from exporters.outcome import FLIP_SHARE, TENSOR_TOLERANCE
from tests.helpers.models import FakeModel, TableDecoder

SIZE = 640
# x1, y1, x2, y2, score, class
ROWS = np.array(
    [[10, 10, 200, 300, 0.9, 0], [400, 100, 404, 600, 0.8, 1], [300, 300, 500, 400, 0.2, 0]],
    np.float32,
)


class File(FakeModel):
    """A file that answers `rows` to every picture."""

    def __init__(self, rows, *, whole=False):
        from stages.decoders.decoder import Preprocessing

        decoder = TableDecoder(suppressed=whole)
        decoder.kind = "rcnn" if whole else "table"
        super().__init__(Preprocessing((SIZE, SIZE)), decoder=decoder)
        self.rows = np.asarray(rows, np.float32)

    def run(self, tensors):
        return [{"rows": self.rows.copy()} for _ in tensors]


def compare(got, expected=ROWS, *, whole=False):
    picture = Picture("street", np.zeros((SIZE, SIZE, 3), np.uint8))
    answer = {"rows": np.asarray(expected, np.float32)}
    return certify(lambda _: answer, File(got, whole=whole), [picture], dynamic_batch=False)


def changed(row, column, value):
    rows = ROWS.copy()
    rows[row, column] = value
    return rows


def test_equal_answers_hold():
    outcome = compare(ROWS)
    assert outcome.holds
    assert outcome.detections == 2
    assert (outcome.max_abs_diff, outcome.min_iou, outcome.max_score_diff) == (0, 1, 0)
    facts = outcome.facts()
    assert facts["frames"] == 1
    assert facts["batches"] == [1]
    assert facts["frame_sizes_wh"] == [[SIZE, SIZE]]


def test_rounding_holds_and_is_measured():
    outcome = compare(changed(0, 2, 200.01))
    assert outcome.holds
    assert outcome.max_box_diff_px == pytest.approx(0.01, abs=1e-3)
    assert outcome.mean_abs_diff == pytest.approx(0.01 / ROWS.size, rel=1e-2)


def test_a_tensor_that_differs_is_told_with_its_picture():
    outcome = compare(changed(0, 2, 200 + 300 * TENSOR_TOLERANCE * 1.1))
    assert not outcome.holds
    assert outcome.problems == [f"street: 'rows' differs by 0.00055, {TENSOR_TOLERANCE:g} allowed"]


def test_a_thin_box_that_moves_is_seen_though_its_tensor_passes():
    rows = changed(1, 0, 400.1)
    outcome = compare(rows)
    assert outcome.max_scaled_diff < TENSOR_TOLERANCE
    assert [text.partition(" at ")[0] for text in outcome.problems] == [
        "street: dog 0.800",
        "street: dog 0.800",
    ]
    assert outcome.problems[0].endswith("is not found by the file")
    assert outcome.problems[1].endswith("is found by the file only")


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[1:],
        np.vstack([ROWS, [[50, 400, 90, 500, 0.7, 1]]]),
        changed(0, 5, 1),
        changed(0, 4, 0.9 - 2 * SCORE_TOLERANCE),
        changed(0, 0, 20),
    ],
    ids=["lost", "made up", "renamed", "other score", "moved"],
)
def test_results_of_a_whole_detector_are_compared(rows):
    outcome = compare(rows, whole=True)
    assert not outcome.holds
    assert "may by suppression" in outcome.problems[-1]


def test_rows_of_a_whole_detector_may_change_places():
    outcome = compare(ROWS[::-1], whole=True)
    assert outcome.holds
    assert outcome.facts()["tensors"] is None
    assert "not compared" in "\n".join(outcome.lines())


def test_a_score_on_the_threshold_may_be_on_one_side_only():
    on, below = changed(2, 4, 0.3001), changed(2, 4, 0.2999)
    for one, other in ((on, below), (below, on)):
        outcome = compare(one, other)
        assert outcome.holds
        assert outcome.flipped == []


def test_two_of_nearly_equal_score_may_suppress_each_other():
    twins = [[10, 10, 110, 110, 0.8, 0], [14, 10, 114, 110, 0.8 - 1e-6, 0]]
    swapped = np.array(twins, np.float32)
    swapped[:, 4] = swapped[::-1, 4]
    many = np.array([[k * 5, 200 + 4 * k, k * 5 + 3, 203 + 4 * k, 0.9, 1] for k in range(100)])
    outcome = compare(np.vstack([swapped, many]), np.vstack([twins, many]))
    assert outcome.max_scaled_diff < TENSOR_TOLERANCE
    assert len(outcome.flipped) == 2
    assert outcome.holds


def test_many_that_suppress_each_other_are_too_many():
    places = np.array([[150 * (k % 4), 120 * (k // 4)] for k in range(16)])
    first = np.hstack([places, places + 100, np.full((16, 1), 0.8), np.zeros((16, 1))])
    second = first + np.array([4, 0, 4, 0, -1e-6, 0])
    got = np.vstack([first - [0, 0, 0, 0, 2e-6, 0], second])
    outcome = compare(got, np.vstack([first, second]))
    assert outcome.max_scaled_diff < TENSOR_TOLERANCE
    assert len(outcome.flipped) == 32 > FLIP_SHARE * outcome.detections
    assert "32 detections differ, 2 may by suppression" in outcome.problems[-1]


SHIFT = np.array([1, 0, 0, 0, 0, 0], np.float32)


@pytest.mark.parametrize("wrong", [(2, 1), (5, 3)], ids=str)
def test_every_place_in_a_batch_is_compared(wrong):
    class Mixed(File):
        """Gives one place of one batch size another answer."""

        def run(self, tensors):
            answers = super().run(tensors)
            for place, answer in enumerate(answers):
                answer["rows"][:, 0] += place
            if len(tensors) == wrong[0]:
                answers[wrong[1]]["rows"][0, 2] += 5
            return [{"rows": answer["rows"][None]} for answer in answers]

    class Batched(TableDecoder):
        def decode(self, outputs, score_threshold):
            return super().decode({"rows": outputs["rows"][0]}, score_threshold)

    file = Mixed(ROWS)
    file.decoder = Batched()
    pictures = [Picture(f"picture {k}", np.zeros((SIZE, SIZE, 3), np.uint8)) for k in range(5)]
    outcome = certify(
        lambda batch: {"rows": np.stack([ROWS + k * SHIFT for k in range(len(batch))])},
        file,
        pictures,
        dynamic_batch=True,
    )
    assert outcome.batches == [1, 2, 5]
    assert len(outcome.problems) == 1
    assert outcome.problems[0].startswith(f"picture {wrong[1]} (batch {wrong[0]}): 'rows' differs")


def test_nan_is_no_equality():
    outcome = compare(changed(0, 0, np.nan))
    assert outcome.problems == ["street: output 'rows' holds values that are not finite"]


def test_another_output_is_told():
    picture = Picture("street", np.zeros((8, 8, 3), np.uint8))
    outcome = certify(lambda _: {"boxes": ROWS}, File(ROWS), [picture], dynamic_batch=False)
    assert outcome.problems == ["street: outputs ['rows'], expected ['boxes']"]
