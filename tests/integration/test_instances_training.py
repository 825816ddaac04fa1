"""A short real training of Mask R-CNN: it finds and outlines what was drawn, and can go on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exporters.onnx_export import to_graph  # noqa: E402 - after the skip
from exporters.weights import build as build_for_export  # noqa: E402 - after the skip
from exporters.zoo import find  # noqa: E402 - after the skip
from models.train.instances import (  # noqa: E402 - after the skip
    MODEL,
    PREPROCESSING,
    Recipe,
    half_a_pixel_on,
    losses,
    train,
)
from models.train.instances_data import InstancesData, find_pairs  # noqa: E402 - after the skip
from models.train.instances_result import evaluate, recalibrate, write  # noqa: E402 - after the skip
from pipeline.errors import UsageError  # noqa: E402 - after the skip

# Ten seconds of one core; on a machine that others use that was 48.
pytestmark = [pytest.mark.needs_torch, pytest.mark.slow, pytest.mark.timeout(180)]

# The recipe's network on an input a fifteenth as large.
SMALL = dataclasses.replace(PREPROCESSING, size_wh=(128, 96))
RECIPE = Recipe(
    steps=40, batch_size=2, warmup_steps=5, boxes=8, flips=False, threads=1, learning_rate=1e-3
)


def quiet(line):
    pass


@pytest.fixture(scope="module", autouse=True)
def _torch_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures: an ellipse; an ellipse and a triangle, on noise."""
    import cv2

    folder = tmp_path_factory.mktemp("drawn")
    random = np.random.default_rng(4)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for name, with_triangle in (("a", False), ("b", True)):
        picture = random.integers(60, 120, (96, 128, 3), np.uint8)
        mask = np.zeros((96, 128), np.uint8)
        cv2.ellipse(mask, (34, 48) if with_triangle else (80, 44), (18, 36), 20, 0, 360, 1, -1)
        if with_triangle:
            corners = np.array([[70, 80], [120, 84], [98, 16]])
            cv2.fillPoly(mask, [corners], 2)
        picture[mask == 1] = (40, 200, 230)
        picture[mask == 2] = (220, 90, 30)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), picture)
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)
    return InstancesData(find_pairs(folder), SMALL)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(RECIPE, data, folder, say=quiet), folder


def test_drawn_things_are_found_with_their_outlines(trained, data):
    network, folder = trained
    found = evaluate(network, data)
    assert found.objects == 3
    # Four seeds found all three, masks 0.80 to 0.84, 0 to 2 too many; another processor's rounding
    # leads elsewhere.
    assert found.found >= 2, found
    assert found.mask_iou > 0.55, found
    assert found.surplus < 5, found
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    assert rows[0][:2] == ["step", "loss"]
    assert float(rows[-1][1]) < 0.3 * float(rows[1][1])


def test_export_builds_the_network_that_was_trained(trained, data, tmp_path):
    network, _ = trained
    path = tmp_path / "weights.pt"
    write(network, path, "thing")
    rebuilt, source = build_for_export(find(MODEL), str(path))
    assert source.class_names == ("__background__", "thing")
    ours, theirs = network.inner.state_dict(), rebuilt.inner.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    picture = torch.from_numpy(data[1].tensor[None])
    # The graph is for one size; the parts are not.
    with torch.no_grad():
        one, other = (n.inner.backbone(picture)["0"] for n in (network, rebuilt))
    torch.testing.assert_close(one, other)


def test_the_exported_graph_sees_what_the_network_sees_and_bears_a_blank_picture(trained, data):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, _ = trained
    names = find(MODEL).outputs
    pictures = [data[1].tensor[None], np.zeros((1, 3, 96, 128), np.float32)]
    graph = to_graph(network, pictures[0], names, legacy=True, dynamic_batch=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    counts = []
    for picture in pictures:
        got = session.run(list(names), {"images": picture})
        with torch.no_grad():
            expected = network(torch.from_numpy(picture))
        counts.append(len(got[0]))
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)
    assert counts[0] >= 2, counts
    # Nothing is even proposed: the case in which torchvision's own decoding fails in a graph.
    assert counts[1] == 0, counts


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data, tmp_path):
    whole = dataclasses.replace(RECIPE, steps=4)
    unbroken = train(whole, data, tmp_path / "one", say=quiet)

    class StoppedError(Exception):
        pass

    class Stopping(InstancesData):
        reads = 0

        def __getitem__(self, index):
            Stopping.reads += 1
            if Stopping.reads > 2 * 2:
                raise StoppedError
            return super().__getitem__(index)

    import models.train.instances as recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_SAVE_EVERY", 2)
        with pytest.raises(StoppedError):
            train(whole, Stopping(data.pairs, SMALL), tmp_path / "two", say=quiet)
    told = []
    resumed = train(whole, data, tmp_path / "two", say=told.append)
    assert told[0].startswith("continuing at step 2 ")
    for (name, one), other in zip(
        unbroken.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name

    with pytest.raises(UsageError, match=r"of another run: its recipe was .*'seed': 0.*now"):
        train(dataclasses.replace(whole, seed=1), data, tmp_path / "two", say=quiet)
    with pytest.raises(UsageError, match="of another run: its pictures was"):
        train(whole, InstancesData(data.pairs[:1], SMALL), tmp_path / "two", say=quiet)
    (tmp_path / "two" / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"checkpoint\.pt is no checkpoint of this recipe"):
        train(whole, data, tmp_path / "two", say=quiet)


def test_pictures_without_objects_can_be_trained_on(trained, data, tmp_path):
    network, _ = trained
    sample = data[0]
    empty = dataclasses.replace(sample, xyxy=sample.xyxy[:0], masks=sample.masks[:0])
    network.train()
    try:
        values = losses(network, [empty, sample])
        torch.stack(list(values.values())).sum().backward()
    finally:
        network.zero_grad(set_to_none=True)
        recalibrate(network, data, 2)
    assert all(torch.isfinite(value) for value in values.values())


def test_what_a_mask_shall_be_lies_where_the_object_lies():
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    mask = torch.zeros(1, 40, 40)
    mask[0, 8:20, 10:25] = 1
    # A box of as many pixels as the mask has cells.
    box, row = torch.tensor([[0.0, 0, 28, 28]]), torch.tensor([0])
    target = project_masks_on_boxes(half_a_pixel_on(mask), box, row, 28)[0]
    assert torch.equal(target > 0.5, mask[0, :28, :28] > 0)
    # As much on one side of the object as on the other.
    assert target[14, :10].sum() == target[14, 25:].sum() > 0
