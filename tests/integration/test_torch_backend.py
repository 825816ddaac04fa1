"""Networks in torch: the backend's contract, devices, and the same answers as the exported file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402 - after the skip

from exporters.cards import card_of  # noqa: E402 - after the skip
from exporters.certificate import certify  # noqa: E402 - after the skip
from exporters.frames import pictures  # noqa: E402 - after the skip
from exporters.networks import ZooNetworks  # noqa: E402 - after the skip
from exporters.onnx_export import describe, to_graph  # noqa: E402 - after the skip
from exporters.weights import build, one_thread  # noqa: E402 - after the skip
from exporters.zoo import find  # noqa: E402 - after the skip
from pipeline.errors import DeviceError, ModelError  # noqa: E402 - after the skip
from stages.backends import torch as torch_backend  # noqa: E402 - after the skip
from stages.backends.network import Network  # noqa: E402 - after the skip
from stages.backends.torch import TorchBackend  # noqa: E402 - after the skip
from stages.decoders.decoder import TensorInfo  # noqa: E402 - after the skip
from stages.decoders.seal import SealError, read_card, seal  # noqa: E402 - after the skip
from stages.infer import InferConfig  # noqa: E402 - after the skip
from stages.model import load_model  # noqa: E402 - after the skip
from tests.contracts.check_backend import Subject, check_backend  # noqa: E402 - after the skip
from tests.helpers.iinfer import fill  # noqa: E402 - after the skip
from tests.helpers.onnx_models import channel_means  # noqa: E402 - after the skip

pytestmark = [
    pytest.mark.needs_torch,
    # Deprecations of torch's own making, while modules are imported in the tests' process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(
        torch_backend, "cuda_devices", lambda: (0, "the NVIDIA driver found no GPU")
    )


# ---- the backend


class Means(nn.Module):
    """Channel means through a layer that autocast rounds, and where the largest is."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1, bias=False)
        self.threads = 0
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-1, 1, 12).reshape(4, 3, 1, 1))

    def forward(self, images):
        self.threads = torch.get_num_threads()
        means = self.mix(images).mean((2, 3))
        return means, means.argmax(1), means > 0


def network(module=None, *, batch=None, outputs=("mean", "largest", "positive"), **metadata):
    info = TensorInfo("images", (batch, 3, 6, 8), "float32")
    return Network(module or Means(), info, (8, 6), outputs, {"made": "here", **metadata})


def opened(make=network, **options):
    backend = TorchBackend("means", make, **{"device": "cpu", **options})
    backend.open()
    return backend


def picture(batch=1, width=8, height=6):
    return np.random.default_rng(0).random((batch, 3, height, width), np.float32)


def expected(tensor):
    weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    return tensor.mean((2, 3)) @ weights.T


def never():
    raise AssertionError("the network was made")


def test_describes_the_network():
    backend = opened()
    assert backend.inputs == (TensorInfo("images", (None, 3, 6, 8), "float32"),)
    assert backend.outputs[0] == TensorInfo("mean", (None, 4), "float32")
    assert backend.metadata == {"made": "here"}
    about = backend.describe()
    assert (about["name"], about["requested"], about["device"]) == ("torch", "cpu", "cpu")
    assert (about["fallback"], about["precision"]) == (False, "fp32")
    assert about["provider"] == f"torch {torch.__version__} cpu"
    backend.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def test_backend_contract(device):
    def make(**options):
        return TorchBackend("means", network, **{"device": device, "threads": 2, **options})

    def answer(tensor):
        means = expected(tensor)
        return {"mean": means, "largest": means.argmax(1), "positive": means > 0}

    tensors = [picture(), picture(3) - 0.5, np.zeros((2, 3, 6, 8), np.float32)]
    check_backend(Subject(make, tensors, answer=answer, metadata={"made": "here"}))


def test_other_weights_at_a_second_opening_are_refused():
    numbers = iter("12")
    backend = opened(lambda: network(sha=next(numbers)))
    backend.close()
    with pytest.raises(ModelError, match="not those of the first opening"):
        backend.open()


