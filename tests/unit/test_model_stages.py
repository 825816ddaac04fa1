"""The infer and nms stages over a model without a file: batches, limits, counters, messages."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ModelError
from pipeline.frame import Inferred
from pipeline.stage import RunContext
from stages.decoders.decoder import Candidates
from stages.infer import InferConfig, InferStage
from stages.nms import NmsConfig, NmsStage
from tests.contracts.check_stage import check_stage
from tests.helpers.models import FakeModel, TableDecoder, inferred, prepared

PERSON = [4, 4, 12, 12, 0.9, 0]
SHIFTED = [4, 5, 12, 13, 0.8, 0]
OTHER_CLASS = [4, 5, 12, 13, 0.7, 1]


def infer_stage(model=None, **config):
    return InferStage(InferConfig(**config), "infer", model or FakeModel())


def detect(rows, *, model=None, context=None, **config):
    stage = NmsStage(NmsConfig(**config), "nms", model or FakeModel())
    stage.open(context or RunContext())
    (frame,) = stage.process(inferred(rows))
    return frame.detections, stage


# ---- infer


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_infer_contract(batch):
    check_stage(lambda: infer_stage(batch=batch), lambda: prepared(5))


def test_each_frame_gets_its_own_outputs_and_batches_are_filled_up():
    model = FakeModel()
    stage = infer_stage(model, batch=4)
    assert stage.batching.max_size == 4
    stage.open(RunContext())
    model.runs.clear()
    out = stage.process(prepared(3))
    assert model.runs == [4]
    assert [float(item.outputs["mean"][0, 0]) for item in out] == [0, 1, 2]
    stage.close()


def test_infer_warms_up_in_open_and_owns_closing_the_model():
    model = FakeModel()
    stage = infer_stage(model)
    stage.open(RunContext())
    assert model.runs == [1]
    stage.close()
    assert not model.is_open
    stage.open(RunContext())
    assert model.is_open
    stage.close()


def test_a_failed_warm_up_closes_the_model():
    model = FakeModel()
    model.run = lambda tensors: (_ for _ in ()).throw(ModelError("out of memory"))
    with pytest.raises(ModelError, match="out of memory"):
        infer_stage(model).open(RunContext())
    assert not model.is_open


def test_a_fallback_is_noted():
    context = RunContext()
    infer_stage(FakeModel(fallback=True)).open(context)
    assert context.notes == ["infer: cuda was asked for, running on cpu: there is none"]


def test_infer_process_needs_open():
    with pytest.raises(RuntimeError, match="not open"):
        infer_stage().process(prepared(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"threads": 0},
        {"batch": 0},
        {"input_size": (0, 3)},
        {"scale": (float("nan"), 1, 1)},
        {"fit": "crop"},
        {"backend": "tensorrt"},
        {"modle": "x"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        InferConfig(**wrong)


# ---- nms


@pytest.mark.parametrize("method", ["hard", "soft", "merge"])
def test_nms_contract(method):
    check_stage(
        lambda: NmsStage(NmsConfig(method=method), "nms", FakeModel()),
        lambda: inferred([PERSON, SHIFTED, OTHER_CLASS], 4),
    )


def test_boxes_come_back_in_source_pixels_best_first():
    # The fake letterbox halves a 64x32 picture.
    found, _ = detect([OTHER_CLASS, PERSON, SHIFTED])
    assert found.xyxy.tolist() == [[8, 8, 24, 24], [8, 10, 24, 26]]
    assert [found.name_of(0), found.name_of(1)] == ["cat", "dog"]
    np.testing.assert_allclose(found.score, [0.9, 0.7])


def test_nothing_found_is_empty_and_not_none():
    found, _ = detect([])
    assert len(found) == 0
    assert found.class_names == ("cat", "dog")


def test_class_agnostic_lets_classes_suppress_each_other():
    found, _ = detect([PERSON, OTHER_CLASS], class_agnostic=True)
    assert len(found) == 1


def test_thresholds_are_used():
    assert len(detect([PERSON, SHIFTED], iou_threshold=0.9)[0]) == 2
    assert len(detect([PERSON, OTHER_CLASS], score_threshold=0.8)[0]) == 1


def test_merge_and_soft_are_reached():
    merged, _ = detect([PERSON, SHIFTED], method="merge")
    assert merged.xyxy[0, 1] == pytest.approx((4 * 0.9 + 5 * 0.8) / 1.7 * 2, rel=1e-5)
    soft, _ = detect([PERSON, SHIFTED], method="soft", score_threshold=0.1)
    assert len(soft) == 2
    assert soft.score[1] < 0.8
    linear, _ = detect([PERSON, SHIFTED], method="soft", soft_decay="linear", score_threshold=0.1)
    iou = 56 / 72
    assert linear.score[1] == pytest.approx(0.8 * (1 - iou), rel=1e-5)


def test_max_detections_cuts_the_worst_and_is_counted_and_noted():
    rows = [[i * 10, 0, i * 10 + 5, 5, 0.9 - i / 100, 0] for i in range(3)]
    context = RunContext()
    found, stage = detect(rows, max_detections=2, context=context)
    np.testing.assert_allclose(found.score, [0.9, 0.89])
    assert stage.counters["cut_by_max_detections"] == 1
    assert "nms.max_detections" in context.notes[0]


@pytest.mark.parametrize("method", ["hard", "soft", "merge"])
def test_reaching_max_detections_without_cutting_is_not_counted(method):
    rows = [PERSON, [20, 4, 28, 12, 0.8, 0]]
    found, stage = detect(rows, max_detections=2, method=method)
    assert len(found) == 2
    assert stage.counters["cut_by_max_detections"] == 0


def test_boxes_over_the_edge_are_clipped_and_those_beyond_it_dropped_and_counted():
    # Picture rows end at model row 16; below is padding.
    found, stage = detect([[-4, 10, 6, 20, 0.9, 0], [2, 20, 12, 30, 0.8, 0]])
    assert found.xyxy.tolist() == [[0, 20, 12, 32]]
    assert stage.counters["outside_picture"] == 1


def test_classes_filters_by_name():
    found, _ = detect([PERSON, OTHER_CLASS], classes=("dog",))
    assert [found.name_of(i) for i in range(len(found))] == ["dog"]


def test_an_unknown_class_is_an_error_that_lists_the_known():
    with pytest.raises(ModelError, match=r"no 'dgo'; it knows: cat, dog"):
        NmsStage(NmsConfig(classes=("dgo",)), "nms", FakeModel())


def test_a_graph_that_suppresses_on_its_own_is_only_sorted_and_limited():
    model = FakeModel(decoder=TableDecoder(suppressed=True))
    found, stage = detect([SHIFTED, PERSON, OTHER_CLASS], model=model, max_detections=2)
    np.testing.assert_allclose(found.score, [0.9, 0.8])
    assert stage.counters["cut_by_max_detections"] == 1


def test_numbers_that_are_not_finite_are_an_error_that_names_the_frame():
    class Broken(TableDecoder):
        def decode(self, outputs, score_threshold):
            return Candidates(
                np.full((1, 4), np.nan, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
            )

    with pytest.raises(ModelError, match=r"not finite in s/0/0"):
        detect([], model=FakeModel(decoder=Broken()))


def test_ten_thousand_candidates_give_the_best_three_hundred():
    generator = np.random.default_rng(1)
    start = generator.uniform(0, 28, (10_000, 2))
    rows = np.concatenate(
        [
            start,
            start + generator.uniform(0.5, 1, (10_000, 2)),
            generator.uniform(0.5, 1, (10_000, 1)),
            generator.integers(0, 2, (10_000, 1)),
        ],
        1,
    )
    rows[:, [1, 3]] /= 2
    found, stage = detect(rows)
    assert len(found) == 300
    assert stage.counters == {"cut_by_max_detections": 1, "outside_picture": 0}


def test_nms_process_needs_open():
    with pytest.raises(RuntimeError, match="not open"):
        NmsStage(NmsConfig(), "nms", FakeModel()).process(inferred([PERSON]))


def test_frames_keep_everything_else():
    items = inferred([PERSON], 2)
    stage = NmsStage(NmsConfig(), "nms", FakeModel())
    stage.open(RunContext())
    for item, frame in zip(items, stage.process(items), strict=True):
        assert isinstance(item, Inferred)
        assert frame.image is item.frame.image
        assert frame.time is item.frame.time
        assert item.frame.detections is None
