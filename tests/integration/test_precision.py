"""Files in float16 and 8 bits: what stays float32, what is stated, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after the skip

from exporters.cards import card_of  # noqa: E402 - after the skip
from exporters.command import example, export_model  # noqa: E402 - after the skip
from exporters.networks import ZooNetworks  # noqa: E402 - after the skip
from exporters.precision import reduce  # noqa: E402 - after the skip
from exporters.verify import verify_file  # noqa: E402 - after the skip
from pipeline.errors import ModelError, ParityError, UsageError  # noqa: E402 - after the skip
from stages.decoders.metadata import KEY  # noqa: E402 - after the skip
from stages.decoders.seal import SealError, seal  # noqa: E402 - after the skip
from stages.infer import InferConfig  # noqa: E402 - after the skip
from stages.model import load_model  # noqa: E402 - after the skip
from stages.model_files import WEIGHTS  # noqa: E402 - after the skip
from tests.helpers.onnx_models import save  # noqa: E402 - after the skip

SHAPES = WEIGHTS / "shapes.onnx"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Six small drawn pictures with labels in YOLO's layout."""
    import cv2

    from stages.sources.scenes import CLASS_NAMES, ShapesScene

    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES))
    for k in range(6):
        image, truth = ShapesScene(920_000 + k, (512, 288), 8).draw(k, 5.0 * k)
        cv2.imwrite(str(folder / "images" / f"{k}.png"), image)
        rows = []
        boxes = truth.detections.xyxy.clip(0, (512, 288, 512, 288)) / (512, 288, 512, 288)
        for (x1, y1, x2, y2), kind in zip(boxes, truth.detections.class_id, strict=True):
            rows.append(f"{kind} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}")
        (folder / "labels" / f"{k}.txt").write_text("\n".join(rows))
    return folder


def make(path, precision, folder, **given):
    lines = []
    export_model(
        str(given.pop("source", SHAPES)),
        str(path),
        weights=None,
        frames=str(folder / "images"),
        overwrite=False,
        say=lines.append,
        precision=precision,
        **given,
    )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory, labelled):
    """The built-in model in both precisions, and what was said."""
    folder = tmp_path_factory.mktemp("reduced")
    return {
        precision: (
            folder / f"{precision}.onnx",
            make(folder / f"{precision}.onnx", precision, labelled, data=labelled),
        )
        for precision in ("fp16", "int8")
    }


def load(path, **options):
    model = load_model(InferConfig(model=str(path), device="cpu", **options), lambda _: None)
    model.close()
    return model


def verify(path, folder, **given):
    lines = []
    frames = str(folder / "images")
    verify_file(str(path), **{"weights": None, "frames": frames, "say": lines.append, **given})
    return "\n".join(lines)


def parts(path):
    """Return the graph without our metadata, and the metadata."""
    model = onnx.load(str(path))
    (entry,) = [e for e in model.metadata_props if e.key == KEY]
    model.metadata_props.remove(entry)
    return model, json.loads(entry.value)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_file_is_smaller_and_states_what_was_lost(reduced, precision):
    path, said = reduced[precision]
    model = load(path, batch=3)  # the batch is still open
    assert model.certified
    assert model.name != model.describe()["name"] == f"shapes-{precision}"
    whole = load(SHAPES)
    assert (model.preprocessing, model.class_names) == (whole.preprocessing, whole.class_names)
    parity = model.describe()["parity"]
    assert parity["precision"] == precision
    assert parity["fp32"]["sha256"] == whole.sha256
    assert 0 <= parity["loss"] < 0.1
    assert parity["results"]["detections_fp32"] > 15
    assert parity["limit"]["of"] == "drop of mAP50-95"
    assert parity["accuracy"]["map50"]["fp32"] > 0.9
    assert parity["layers_in_float32"] < parity["layers"] / 2
    # Weights in float32 take four bytes each, in 8 bits one, and scales beside them.
    share = path.stat().st_size / SHAPES.stat().st_size
    assert share < {"fp16": 0.6, "int8": 0.5}[precision]
    assert "mAP50-95" in said
    assert list(path.parent.glob("*.part")) == []


