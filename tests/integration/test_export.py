"""From a network to a certified file, and what happens to a file that is no longer the one."""

from __future__ import annotations

import importlib
import json
import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from exporters import command, onnx_export  # noqa: E402 - after the skip
from exporters.cards import card_of  # noqa: E402 - after the skip
from exporters.certificate import certify  # noqa: E402 - after the skip
from exporters.frames import pictures  # noqa: E402 - after the skip
from exporters.outcome import MATCH_IOU  # noqa: E402 - after the skip
from exporters.weights import build, one_thread, read_checkpoint  # noqa: E402 - after the skip
from exporters.zoo import ZOO, find  # noqa: E402 - after the skip
from models import torchvision_raw  # noqa: E402 - after the skip
from models.yolo import published  # noqa: E402 - after the skip
from pipeline.errors import ModelError, ParityError, UsageError  # noqa: E402 - after the skip
from stages.decoders.seal import SealError, digest, seal  # noqa: E402 - after the skip
from stages.infer import InferConfig  # noqa: E402 - after the skip
from stages.model import load_model  # noqa: E402 - after the skip
from tests.helpers.exports import (  # noqa: E402 - after the skip
    TAMPERED,
    export,
    load,
    parts,
    sigmoid_again,
    verify,
    write,
)
from tests.helpers.iinfer import fill  # noqa: E402 - after the skip
from tests.helpers.media import make_video  # noqa: E402 - after the skip

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


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """YOLOX-nano with random weights, exported, and what was said of it."""
    path = tmp_path_factory.mktemp("nano") / "nano.onnx"
    with one_thread():
        lines = export("yolox-nano", path)
    return path, "\n".join(lines)


def test_an_exported_file_states_all_that_a_run_needs(nano):
    path, said = nano
    entry = find("yolox-nano")
    model = load(path)
    assert model.certified
    assert model.preprocessing == entry.preprocessing
    assert model.class_names == entry.class_names
    about = model.describe()
    assert about["name"] == "yolox-nano"
    assert about["certified"] is True
    parity = about["parity"]
    assert parity["batches"] == [1, 2, 5]
    assert len(parity["frame_sizes_wh"]) >= 2
    assert parity["results"]["detections"] > 100
    assert parity["results"]["frames_without_detections"] >= 1
    assert parity["results"]["min_iou"] >= MATCH_IOU
    assert 0 < parity["tensors"]["max_scaled_diff"] < 1e-4
    graph, card = parts(path)
    assert graph.opset_import[0].version == card["export"]["opset"]
    assert card["source"] == {"weights": "random", "seed": 0}
    assert set(card["export"]["versions"]) >= {"torch", "onnx", "onnxruntime"}
    assert "certificate" in said
    assert list(path.parent.iterdir()) == [path]


def test_the_file_holds_when_it_is_verified(nano):
    said = verify(nano[0])
    assert "the digest holds" in said
    assert "the numbers hold" in said


def test_options_that_the_certificate_does_not_cover_are_told(nano):
    assert load(nano[0], batch=4).certified
    model = load(nano[0], pixel_order="rgb")
    assert not model.certified
    assert model.describe()["certified"] is False


