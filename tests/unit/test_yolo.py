"""The detector network and what it is trained towards."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.train.losses import assign, cell_centres, detection_loss, pair_iou  # noqa: E402 - after the skip
from models.yolo import STRIDES, Scored, Yolo, YoloConfig, grid  # noqa: E402 - after the skip

pytestmark = pytest.mark.needs_torch

TINY = YoloConfig(3, (8, 8, 16, 16, 16), (1, 1, 1, 1), 1, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def test_rows_are_those_of_all_cells_finest_first():
    rows = Yolo(TINY).eval()(torch.zeros(2, 3, 64, 96))
    assert rows.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 5 + 3)


def test_boxes_are_decoded_from_cell_and_stride():
    network = Yolo(TINY).eval()
    for level in range(3):
        torch.nn.init.zeros_(network.head.reg_preds[level].weight)
        # 0.25 and 0.5 of a cell to the right and down, 2 cells wide, 3 high.
        bias = torch.tensor([0.25, 0.5, np.log(2.0), np.log(3.0)])
        network.head.reg_preds[level].bias.data.copy_(bias)
    boxes = network(torch.rand(1, 3, 64, 96))[0, :, :4]
    at = 0
    for stride in STRIDES:
        for y in range(64 // stride):
            for x in range(96 // stride):
                expected = [(x + 0.25) * stride, (y + 0.5) * stride, 2 * stride, 3 * stride]
                torch.testing.assert_close(boxes[at], torch.tensor(expected))
                at += 1
    assert at == len(boxes)


def test_scored_gives_probabilities_and_keeps_boxes():
    network = Yolo(TINY).eval()
    picture = torch.rand(1, 3, 64, 64)
    raw, scored = network(picture), Scored(network)(picture)
    torch.testing.assert_close(scored[..., :4], raw[..., :4])
    torch.testing.assert_close(scored[..., 4:], raw[..., 4:].sigmoid())


def test_the_published_nano_has_its_published_size_and_names():
    network = Yolo(YoloConfig.yolox(80, 0.33, 0.25, depthwise=True))
    # 0.91 million parameters, the figure in the README of the YOLOX repository.
    assert 0.905e6 < sum(p.numel() for p in network.parameters()) < 0.915e6
    names = set(network.state_dict())
    for name in (
        "backbone.backbone.stem.conv.conv.weight",
        "backbone.backbone.dark5.1.conv1.bn.running_mean",
        "backbone.C3_p4.m.0.conv2.dconv.conv.weight",
        "backbone.bu_conv2.pconv.bn.weight",
        "head.cls_convs.0.1.dconv.conv.weight",
        "head.obj_preds.2.bias",
    ):
        assert name in names


def test_grid_runs_along_rows():
    assert grid(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_iou_and_its_generalised_form():
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [3, 3, 3, 3]])
    iou, giou = pair_iou(a, b)
    torch.testing.assert_close(iou, torch.tensor([1.0, 1 / 3, 0.0, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1.0, 1 / 3, -1 / 3, 0.0]))


def scene(boxes, kinds, input_hw=(64, 64)):
    """Return predictions that are far off everywhere, and the targets as tensors."""
    centres, _ = cell_centres(*input_hw, torch.device("cpu"))
    rows = torch.zeros(1, len(centres), 8)
    rows[0, :, :2], rows[0, :, 2:4] = centres, 8.0
    rows[..., 4:] = -4.0
    real = torch.tensor([[box[2] > 0 for box in boxes]])
    return rows, torch.tensor([boxes], dtype=torch.float32), torch.tensor([kinds]), real


def assigned_to(rows, boxes, kinds, real, input_hw=(64, 64)):
    centres, strides = cell_centres(*input_hw, torch.device("cpu"))
    half = rows[..., 2:4] / 2
    xyxy = torch.cat((rows[..., :2] - half, rows[..., :2] + half), -1)
    chosen, owner, iou = assign(xyxy, rows[..., 4:], boxes, kinds, real, centres, strides)
    return chosen[0], owner[0], iou[0], centres


def test_cells_are_assigned_inside_the_box_they_answer_for():
    rows, boxes, kinds, real = scene([[4, 4, 28, 28], [40, 40, 60, 60], [0, 0, 0, 0]], [0, 1, 0])
    chosen, owner, _, centres = assigned_to(rows, boxes, kinds, real)
    for box in range(2):
        mine = centres[chosen & (owner == box)]
        assert len(mine) >= 1
        x1, y1, x2, y2 = boxes[0, box]
        assert ((mine[:, 0] > x1) & (mine[:, 0] < x2)).all()
        assert ((mine[:, 1] > y1) & (mine[:, 1] < y2)).all()
    assert not (chosen & (owner == 2)).any(), "a filling row got cells"


def test_the_cell_that_fits_best_is_assigned():
    rows, boxes, kinds, real = scene([[8, 8, 40, 40]], [1])
    # Cell (3, 3) of stride 8 predicts the box exactly.
    rows[0, 3 * 8 + 3, :4] = torch.tensor([24.0, 24, 32, 32])
    chosen, _, iou, _ = assigned_to(rows, boxes, kinds, real)
    assert chosen[3 * 8 + 3]
    assert iou[3 * 8 + 3] == pytest.approx(1)


def test_pictures_without_objects_train_the_background_alone():
    rows, boxes, kinds, real = scene([[0, 0, 0, 0]], [0])
    rows.requires_grad_()
    loss = detection_loss(rows, boxes, kinds, real, (64, 64))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert (loss.box, loss.classes) == (0, 0)
    assert rows.grad[..., 4].min() > 0
    assert rows.grad[..., :4].abs().sum() == 0


def test_a_perfect_prediction_costs_less_than_any_spoiled_one():
    boxes, kinds = [[8.0, 8, 40, 40]], [2]
    rows, truth, kind, real = scene(boxes, kinds)
    best = 3 * 8 + 3
    rows[..., 4:] = -12.0
    rows[0, best, :4] = torch.tensor([24.0, 24, 32, 32])
    rows[0, best, 4], rows[0, best, 7] = 12.0, 12.0
    # Elsewhere the boxes are empty, so that one cell answers.
    others = torch.arange(rows.shape[1]) != best
    rows[0, others, 2:4] = 1e-3

    def total(changed):
        return float(detection_loss(changed, truth, kind, real, (64, 64)).total)

    perfect = total(rows)
    for column, value in ((2, 24.0), (0, 27.0), (4, -2.0), (7, -2.0), (5, 3.0)):
        spoiled = rows.clone()
        spoiled[0, best, column] = value
        assert total(spoiled) > perfect + 0.05, column
    alarm = rows.clone()
    alarm[0, 0, 4] = 3.0
    assert total(alarm) > perfect + 1, "a false alarm must cost"