def test_int8_differs_more_than_fp16(reduced):
    worst = {
        precision: load(path).metadata["parity"]["tensors"]["mean_abs_diff"]
        for precision, (path, _) in reduced.items()
    }
    assert 0 < worst["fp16"] < worst["int8"]


def test_the_accuracy_is_that_of_the_benchmark(reduced, labelled):
    from benchmarks.accuracy import evaluate

    path, _ = reduced["int8"]
    stated = load(path).metadata["parity"]["accuracy"]
    measured = evaluate(str(path), labelled)["accuracy"]
    assert stated["map50_95"]["this"] == pytest.approx(measured["map50_95"], abs=1e-6)
    assert stated["objects"] == measured["objects"]


def test_it_runs_with_no_other_option(reduced, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    arguments = ["run", "synthetic:shapes?frames=2&size=320x240", "--model"]
    code = run.main([*arguments, str(reduced["int8"][0]), "-o", "o.jsonl", "--report", "r.json"])
    assert code == 0, capsys.readouterr().err
    found = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert all(frame["detections"] for frame in found)
    model = json.loads(Path("r.json").read_text())["model"]
    assert model["certified"] is True
    assert model["parity"]["loss"] < 0.1


def test_over_the_limit_nothing_is_left(labelled, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.setattr("exporters.precision.to_int8", _coarse)
    monkeypatch.chdir(tmp_path)
    frames = ["--frames", str(labelled / "images")]
    assert run.main(["export", str(SHAPES), "--precision", "int8", *frames]) == 1
    said = capsys.readouterr().err
    assert "int8 loses" in said
    assert "0.1 is allowed (--max-loss); nothing was written" in said
    assert "1.png: " in said  # on which picture
    assert "is not found" in said
    assert list(tmp_path.iterdir()) == []


def _coarse(model, feeds):
    """Round weights so that nothing is left of most."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor)
            step = np.abs(values).max() / 2
            rounded = (np.round(values / step) * step).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return model, ()


def test_the_limit_is_the_user_s(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.precision.to_int8", _coarse)
    said = make(tmp_path / "x.onnx", "int8", labelled, max_loss=1.0)
    assert "limit     1 loss" in said
    assert load(tmp_path / "x.onnx").metadata["parity"]["loss"] > 0.1


# Changes to the graph or to what is stated


def _nudge(model, _):
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values // 2, weight.name))


def _better(_, stated):
    stated["parity"]["results"]["mean_score_diff"] = -1.0


def _shift(_, stated):
    stated["class_names"] = [*stated["class_names"][1:], stated["class_names"][0]]


def _stretch(_, stated):
    stated["preprocessing"]["fit"] = "stretch"


CHANGES = {"weights": _nudge, "loss": _better, "classes": _shift, "fit": _stretch}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_file_is_refused(reduced, labelled, tmp_path, change):
    model, stated = parts(reduced["int8"][0])
    change(model, stated)
    path = tmp_path / "changed.onnx"
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(stated)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SealError, match="not the one that was certified"):
        load(path)
    # With a digest that fits, the comparison with float32 is left.
    model.metadata_props.remove(entry)
    path.write_bytes(seal(model.SerializeToString(), stated))
    assert load(path).certified
    with pytest.raises(ParityError, match=r"the certificate says|otherwise than in"):
        verify(path, labelled, fp32=str(SHAPES))


def test_the_loss_is_measured_again(reduced, labelled, tmp_path):
    for path, _ in reduced.values():
        said = verify(path, labelled, fp32=str(SHAPES))
        assert "the digest holds" in said
        assert "the loss is not larger than stated" in said
    assert "--fp32 FILE.onnx gives the file" in verify(path, labelled)
    with pytest.raises(ParityError, match="is not the float32 file that"):
        verify(path, labelled, fp32=str(path))
    other = tmp_path / "images"
    other.mkdir()
    (other / "0.png").write_bytes((labelled / "images" / "0.png").read_bytes())
    assert "so not judged" in verify(path, labelled, fp32=str(SHAPES), frames=str(other))


def test_a_float32_file_for_a_float32_file_is_an_error(reduced, labelled, tmp_path):
    whole = tmp_path / "whole.onnx"
    model, stated = parts(SHAPES)
    whole.write_bytes(seal(model.SerializeToString(), {**stated, "parity": {"schema": 1}}))
    with pytest.raises(UsageError, match="--fp32 has no effect"):
        verify(whole, labelled, fp32=str(SHAPES))


def test_a_file_of_others_is_not_taken_for_the_model_whose_name_it_has(labelled, tmp_path):
    source = tmp_path / "ssd300.onnx"
    model, stated = parts(SHAPES)
    entry = model.metadata_props.add()
    stated = {k: v for k, v in stated.items() if k not in ("source_sha256", "parity")}
    entry.key, entry.value = KEY, json.dumps({**stated, "name": "ssd300"})
    source.write_bytes(model.SerializeToString())
    path = tmp_path / "x.onnx"
    make(path, "fp16", labelled, source=source)
    assert "'ssd300' is not from a model of `list models`" in verify(path, labelled)
    assert "the loss is not larger" in verify(path, labelled, fp32=str(source))


def test_torch_does_not_run_it_as_if_it_were_float32(reduced):
    with pytest.raises(ModelError, match=r"the file is int8.* use --backend onnx"):
        ZooNetworks().maker(str(reduced["int8"][0]), None)()


def test_what_is_reduced_already_is_not_reduced_again(reduced, labelled, tmp_path):
    with pytest.raises(ModelError, match="is int8 already; give the float32 file"):
        make(tmp_path / "x.onnx", "fp16", labelled, source=reduced["int8"][0])
    assert list(tmp_path.iterdir()) == []


# What stays float32


def _conv(name, source, target, **attributes):
    return helper.make_node("Conv", [source, f"{name}.w"], [target], name=name, **attributes)


def _image(name="images", channels=3, side=8):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", channels, side, side])


def _run(graph, feed):
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": feed})


def test_coordinates_after_the_last_layer_stay_float32(tmp_path):
    """As in an SSD: anchors of some hundred pixels are added to small steps out of a layer."""
    anchors = np.linspace(500, 900, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    path = save(
        tmp_path / "x.onnx",
        [
            _conv("first", "images", "a"),
            helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
            _conv("last", "b", "c", strides=[2, 2]),
            helper.make_node("Mul", ["c", "tenth"], ["d"]),
            # Both read the one float16 tensor; the next reads what no layer has touched.
            helper.make_node("Add", ["d", "anchors"], ["low"]),
            helper.make_node("Sub", ["low", "c"], ["high"]),
        ],
        [_image()],
        [_image("low", 1), _image("high", 1)],
        {
            "first.w": np.full((3, 3, 1, 1), 0.25, np.float32),
            "last.w": np.full((1, 3, 1, 1), 0.25, np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "tenth": np.float32(0.1),
            "anchors": anchors,
        },
    )
    made = reduce(path.read_bytes(), "fp16", ())
    assert (made.layers, made.kept) == (2, ())
    model = onnx.load_model_from_string(made.graph)
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types == {
        "first.w:half": TensorProto.FLOAT16,
        "last.w:half": TensorProto.FLOAT16,
        "scales": TensorProto.FLOAT,
        "tenth": TensorProto.FLOAT,
        "anchors": TensorProto.FLOAT,
    }
    feed = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    for have, want in zip(_run(made.graph, feed), _run(path.read_bytes(), feed), strict=True):
        assert have.dtype == np.float32
        np.testing.assert_allclose(have, want, atol=2e-3)  # in float16 steps of 0.5


def test_branches_of_an_if_read_what_they_did(tmp_path):
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ["features", "half"], [f"{name}.out"])],
            name,
            [],
            [_image(f"{name}.out")],
        )
        for name, kind in (("then_branch", "Add"), ("else_branch", "Sub"))
    }
    path = save(
        tmp_path / "x.onnx",
        [
            _conv("first", "images", "features"),
            _conv("second", "features", "score"),
            helper.make_node("ReduceMax", ["score"], ["top"], keepdims=0),
            helper.make_node("Greater", ["top", "half"], ["any"]),
            helper.make_node("If", ["any"], ["chosen"], **branches),
        ],
        [_image()],
        [_image("chosen")],
        {
            "first.w": np.full((3, 3, 1, 1), 0.5, np.float32),
            "second.w": np.full((1, 3, 1, 1), 0.5, np.float32),
            "half": np.float32(0.5),
        },
    )
    made = reduce(path.read_bytes(), "fp16", ())
    for value in (0.1, 0.9):
        feed = np.full((1, 3, 8, 8), value, np.float32)
        (have,), (want,) = _run(made.graph, feed), _run(path.read_bytes(), feed)
        np.testing.assert_allclose(have, want, atol=1e-3)


def test_layers_that_256_steps_do_not_resolve_stay_float32(tmp_path):
    """One bright spot in one channel makes the steps so large that they swallow the others."""
    wild = np.full((4, 3, 1, 1), 0.01, np.float32)
    wild[0, :, 0, 0] = (100, -100, 0.01)
    path = save(
        tmp_path / "x.onnx",
        [
            _conv("wild", "images", "a"),
            # The others alone go on: what they hold is what the next layer needs.
            helper.make_node("Slice", ["a", "from", "to", "axis"], ["b"]),
            _conv("calm", "b", "c"),
            _conv("calm again", "c", "d"),
        ],
        [_image(side=16)],
        [_image("d", 3, side=16)],
        {
            "wild.w": wild,
            "calm.w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
            "calm again.w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) * 2,
            "from": np.array([1]),
            "to": np.array([4]),
            "axis": np.array([1]),
        },
    )
    rng = np.random.default_rng(0)
    # Where colours are alike, the first channel is zero.
    feeds = [np.repeat(rng.uniform(0.4, 0.6, (1, 1, 16, 16)), 3, axis=1).astype(np.float32)]
    feeds[0][0, 0, 0, 0] = 3
    made = reduce(path.read_bytes(), "int8", feeds)
    assert made.kept == ("wild",)
    model = onnx.load_model_from_string(made.graph)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 2
    (have,), (want,) = _run(made.graph, feeds[0]), _run(path.read_bytes(), feeds[0])
    np.testing.assert_allclose(have, want, rtol=0.02)


def test_a_graph_without_float32_layers_is_refused(tmp_path):
    path = save(
        tmp_path / "x.onnx",
        [helper.make_node("Relu", ["images"], ["out"])],
        [_image()],
        [_image("out")],
    )
    with pytest.raises(ModelError, match="no float32 convolutions"):
        reduce(path.read_bytes(), "int8", ())


# With torch, and with a file of others


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_network_serves_as_float32(labelled, tmp_path):
    from exporters import onnx_export
    from exporters.weights import build, one_thread
    from exporters.zoo import find

    entry = find("yolox-nano")
    with one_thread():
        network, source = build(entry, "random")
        picture = np.zeros((4, 4, 3), np.uint8)
        graph = onnx_export.to_graph(
            network, example(entry, picture)[:1], entry.outputs, legacy=True, dynamic_batch=False
        )
    stated = onnx_export.describe(card_of(entry, source.licence), network, None)
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(seal(graph, {**stated, "source": dict(source.facts())}))
    path = tmp_path / "half.onnx"
    make(path, "fp16", labelled, source=whole, max_loss=1.0)
    assert load(path).metadata["source_sha256"] == stated["source_sha256"]
    assert "the loss is not larger than stated" in verify(path, labelled)
    model, changed = parts(path)
    changed["preprocessing"]["pixel_order"] = "rgb"
    path.write_bytes(seal(model.SerializeToString(), changed))
    with pytest.raises(ParityError, match="is no yolox-nano as it is exported here"):
        verify(path, labelled)


@pytest.mark.assets
def test_a_file_of_others_keeps_what_was_recognised(assets, labelled, tmp_path):
    source = assets / "models" / "yolox_nano_iinfer.onnx"
    frames = tmp_path / "frames" / "images"
    frames.mkdir(parents=True)
    for path in sorted((assets / "datasets" / "coco128_train" / "images").iterdir())[:4]:
        (frames / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "x.onnx"
    make(path, "fp16", frames.parent, source=source)
    model, before = load(path), load(source)
    assert model.certified
    assert model.decoder.kind == before.decoder.kind == "yolox"
    assert (model.preprocessing, model.class_names) == (before.preprocessing, before.class_names)
    assert model.metadata["licence"] == "unknown"
    assert model.metadata["parity"]["results"]["detections_fp32"] > 4
