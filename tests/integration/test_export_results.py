"""Exports of networks that give masks, keypoints or maps, and checkpoints of other classes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from exporters import command  # noqa: E402 - after the skip
from exporters.certificate import certify  # noqa: E402 - after the skip
from exporters.frames import pictures  # noqa: E402 - after the skip
from exporters.outcome import MASK_IOU  # noqa: E402 - after the skip
from exporters.weights import build, one_thread, read_checkpoint  # noqa: E402 - after the skip
from exporters.zoo import ZOO, find  # noqa: E402 - after the skip
from models import torchvision_raw  # noqa: E402 - after the skip
from pipeline.errors import ModelError, ParityError  # noqa: E402 - after the skip
from pipeline.geometry import Letterbox  # noqa: E402 - after the skip
from stages.decoders.seal import SealError, seal  # noqa: E402 - after the skip
from stages.infer import InferConfig  # noqa: E402 - after the skip
from stages.model import load_model  # noqa: E402 - after the skip
from tests.helpers.exports import (  # noqa: E402 - after the skip
    TAMPERED,
    export,
    load,
    parts,
    verify,
    write,
)

pytestmark = [
    pytest.mark.needs_torch,
    # An export takes ten seconds of one core; on a busy machine several times that.
    pytest.mark.timeout(180),
    # Deprecations of torch's own making, while modules are imported in the tests' process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def small(name, size_wh):
    """Return the entry for small pictures, with which tests are quick."""
    entry = find(name)
    form = dataclasses.replace(entry.preprocessing, size_wh=size_wh)
    return dataclasses.replace(entry, preprocessing=form)


@pytest.fixture(scope="module", autouse=True)
def _small_entries():
    with pytest.MonkeyPatch.context() as patch:
        for name, size_wh in (("lraspp", (160, 96)), ("maskrcnn-mobilenet", (256, 160))):
            patch.setitem(ZOO, name, small(name, size_wh))
        yield


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, _small_entries):
    """LR-ASPP with random weights, exported, and what was said of it."""
    path = tmp_path_factory.mktemp("lraspp") / "lraspp.onnx"
    with one_thread():
        lines = export("lraspp", path)
    return path, "\n".join(lines)


THINGS = ("ball", "box")


@pytest.fixture(scope="module")
def masks(tmp_path_factory, _small_entries):
    """Mask R-CNN of two classes: a checkpoint, its exported file, and the network."""
    folder = tmp_path_factory.mktemp("masks")
    with one_thread():
        entry = dataclasses.replace(find("maskrcnn-mobilenet").named(THINGS), lively_lead=5.0)
        network, _ = build(entry, "random")
        checkpoint = {"model": network.inner.state_dict(), "class_names": list(THINGS)}
        torch.save(checkpoint, folder / "things.pth")
        export("maskrcnn-mobilenet", folder / "things.onnx", weights=str(folder / "things.pth"))
    return folder / "things.pth", folder / "things.onnx", network


def test_a_segmenter_takes_any_size_and_says_which_is_usual(segmenter, tmp_path):
    path, said = segmenter
    assert "maps with 21 classes" in said
    model = load(path)
    assert model.certified
    assert model.preprocessing.size_wh == (160, 96)
    parity = model.describe()["parity"]
    assert parity["batches"] == [1, 2, 5]
    assert parity["input_sizes_wh"] == [[160, 96], [101, 61]]
    assert parity["results"]["agreement"] > 0.999
    assert parity["results"]["classes_seen"] > 10
    assert "detections" not in parity["results"]
    assert load(path, input_size=(96, 80)).preprocessing.size_wh == (96, 80)


def test_a_segmenter_runs_with_no_other_option(segmenter, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    arguments = ["run", "synthetic:shapes?frames=2&size=320x240", "--model", str(segmenter[0])]
    code = run.main([*arguments, "-o", "o.jsonl", "-o", "o.mkv", "--report", "r.json"])
    assert code == 0, capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert all(len(frame["segmentation"]) > 3 for frame in found)
    assert json.loads((tmp_path / "r.json").read_text())["model"]["certified"] is True


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_segmenter_that_was_changed_is_refused(segmenter, tmp_path, change):
    model, card = parts(segmenter[0])
    change(model, card)
    path = write(tmp_path / "changed.onnx", model, card)
    with pytest.raises(SealError, match="not the one that was certified"):
        load(path)
    del card["digest"]
    path.write_bytes(seal(parts(path)[0].SerializeToString(), card))
    with pytest.raises(ParityError, match=r"does not answer like|is no lraspp as it is"):
        verify(path)


def test_masks_are_certified_and_cut_from_the_picture(masks):
    _, path, _ = masks
    model = load(path)
    assert model.certified
    assert model.class_names == ("__background__", *THINGS)
    results = model.describe()["parity"]["results"]
    assert results["detections"] >= results["masks"]["compared"] > 20
    assert results["masks"]["min_iou"] >= MASK_IOU
    assert parts(path)[1]["task"] == "segment"
    said = verify(path)
    assert "the weights were a file" in said


def test_masks_differ_from_thing_to_thing_and_from_frame_to_frame(masks, tmp_path):
    import run

    lines = tmp_path / "o.jsonl"
    source = "synthetic:shapes?frames=2&size=320x240"
    assert run.main(["run", source, "--model", str(masks[1]), "-o", str(lines)]) == 0
    frames = [json.loads(line)["detections"] for line in lines.read_text().splitlines()]
    assert all(len(found) > 1 for found in frames)
    counts = [thing["mask"]["counts"] for found in frames for thing in found]
    assert len(set(counts)) == len(counts)
    assert {thing["class_name"] for found in frames for thing in found} <= set(THINGS)


def test_verify_compares_a_checkpoint_s_numbers_and_class_names(masks, tmp_path):
    checkpoint, path, _ = masks
    assert "the numbers hold" in verify(path, weights=str(checkpoint))
    model, card = parts(path)
    card["class_names"] = ["__background__", *reversed(THINGS)]
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(seal(model.SerializeToString(), card))
    with pytest.raises(ParityError, match=r"class_names is .*'box', 'ball'.* expected .*'ball'"):
        verify(changed, weights=str(checkpoint))


def test_a_network_that_finds_nothing_answers_so_in_its_file(masks, tmp_path):
    """Graphs of detectors are known to fail where no box is left for their mask branch."""
    _, path, network = masks
    model, card = parts(path)
    name = "roi_heads.box_predictor.cls_score.bias"
    bias = network.inner.state_dict()[name].clone()
    (stored,) = [t for t in model.graph.initializer if t.name == f"inner.{name}"]
    nothing = bias.numpy() + np.float32([50, 0, 0])
    stored.CopyFrom(onnx.numpy_helper.from_array(nothing, stored.name))
    changed = tmp_path / "nothing.onnx"
    changed.write_bytes(seal(model.SerializeToString(), card))
    file = load_model(InferConfig(model=str(changed), device="cpu"), lambda _: None)
    try:
        network.inner.roi_heads.box_predictor.cls_score.bias.copy_(torch.from_numpy(nothing))
        run = command.torch_run(network, find("maskrcnn-mobilenet").outputs)
        outcome = certify(run, file, pictures(None)[:2], dynamic_batch=False)
    finally:
        network.inner.roi_heads.box_predictor.cls_score.bias.copy_(bias)
        file.close()
    assert outcome.holds
    assert (outcome.frames, outcome.frames_without_detections) == (2, 2)


@pytest.mark.parametrize("name", ["maskrcnn-mobilenet", "keypointrcnn"])
def test_masks_and_keypoints_are_those_that_torchvision_gives(name, masks):
    """Our preprocessing, decoding and pasting beside torchvision's own, in pixels of a picture."""
    from stages.decoders.decoder import GraphInfo, TensorInfo
    from stages.decoders.rcnn import RcnnDecoder

    size_wh = (256, 160)
    entry = small(name, size_wh)
    torch.manual_seed(0)
    network = masks[2] if name == "maskrcnn-mobilenet" else torchvision_raw.keypointrcnn(size_wh)
    inner, image = network.inner, np.ascontiguousarray(pictures(None)[0].image[:160, :256])
    inner.transform.min_size, inner.transform.max_size = (160,), 256
    inner.roi_heads.detections_per_img = 8
    rgb = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()).float() / 255
    with torch.no_grad():
        (theirs,) = inner([rgb])
    assert len(theirs["boxes"]) == 8
    from stages.fitting import Fitter

    tensor, letterbox = Fitter(entry.preprocessing).fit(image)
    assert letterbox == Letterbox((1.0, 1.0), (0.0, 0.0), size_wh, size_wh)
    outputs = command.torch_run(network, entry.outputs)(tensor[None])
    info = [TensorInfo(key, value.shape, value.dtype.name) for key, value in outputs.items()]
    decoder = RcnnDecoder.fit(GraphInfo((), tuple(info)), size_wh, len(entry.class_names), {})
    inner.roi_heads.detections_per_img = 100
    ours = decoder.decode(outputs, 0)
    assert len(ours.score) == len(theirs["boxes"])
    np.testing.assert_allclose(ours.xyxy, theirs["boxes"].numpy(), atol=1e-3)
    np.testing.assert_allclose(ours.score, theirs["scores"].numpy(), atol=1e-5)
    if ours.keypoints is not None:
        np.testing.assert_allclose(ours.keypoints[..., :2], theirs["keypoints"][..., :2], atol=0.01)
        assert ours.keypoints.shape[1:] == (17, 3)
        return
    for mask, plane in zip(ours.masks.cut(letterbox, ours.xyxy), theirs["masks"], strict=True):
        painted = np.zeros((160, 256), np.bool_)
        height, width = mask.bits.shape
        painted[mask.y : mask.y + height, mask.x : mask.x + width] = mask.bits
        expected = plane[0].numpy() > 0.5
        assert (painted & expected).sum() >= MASK_IOU * (painted | expected).sum()