def test_it_runs_with_no_other_option(nano, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    arguments = ["run", "synthetic:shapes?frames=2&size=320x240", "--model", str(nano[0])]
    code = run.main([*arguments, "-o", "o.jsonl", "-o", "o.mkv", "--report", "r.json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [len(frame["detections"]) > 0 for frame in found] == [True, True]
    model = json.loads((tmp_path / "r.json").read_text())["model"]
    assert model["certified"] is True
    assert model["parity"]["results"]["detections"] > 0


CHANGES = {**TAMPERED, "sigmoid applied twice": lambda model, card: sigmoid_again(model)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_that_was_changed_is_refused_by_run_and_verify(nano, tmp_path, change):
    model, card = parts(nano[0])
    change(model, card)
    path = write(tmp_path / "changed.onnx", model, card)
    with pytest.raises(SealError, match="not the one that was certified"):
        load(path)
    with pytest.raises(ParityError, match="not the one that was certified"):
        verify(path)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_file_with_a_new_digest_is_refused_by_verify(nano, tmp_path, change):
    model, card = parts(nano[0])
    change(model, card)
    path = tmp_path / "changed.onnx"
    path.write_bytes(seal(model.SerializeToString(), card))
    assert load(path).certified  # the digest is no signature
    with pytest.raises(ParityError, match=r"does not answer like|is no yolox-nano as it is"):
        verify(path)


def test_a_flipped_byte_is_refused(nano, tmp_path):
    data = bytearray(nano[0].read_bytes())
    data[len(data) // 2] ^= 0x10  # somewhere in the weights
    path = tmp_path / "flipped.onnx"
    path.write_bytes(data)
    with pytest.raises(SealError):
        load(path)


def test_an_export_that_fails_its_certificate_leaves_no_file(nano, tmp_path, monkeypatch, capsys):
    import run

    real = command.torch_run
    graph = parts(nano[0])[0].SerializeToString()
    monkeypatch.setattr(onnx_export, "to_graph", lambda *_, **__: graph)  # tracing takes longest

    def off(network, names):
        inside = real(network, names)
        return lambda batch: {k: v * np.float32(1.01) for k, v in inside(batch).items()}

    monkeypatch.setattr(command, "torch_run", off)
    monkeypatch.chdir(tmp_path)
    assert run.main(["export", "yolox-nano", "--weights", "random"]) == 1
    said = capsys.readouterr().err
    assert "nothing was written" in said
    assert "scene 910000" in said
    assert "gray" in said or "more" in said
    assert list(tmp_path.iterdir()) == []


def test_results_are_compared_beyond_tensors(nano):
    """Boxes that are lost, moved or renamed are told with their picture."""
    with one_thread():
        network, _ = build(find("yolox-nano"), "random")
    honest = command.torch_run(network, ("output",))
    model = load_model(InferConfig(model=str(nano[0]), device="cpu"), lambda _: None)

    def without_best(batch):
        outputs = honest(batch)
        rows = outputs["output"].copy()
        rows[:, (rows[..., 4] * rows[..., 5:].max(-1)).argmax(-1), 4] -= 4e-4 * 1.5
        return {"output": rows}

    try:
        outcome = certify(without_best, model, pictures(None)[:1], dynamic_batch=False)
    finally:
        model.close()
    assert not outcome.holds
    assert outcome.problems[0].startswith("scene 910000: 'output' differs by")


def test_frames_of_a_clip_and_of_a_folder_are_used(tmp_path):
    import cv2

    make_video(tmp_path / "clip.mp4", frames=20, size=(160, 120), audio=False)
    names = [picture.name for picture in pictures(str(tmp_path / "clip.mp4"))]
    assert names[:2] == ["clip.mp4 frame 0", "clip.mp4 frame 15"]
    assert names[-2:] == ["gray", "black"]
    (tmp_path / "shots").mkdir()
    cv2.imwrite(str(tmp_path / "shots" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    seen = pictures(str(tmp_path / "shots"))
    assert [picture.image.shape for picture in seen[:3]] == [(40, 60, 3), (40, 30, 3), (20, 60, 3)]
    with pytest.raises(UsageError, match="there is no"):
        pictures(str(tmp_path / "none"))


@pytest.mark.assets
def test_published_weights_have_the_names_of_our_yolox(assets):
    """The published file's tensors, put into our network, give the published file's answers."""
    import onnxruntime

    path = assets / "models" / "yolox_nano_iinfer.onnx"
    network, _ = build(find("yolox-nano"), "random")
    fill(network.inner, onnx.load(str(path)))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for seed in range(2):
        picture = np.random.default_rng(seed).uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)
        (expected,) = session.run(None, {session.get_inputs()[0].name: picture})
        with torch.no_grad():
            got = network(torch.from_numpy(picture)).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("builder", ["ssdlite320", "fcos", "retinanet"])
def test_raw_detectors_decode_as_torchvision_does(builder):
    """torchvision's own postprocessing, given the same head outputs, has the same boxes."""
    torch.manual_seed(0)
    width, height = (320, 320) if builder == "ssdlite320" else (160, 128)
    raw = getattr(torchvision_raw, builder)((width, height))
    images = torch.rand(1, 3, height, width)
    with torch.no_grad():
        boxes, scores = raw(images)
        inner, maps = raw.inner, raw._features(images)
        found = inner.head(maps)
        codes = found["bbox_regression"][0]
        decode = inner.box_coder.decode if builder == "fcos" else inner.box_coder.decode_single
        expected = decode(codes, raw.anchors)
    expected[:, 0::2] = expected[:, 0::2].clamp(0, width)
    expected[:, 1::2] = expected[:, 1::2].clamp(0, height)
    torch.testing.assert_close(boxes[0], expected, atol=1e-3, rtol=0)
    assert scores.shape == (1, len(expected), 91)
    assert 0 <= scores.min() <= scores.max() <= 1
    if builder == "ssdlite320":
        torch.testing.assert_close(scores.sum(-1), torch.ones(1, len(expected)))


def test_our_preprocessing_and_nms_find_what_torchvision_finds(tmp_path):
    """SSDLite through the zoo's preprocessing, decoder and NMS, beside torchvision's own model."""
    import torchvision

    entry = find("ssdlite320")
    network, _ = build(entry, "random")
    # Of the input's own size, so that both sides see the same pixels.
    image = np.ascontiguousarray(pictures(None)[0].image[200:520, 400:720])
    rgb = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()).float() / 255
    inner = network.inner
    inner.score_thresh, inner.nms_thresh = 0.3, 0.45
    with torch.no_grad():
        (theirs,) = inner([rgb])
    graph = onnx_export.to_graph(
        network, command._example(entry, image)[:1], entry.outputs, legacy=True, dynamic_batch=False
    )
    path = tmp_path / "x.onnx"
    card = card_of(entry, "Apache-2.0")
    path.write_bytes(seal(graph, onnx_export.describe(card, network, None)))
    model = load_model(InferConfig(model=str(path), device="cpu"), lambda _: None)
    try:
        ours = _detect(model, image)
    finally:
        model.close()
    assert len(ours) > 10
    names = [torchvision_names()[label] for label in theirs["labels"].tolist()]
    for row in range(len(ours)):
        box = torch.from_numpy(ours.xyxy[row : row + 1])
        iou = torchvision.ops.box_iou(box, theirs["boxes"])[0]
        near = [
            k
            for k in torch.nonzero(iou > 0.99).flatten().tolist()
            if abs(float(theirs["scores"][k]) - ours.score[row]) < 1e-3
            and names[k] == ours.name_of(row)
        ]
        assert near, (ours.name_of(row), ours.score[row])


def torchvision_names():
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights as Weights

    names = Weights.COCO_V1.meta["categories"]
    ours = find("ssdlite320").class_names
    # Their unused classes are "N/A".
    return [ours[k - 1] if name == "N/A" else name for k, name in enumerate(names)]


def _detect(model, image):
    from fractions import Fraction

    from pipeline.frame import Frame, FrameId, FrameTime, Inferred
    from pipeline.stage import RunContext
    from stages.fitting import Fitter
    from stages.nms import NmsConfig, NmsStage

    tensor, letterbox = Fitter(model.preprocessing).fit(image)
    nms = NmsStage(NmsConfig(), "nms", model)
    nms.open(RunContext())
    frame = Frame(FrameId("s", 0, 0), FrameTime(0, None, Fraction(1)), image)
    (out,) = nms.process([Inferred(frame, model.run([tensor])[0], letterbox)])
    return out.detections


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_the_table_s_sizes_are_true(entry):
    if entry.official is None or entry.decoder in ("yolox", "segmentation"):
        module, _, function = entry.builder.partition(":")
        build_network = getattr(importlib.import_module(module), function)
        with torch.device("meta"):
            network = build_network(
                entry.preprocessing.size_wh, classes=entry.network_classes, **entry.arguments
            )
        assert sum(p.numel() for p in network.parameters()) == entry.parameters
    if entry.official is None or entry.decoder == "yolox":
        return
    from torchvision.models import get_model_weights, list_models

    published_as = entry.official.url
    found = [w for name in list_models() for w in get_model_weights(name) if w.url == published_as]
    if entry.task != "semantic":  # of these the auxiliary classifier is counted too
        assert found[0].meta["num_params"] == entry.parameters
    names = found[0].meta["categories"]
    assert len(names) == len(entry.class_names) + (entry.options.get("background") is True)
    assert entry.class_names[-1] == names[-1]
    if entry.task == "semantic":
        assert list(entry.class_names) == names


def test_sizes_of_no_whole_cells_are_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        published((400, 416), depth=0.33, width=0.25)


def test_a_checkpoint_is_loaded_from_a_file(tmp_path):
    entry = find("yolox-nano")
    first, _ = build(entry, "random")
    changed = {k: v.clone() for k, v in first.inner.state_dict().items()}
    changed["head.obj_preds.0.bias"] += 1
    torch.save({"model": changed, "start_epoch": 300}, tmp_path / "w.pth")
    network, source = build(entry, str(tmp_path / "w.pth"))
    assert source.kind == "file"
    assert source.licence.startswith("unknown")
    assert len(source.file_sha256) == 64
    for name, value in network.inner.state_dict().items():
        torch.testing.assert_close(value, changed[name])


class _Runs:
    def __reduce__(self):
        return (subprocess.call, (["touch", "/nowhere/ran"],))


def test_checkpoints_that_cannot_be_used_say_why(tmp_path):
    entry = find("yolox-nano")
    network, _ = build(entry, "random")
    state = network.inner.state_dict()
    path = tmp_path / "w.pth"
    with pytest.raises(ModelError, match="there is no file"):
        build(entry, str(path))
    torch.save({"x": _Runs()}, path)
    with pytest.raises(ModelError, match="run code when loaded"):
        read_checkpoint(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match=r"no checkpoint|cannot be read"):
        read_checkpoint(path)
    torch.save({k: v for k, v in state.items() if not k.startswith("head.stems.0")}, path)
    with pytest.raises(ModelError, match=r"does not fit yolox-nano: \d+ tensors are missing"):
        build(entry, str(path))
    torch.save({**state, "head.obj_preds.0.bias": torch.zeros(7)}, path)
    with pytest.raises(ModelError, match=r"is \(7,\), expected \(1,\)"):
        build(entry, str(path))
    torch.save({**state, "head.obj_preds.0.bias": torch.full((1,), torch.nan)}, path)
    with pytest.raises(ModelError, match="not finite, first in"):
        build(entry, str(path))


def test_official_weights_without_network_are_asked_for_by_name(tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        "exporters.download.urlopen",
        lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network here")),
    )
    assert run.main(["export", "yolox-nano"]) == 2
    said = capsys.readouterr().err
    entry = find("yolox-nano").official
    for part in (entry.url, entry.sha256, str(tmp_path / "home" / "weights" / "yolox_nano.pth")):
        assert part in said
    assert not (tmp_path / "yolox-nano.onnx").exists()


def test_digests_do_not_depend_on_the_order_of_metadata(nano):
    _, card = parts(nano[0])
    data = nano[0].read_bytes()
    assert digest(data, dict(reversed(card.items()))) == card["digest"]


def test_a_graph_of_others_has_no_certificate(tmp_path):
    from tests.helpers.onnx_models import detector, rackfocus_metadata

    path = detector(
        tmp_path / "t.onnx", [[8, 8, 4, 4, 0.9, 1.0]], metadata=rackfocus_metadata(["a"])
    )
    assert not load(path).certified
    with pytest.raises(ModelError, match="carries no certificate"):
        verify(path)