def test_threads_are_set_while_it_is_open_and_put_back():
    module = Means()
    before = torch.get_num_threads()
    backend = opened(lambda: network(module), threads=3)
    assert backend.describe()["threads"] == module.threads == 3
    torch.set_num_threads(2)  # as somebody else in this thread may
    worker = threading.Thread(target=backend.run, args=(picture(),))
    worker.start()
    worker.join()
    assert module.threads == 3
    backend.run(picture())
    assert module.threads == 3
    backend.close()
    assert torch.get_num_threads() == before


def test_bfloat16_is_computed_in_and_float32_comes_out():
    tensor = picture()
    exact, rounded = (opened(precision=p).run(tensor)["mean"] for p in ("fp32", "bf16"))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02


def test_half_precision_on_the_cpu_is_an_error_before_anything_is_made(no_gpu):
    for device in ("cpu", "auto"):
        with pytest.raises(DeviceError, match=r"fp16 is for CUDA.*bf16 or fp32"):
            opened(never, precision="fp16", device=device)


def test_numbers_that_are_not_finite_are_the_decoders_business():
    tensor = picture()
    tensor[0, 0, 0, 0] = np.nan
    assert np.isnan(opened().run(tensor)["mean"]).all()


class Failing(nn.Module):
    def forward(self, images):
        if images.shape[0] > 1:
            raise RuntimeError("out of memory\nand a long story")
        return images.mean((2, 3)), images.sum(), images + 1


def test_a_failing_run_says_on_what_in_one_line():
    backend = opened(lambda: network(Failing()))
    with pytest.raises(ModelError, match=r"failed on float32 input \[2, 3, 6, 8\]") as caught:
        backend.run(picture(2))
    assert str(caught.value).endswith("out of memory")


def test_a_network_that_returns_another_number_of_tensors_is_refused():
    with pytest.raises(ModelError, match=r"returns 3 tensors, expected 1: mean"):
        opened(lambda: network(outputs=("mean",)))


def test_auto_without_a_gpu_takes_the_cpu_and_says_why(no_gpu):
    about = opened(device="auto").describe()
    assert (about["device"], about["fallback"]) == ("cpu", False)
    assert about["reason"] == "the NVIDIA driver found no GPU"


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_asked_for_and_missing_is_an_error_before_anything_is_made(no_gpu, device):
    with pytest.raises(DeviceError) as caught:
        opened(never, device=device)
    for part in (f"'{device}' was asked for", "found no GPU", "--device cpu", "allow_fallback"):
        assert part in str(caught.value)


def test_an_allowed_fallback_stands_in_the_report(no_gpu):
    about = opened(device="cuda", allow_fallback=True).describe()
    assert (about["fallback"], about["requested"], about["device"]) == (True, "cuda", "cpu")
    assert "no GPU" in about["reason"]


def test_a_torch_that_cannot_use_the_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch_backend, "cuda_devices", lambda: (1, ""))
    with pytest.raises(DeviceError, match="there are 1 GPUs, numbered from 0"):
        opened(never, device="cuda:1")

    def fail(*_, **__):
        raise RuntimeError("the driver is too old")

    with monkeypatch.context() as patched:
        patched.setattr(torch.version, "cuda", "13.0")
        patched.setattr(torch, "zeros", fail)
        with pytest.raises(DeviceError, match="failed on it: the driver is too old"):
            opened(never, device="cuda")
        assert opened(device="auto").describe()["device"] == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match=r"built for the CPU only \(pip install"):
        opened(never, device="cuda")


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DeviceError, match=r'not installed: pip install -e "\.\[torch\]"'):
        opened(never)


# ---- networks of the zoo, and files exported from them