@pytest.mark.parametrize(
    ("name", "given", "known", "scored"),
    [
        ("yolox-nano", ("cat", "dog"), ("cat", "dog"), 2),
        ("ssdlite320", ("cat", "dog"), ("cat", "dog"), 3),
        ("retinanet", ("cat",), ("__background__", "cat"), 2),
        ("maskrcnn", ("background", "cat"), ("__background__", "cat"), 2),
        ("lraspp", ("road", "sky"), ("road", "sky"), 2),
    ],
)
def test_class_names_of_a_checkpoint_are_those_of_the_network(name, given, known, scored):
    entry = find(name).named(given)
    assert (entry.class_names, entry.network_classes) == (known, scored)
    assert entry.named(entry.class_names) == entry


def test_a_checkpoint_for_other_classes_says_what_it_lacks(masks, tmp_path):
    entry = find("maskrcnn-mobilenet")
    state = read_checkpoint(masks[0]).state
    path = tmp_path / "w.pth"
    torch.save(dict(state), path)
    with pytest.raises(ModelError) as caught:
        build(entry, str(path))
    for said in (
        "is (3, 1024), expected (91, 1024)",
        "91 classes",
        "'class_names': ['cat', 'dog']",
    ):
        assert said in str(caught.value)
    torch.save({"model": dict(state), "class_names": ["a", "b", "c"]}, path)
    with pytest.raises(ModelError, match="the 4 classes that its class_names say"):
        build(entry, str(path))
    for wrong in ("cat", [1, 2], []):
        torch.save({"model": dict(state), "class_names": wrong}, path)
        with pytest.raises(ModelError, match="class_names must be a list of names"):
            read_checkpoint(path)


def test_official_weights_that_nobody_published_say_so():
    with pytest.raises(ModelError, match=r"nobody has published .*maskrcnn-mobilenet.*FILE"):
        build(find("maskrcnn-mobilenet"), "official")


def test_the_auxiliary_classifier_of_a_published_checkpoint_is_left_out(tmp_path):
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(1)
    theirs = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    ).eval()
    names = ["sky", "road", "car"]
    torch.save({"model": theirs.state_dict(), "class_names": names}, tmp_path / "w.pth")
    network, source = build(small("deeplabv3-mobilenet", (64, 64)), str(tmp_path / "w.pth"))
    assert source.class_names == tuple(names)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images)["out"])
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("aux")}
    torch.save({"model": {**state, "head.x": torch.zeros(1)}, "class_names": names}, tmp_path / "x")
    with pytest.raises(ModelError, match=r"1 are unknown, such as head\.x"):
        build(small("deeplabv3-mobilenet", (64, 64)), str(tmp_path / "x"))
