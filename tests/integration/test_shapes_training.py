"""A short real training: it learns, can be continued, and its export answers like torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from exporters.onnx_export import KEY, Card, export, weights_sha256  # noqa: E402 - after the skip
from models.train.shapes import Recipe, build, train  # noqa: E402 - after the skip
from models.train.shapes_data import (  # noqa: E402 - after the skip
    MODEL_WH,
    PREPROCESSING,
    batch,
    draw_training_set,
    letterbox,
)
from models.train.shapes_export import export_shapes  # noqa: E402 - after the skip
from models.yolo import Scored, YoloConfig  # noqa: E402 - after the skip
from pipeline.errors import ModelError  # noqa: E402 - after the skip
from stages.decoders.decoder import Preprocessing  # noqa: E402 - after the skip
from stages.fitting import Fitter  # noqa: E402 - after the skip
from stages.sources.scenes import CLASS_NAMES, ShapesScene  # noqa: E402 - after the skip

pytestmark = [pytest.mark.needs_torch]

# The shipped network's form, small enough to learn something within seconds.
TINY = YoloConfig(len(CLASS_NAMES), (8, 8, 16, 16, 16), (1, 1, 1, 1), 1, 8)
RECIPE = Recipe(
    steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5, threads=1
)


@pytest.fixture(scope="module", autouse=True)
def _torch_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    return draw_training_set(12, seed=3)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    network = train(RECIPE, folder, config=TINY, data=data, say=lambda line: None)
    return network, folder


def losses(network, data):
    from models.train.losses import detection_loss

    images, boxes, kinds, real = batch(data, np.arange(8), np.random.default_rng(0))
    with torch.no_grad():
        rows = network(torch.from_numpy(images))
    hw = (MODEL_WH[1], MODEL_WH[0])
    return float(
        detection_loss(rows, *(torch.from_numpy(a) for a in (boxes, kinds, real)), hw).total
    )


def test_training_lowers_the_loss(trained, data):
    # In training mode, so that the untrained network's normalisation is no handicap.
    before = losses(build(0, TINY).train(), data)
    after = losses(copy.deepcopy(trained[0]).train(), data)
    assert after < 0.8 * before, (before, after)


def test_a_run_leaves_a_log_and_a_checkpoint_that_completes_at_once(trained, data):
    network, folder = trained
    assert (folder / "log.csv").read_text().splitlines()[1].startswith("1,")
    again = train(RECIPE, folder, config=TINY, data=data, say=lambda line: None)
    assert weights_sha256(again) == weights_sha256(network)


def test_boxes_follow_the_picture_through_fitting_and_flips(data):
    images, boxes, _, real = batch(data, np.arange(12), np.random.default_rng(1))
    assert images.shape == (12, 3, MODEL_WH[1], MODEL_WH[0])
    assert real.sum() == data.counts.sum()
    inside = boxes[real]
    assert inside.min() >= 0
    assert inside[:, [0, 2]].max() <= MODEL_WH[0]
    assert (inside[:, 2:] > inside[:, :2]).all()
    # What a box encloses has an edge that its surroundings lack: contrast is higher on the rim.
    gray = images.mean(axis=1)
    inner, outer = [], []
    for picture, box in ((p, b) for p in range(12) for b in boxes[p][real[p]]):
        x1, y1, x2, y2 = box.round().astype(int)
        if x2 - x1 < 12 or y2 - y1 < 12 or y1 < 4 or y2 > MODEL_WH[1] - 4:
            continue
        rows = np.abs(np.diff(gray[picture][:, x1:x2], axis=0)).max(axis=1)
        inner.append(rows[y1 - 1 : y1 + 2].max())
        outer.append(rows[max(0, y1 - 4) : y1 - 2].max())
    assert len(inner) > 10
    assert np.mean(inner) > 1.3 * np.mean(outer)


def test_training_pictures_are_fitted_as_the_program_fits_them():
    for size in ((1280, 720), (640, 480)):
        image, _ = ShapesScene(2, size, 6).draw(0, 0)
        picture, fit = letterbox(image)
        tensor, expected = Fitter(PREPROCESSING).fit(image)
        assert fit == expected
        np.testing.assert_allclose(picture.transpose(2, 0, 1) / 255, tensor, atol=1e-6)


def test_the_export_answers_like_torch_and_describes_itself(trained, tmp_path):
    network, _ = trained
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        # torch.export and onnxscript warn of their own future.
        warnings.simplefilter("ignore")
        parity = export_shapes(network, path)
    assert not list(tmp_path.glob("*.part"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    pictures = np.stack(
        [Fitter(PREPROCESSING).fit(ShapesScene(s, (640, 360), 9).draw(0, s)[0])[0] for s in (1, 2)]
    )
    for tensor in (pictures, pictures[:1]):
        got = session.run(None, {"images": tensor})[0]
        with torch.no_grad():
            expected = Scored(network)(torch.from_numpy(tensor)).numpy()
        np.testing.assert_allclose(got[..., 4:], expected[..., 4:], atol=1e-4)
        # Pixels: float32 at some hundred resolves 3e-5.
        np.testing.assert_allclose(got[..., :4], expected[..., :4], atol=1e-3)
    told = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert told["schema"] == 1
    assert (told["task"], told["decoder"], told["name"]) == ("detect", "yolov5", "shapes")
    assert told["class_names"] == list(CLASS_NAMES)
    assert told["licence"] == "Apache-2.0"
    assert told["source_sha256"] == weights_sha256(Scored(network))
    assert told["parity"] == dataclasses.asdict(parity)
    assert 0 < parity.max_scaled_diff < 1e-4
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in told["preprocessing"].items()
    }
    assert Preprocessing(**fields) == PREPROCESSING


def test_an_export_that_differs_is_not_written(tmp_path):
    class Wavering(torch.nn.Module):
        """Answers otherwise when traced than when run."""

        def forward(self, x):
            return x if torch.compiler.is_exporting() else x + 0.5

    path = tmp_path / "model.onnx"
    card = Card("x", "detect", "yolov5", Preprocessing((8, 8)), ("a",), "Apache-2.0")
    with pytest.raises(ModelError, match=r"differs from the network by 0\.5"):
        export(Wavering(), path, card, np.zeros((1, 3, 8, 8), np.float32))
    assert list(tmp_path.iterdir()) == []