def exported(name, path, **source):
    """Write what `export` writes, but for the certificate, of random weights."""
    entry = find(name)
    with one_thread():
        module, where_from = build(entry, "random")
    example = np.zeros((1, 3, *entry.preprocessing.size_wh[::-1]), np.float32)
    # The older exporter takes a fifth of the time.
    graph = to_graph(module, example, entry.outputs, legacy=True, dynamic_batch=False)
    card = describe(card_of(entry, where_from.licence), module, None)
    path.write_bytes(seal(graph, {**card, "source": {**where_from.facts(), **source}}))
    return path


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return exported("yolox-nano", tmp_path_factory.mktemp("nano") / "nano.onnx")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The random weights of YOLOX-nano, as a file."""
    path = tmp_path_factory.mktemp("state") / "nano.pth"
    with one_thread():
        module, _ = build(find("yolox-nano"), "random")
    torch.save(module.inner.state_dict(), path)
    return path


def load(model, notes=None, **config):
    given = {"device": "cpu", "backend": "torch", **config}
    note = (notes if notes is not None else []).append
    return load_model(InferConfig(model=str(model), **given), note, ZooNetworks)


@pytest.mark.parametrize("name", ["yolox-nano", "ssdlite320"])
def test_one_decoder_over_two_backends_finds_the_same(name, nano, tmp_path):
    path = nano if name == "yolox-nano" else exported(name, tmp_path / f"{name}.onnx")
    in_torch, in_onnx = load(name, weights="random"), load(path, backend="onnx")
    try:
        assert in_torch.preprocessing == in_onnx.preprocessing
        assert in_torch.class_names == in_onnx.class_names
        assert in_torch.decoder.kind == in_onnx.decoder.kind
        # Boxes of the same class by IoU 0.99 and scores by 1e-3, through the same decoder and NMS.
        outcome = certify(in_torch.backend.run, in_onnx, pictures(None)[:3], dynamic_batch=False)
    finally:
        in_torch.close()
        in_onnx.close()
    assert outcome.problems == []
    assert outcome.detections > 100


def test_the_report_speaks_of_weights_and_of_no_certificate(nano):
    notes = []
    by_name = load("yolox-nano", notes, weights="random")
    by_name.close()
    about = by_name.describe()
    assert about["name"] == "yolox-nano"
    assert about["sha256"] == read_card(nano)["source_sha256"]
    assert (about["certified"], about["parity"]) == (False, None)
    assert about["source"] == {"weights": "random", "seed": 0}
    assert "backend torch on cpu: asked for cpu" in notes
    by_file = load(nano)
    by_file.close()
    assert {**by_file.describe(), "reason": ""} == {**about, "reason": ""}


@pytest.mark.assets
def test_published_weights_find_on_real_frames_what_the_published_file_finds(assets, tmp_path):
    path = assets / "models" / "yolox_nano_iinfer.onnx"
    with one_thread():
        module, _ = build(find("yolox-nano"), "random")
    fill(module.inner, onnx.load(str(path)))
    torch.save(module.inner.state_dict(), tmp_path / "nano.pth")
    in_torch = load("yolox-nano", weights=str(tmp_path / "nano.pth"))
    in_onnx = load(path, backend="onnx")
    frames = pictures(str(assets / "video" / "vtest_gk.mp4"))
    try:
        outcome = certify(in_torch.backend.run, in_onnx, frames, dynamic_batch=False)
    finally:
        in_torch.close()
        in_onnx.close()
    assert (outcome.problems, outcome.flipped) == ([], [])
    assert outcome.detections > 10


def test_batches_give_each_picture_what_it_gets_alone(nano):
    model = load(nano, batch=3)
    tensors = [np.full((3, 416, 416), level, np.float32) for level in (0, 100, 200)]
    for tensor, answer in zip(tensors, model.run(tensors), strict=True):
        alone = model.backend.run(tensor[None])["output"]
        np.testing.assert_allclose(answer["output"], alone, atol=1e-4)
    model.close()


def test_a_network_of_open_size_takes_the_size_asked_for(monkeypatch):
    monkeypatch.setattr("exporters.weights.enliven", lambda *_: None)  # 4 s for nothing here
    model = load("lraspp", weights="random", input_size=(96, 64))
    assert model.preprocessing.size_wh == (96, 64)
    assert model.run([model.blank()])[0]["out"].shape[2:] == (64, 96)
    assert model.backend.outputs[0].shape == (None, 21, None, None)
    model.close()


def test_a_file_of_the_right_weights_is_taken(nano, state):
    load(nano, weights=str(state)).close()


def test_other_weights_than_the_files_are_refused(nano, state, tmp_path):
    values = torch.load(state, weights_only=True)
    values["head.obj_preds.0.bias"] += 1e-6
    torch.save(values, tmp_path / "other.pth")
    with pytest.raises(ModelError) as caught:
        load(nano, weights=str(tmp_path / "other.pth"))
    text = str(caught.value)
    assert text.startswith(f"{nano}: the weights ({tmp_path / 'other.pth'}) are not those")
    assert read_card(nano)["source_sha256"] in text
    assert "infer.weights=FILE" in text


def test_weights_that_nobody_can_guess_are_asked_for(tmp_path, nano):
    graph, card, own = onnx.load(str(nano)), read_card(nano), tmp_path / "own.onnx"
    del graph.metadata_props[:]
    own.write_bytes(seal(graph.SerializeToString(), {**card, "source": {"weights": "file"}}))
    with pytest.raises(ModelError, match=r"weights that are not published; .*infer.weights=FILE"):
        load(own)


def test_a_file_that_was_changed_is_refused(nano, tmp_path):
    changed = tmp_path / "changed.onnx"
    data = bytearray(nano.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    with pytest.raises(SealError, match=r"changed.onnx: the file is not the one"):
        load(changed)


def test_files_of_other_networks_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"shapes.onnx: .* the file names 'shapes'.*backend onnx"):
        load(ROOT / "models" / "weights" / "shapes.onnx")
    other = channel_means(tmp_path / "means.onnx")
    with pytest.raises(ModelError, match=r"means.onnx: .* the file names none"):
        load(other)
    half = tmp_path / "half.onnx"
    half.write_bytes(other.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"half.onnx: the file is (damaged|cut off)"):
        load(half)


def test_a_card_that_says_other_things_than_the_table_is_refused(monkeypatch, nano):
    entry = find("yolox-nano")
    other = dataclasses.replace(
        entry, preprocessing=dataclasses.replace(entry.preprocessing, pixel_order="rgb")
    )
    monkeypatch.setattr("exporters.networks.ZOO", {"yolox-nano": other})
    with pytest.raises(ModelError, match=r"is no yolox-nano as it is exported here") as caught:
        load(nano)
    assert "export it again, or use --backend onnx" in str(caught.value)


# ---- the command line


@pytest.fixture
def inside(tmp_path, monkeypatch, capfd):
    import run

    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        code = run.main([str(argument) for argument in arguments])
        return code, capfd.readouterr()

    return command


SCENE = "synthetic:shapes?size=160x120&frames=3"


def test_a_network_runs_from_one_command(inside, tmp_path):
    code, said = inside(
        *("run", SCENE, "-o", "o.jsonl", "--model", "yolox-nano", "--backend", "torch"),
        *("--set", "infer.weights=random", "--device", "cpu", "--report", "r.json"),
    )
    assert code == 0, said.err
    assert "yolox-nano (yolox) on cpu (torch" in said.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["backend"]["name"] == "torch"
    assert report["backend"]["precision"] == "fp32"
    assert report["model"]["source"]["weights"] == "random"
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["detections"] for line in lines)


CHECKED = """\
source: "synthetic:shapes"
model: {model}
backend: {backend}
stages: [preprocess, infer{infer}, nms, overlay]
sinks: ["null"]
"""


@pytest.mark.parametrize(
    ("model", "backend", "infer", "message"),
    [
        ("yolox-nano", "torch", "", None),
        ("yolox-nano", "torch", ": {weights: random, precision: bf16}", None),
        ("yolox-nanno", "torch", "", "c.yaml:2: the backend torch has no network 'yolox-nanno'; d"),
        ("weights.pth", "torch", "", "--model NAME --set infer.weights=weights.pth"),
        ("yolox-nano", "torch", ": {weights: randm}", "c.yaml:4: there is no file randm; did you"),
        ("yolox-nano", "onnx", "", "add --backend torch"),
        ("yolox-nano", "auto", "", "add --backend torch"),
        (
            "shapes",
            "onnx",
            ": {weights: random}",
            "c.yaml:4: 'weights' of stage 'infer' is 'random'",
        ),
        (
            "lraspp",
            "torch",
            ": {provider: cuda}",
            "c.yaml:4: 'provider' of stage 'infer' is 'cuda'",
        ),
    ],
)
def test_check_knows_networks(inside, tmp_path, model, backend, infer, message):
    stage = f" {{infer{infer}}}" if infer else " infer"
    text = CHECKED.format(model=model, backend=backend, infer="@").replace(" infer@", stage)
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    code, said = inside("check", "c.yaml")
    if message is None:
        assert (code, said.err) == (0, "")
    else:
        assert code == 2
        assert message in said.err


def test_check_loads_no_torch(tmp_path):
    (tmp_path / "c.yaml").write_text(CHECKED.format(model="yolox-nano", backend="torch", infer=""))
    code = (
        "import sys, run\n"
        "assert run.main(['check', 'c.yaml']) == 0\n"
        "sys.exit({'torch', 'onnxruntime', 'cv2', 'onnx'} & set(sys.modules) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- on a GPU


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_really_runs_there(precision):
    backend = opened(device="cuda:0", precision=precision)
    about = backend.describe()
    assert (about["device"], about["provider"]) == ("cuda:0", f"torch {torch.__version__} cuda")
    assert next(backend._module.parameters()).is_cuda
    tensor = picture(2)
    first = backend.run(tensor)
    tolerance = 1e-5 if precision == "fp32" else 0.02
    np.testing.assert_allclose(first["mean"], expected(tensor), atol=tolerance)
    assert first["mean"].dtype == np.float32
    kept = first["mean"].copy()
    backend.run(picture(3) + 1)
    assert np.array_equal(first["mean"], kept), "outputs belong to the caller"
    backend.close()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", ["yolox-nano", "ssdlite320", "fasterrcnn-mobilenet"])
def test_a_network_on_cuda_answers_as_on_the_cpu_and_every_time_the_same(name):
    on_cpu, on_gpu = (load(name, weights="random", device=d) for d in ("cpu", "cuda"))
    try:
        outcome = certify(on_cpu.backend.run, on_gpu, pictures(None), dynamic_batch=False)
        assert outcome.problems == []
        assert outcome.detections > 100
        tensor = np.random.default_rng(1).normal(size=on_gpu.blank().shape).astype(np.float32)
        once, again = (on_gpu.run([tensor])[0] for _ in range(2))
        assert all(np.array_equal(once[key], again[key]) for key in once)
    finally:
        on_cpu.close()
        on_gpu.close()


@pytest.mark.needs_cuda
def test_closing_gives_the_gpus_memory_back():
    def large():
        module = Means()
        module.register_buffer("ballast", torch.zeros(64 << 20, dtype=torch.uint8))
        return network(module)

    before = torch.cuda.memory_allocated()
    backend = opened(large, device="cuda")
    assert torch.cuda.memory_allocated() - before >= 64 << 20
    backend.close()
    # What cuBLAS keeps for the process may stay.
    assert torch.cuda.memory_allocated() - before < 64 << 20


@pytest.mark.needs_cuda
def test_the_processs_settings_of_cudnn_are_left_alone():
    flags = torch.backends.cudnn
    before = (flags.benchmark, flags.deterministic, flags.allow_tf32)
    backend = opened(device="cuda")
    backend.run(picture())
    assert (flags.benchmark, flags.deterministic, flags.allow_tf32) == before
    backend.close()
