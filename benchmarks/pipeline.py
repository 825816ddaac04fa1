"""How much of the machine does the pipeline use, and how do the usual ways of writing it compare?

    python -m benchmarks.pipeline [--clip FILE] [--model NAME|FILE.onnx] [--frames 900] [--rounds 3]

All contestants read the same clip, run the same model with the same preprocessing, NMS and drawing
code, and write H.264 with the same encoder settings through the same writer; they differ in who
does what when, and in the runtime's settings:

    rackfocus         this project's pipeline with its defaults
    rackfocus-single  the same stages in one thread
    loop              cv2.VideoCapture, one thread, ONNX Runtime as it comes (all cores, spinning)
    loop-nospin       the same without spinning
    process_video     supervision's three threads, callback and all; ONNX Runtime as it comes
    process_video-nospin

Each run is a process of its own; the rounds go through all contestants in turn, so that a machine
that gets slower does so for all. The bound is the smaller of what the slowest stage allows when it
has the machine to itself, and cores divided by the CPU seconds that the stages need for one frame.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stages.backends.backend import Array, Backend

Picture = NDArray[np.uint8]
R = TypeVar("R")

ROOT = Path(__file__).parents[1]
CONTESTANTS = (
    "rackfocus",
    "rackfocus-single",
    "loop",
    "loop-nospin",
    "process_video",
    "process_video-nospin",
)
STAGES = ("read", "preprocess", "infer", "nms", "overlay", "write")
CLIP_HZ = 30


def make_clip(path: Path, frames: int) -> None:
    """Write the default clip: 720p of the synthetic scene, noisy as a camera's picture is."""
    import cv2

    from pipeline.frame import Frame
    from pipeline.stage import RunContext
    from stages.sources.synthetic import SyntheticSource, parse_uri

    source = SyntheticSource(parse_uri(f"synthetic:shapes?size=1280x720&frames={frames}"), "clip")
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 6, (8, 720, 1280, 3)).astype(np.int16)
    context = RunContext()
    context.streams["clip"] = source.open(context)
    write, finish = _writer(path)
    index = 0
    while isinstance(frame := source.read(1), Frame):
        noisy = cv2.add(frame.image.astype(np.int16), noise[index % 8])
        write(np.clip(noisy, 0, 255).astype(np.uint8), index)
        index += 1
    finish()
    source.close()


def _writer(path: Path) -> tuple[Callable[[Picture, int], None], Callable[[], None]]:
    """Return (write a picture, finish) of the project's video sink."""
    from pipeline.frame import Frame, FrameId, FrameTime
    from pipeline.stage import RunContext, StreamInfo
    from pipeline.url import Url
    from stages.sinks.video import VideoSink, VideoSinkConfig

    context = RunContext()
    base = Fraction(1, CLIP_HZ)
    context.streams["clip"] = StreamInfo(
        "clip", Url("clip"), live=False, size_wh=(1280, 720), time_base=base, rate_hz=1 / base
    )
    sink = VideoSink(VideoSinkConfig(path=str(path), overwrite=True), "video")
    sink.open(context)

    def write(image: Picture, index: int) -> None:
        time_ = FrameTime(0, index, base, 1)
        sink.process([Frame(FrameId("clip", 0, index), time_, np.ascontiguousarray(image))])

    def finish() -> None:
        sink.flush()
        sink.close()

    return write, finish


class _AsItComes:
    """ONNX Runtime as its documentation shows it, or with spinning off: for the other
    contestants."""

    def __init__(self, backend: Backend, path: str, *, spin: bool) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name
        self.inputs, self.outputs, self.metadata = backend.inputs, backend.outputs, backend.metadata
        self.describe = backend.describe

    def open(self) -> None:
        """Nothing to do: the session is there."""

    def close(self) -> None:
        """Nothing to do: the process ends."""

    def run(self, tensor: Array) -> dict[str, Array]:
        """Run the graph."""
        values = self._session.run(self._names, {self._input: tensor})
        return dict(zip(self._names, values, strict=True))


def chain(model: str, *, spin: bool | None, threads: int | None = None) -> list[Any]:
    """Return preprocess, infer, nms and overlay, opened; spin None keeps the project's runtime."""
    from pipeline.stage import RunContext
    from stages.infer import InferConfig, InferStage
    from stages.model import load_model
    from stages.nms import NmsConfig, NmsStage
    from stages.overlay import OverlayConfig, OverlayStage
    from stages.preprocess import PreprocessConfig, PreprocessStage

    config = InferConfig(model=model, device="cpu", threads=threads)
    loaded: Any = load_model(config, lambda note: None)  # noqa: ARG005 - notes are not wanted here
    if spin is not None:
        loaded.backend = _AsItComes(loaded.backend, str(loaded.path), spin=spin)
    stages: list[Any] = [
        PreprocessStage(PreprocessConfig(), "preprocess", loaded),
        InferStage(config, "infer", loaded),
        NmsStage(NmsConfig(), "nms", loaded),
        OverlayStage(OverlayConfig(), "overlay"),
    ]
    for stage in stages:
        stage.open(RunContext())
    return stages


def callback(stages: list[Any]) -> Callable[[Picture, int], Picture]:
    """Return a function that sends one picture through `stages` and gives it back, drawn on."""
    from pipeline.frame import Frame, FrameId, FrameTime

    def annotate(image: Picture, index: int) -> Picture:
        items: Any = [Frame(FrameId("clip", 0, index), FrameTime(0, index, Fraction(1, 30)), image)]
        for stage in stages:
            items = stage.process(items)
        return items[0].image

    return annotate


def run_loop(clip: Path, model: str, out: Path, *, spin: bool) -> tuple[int, float, float]:
    """Read, annotate, write, one after another."""
    import cv2

    annotate = callback(chain(model, spin=spin))
    wall, cpu = time.perf_counter(), time.process_time()
    capture = cv2.VideoCapture(str(clip))
    write, finish = _writer(out)
    count = 0
    while True:
        good, image = capture.read()
        if not good:
            break
        write(annotate(image, count), count)
        count += 1
    finish()
    return count, time.perf_counter() - wall, time.process_time() - cpu


def run_supervision(clip: Path, model: str, out: Path, *, spin: bool) -> tuple[int, float, float]:
    """Run supervision's `process_video`, its file writer replaced by the one all others use."""
    import supervision as sv
    from supervision.utils import video

    annotate = callback(chain(model, spin=spin))
    counted = [0]

    class Writer:
        def __init__(self, target_path: str, **_: object) -> None:
            self._write, self._finish = _writer(Path(target_path))

        def __enter__(self) -> Writer:
            return self

        def write_frame(self, frame: Picture) -> None:
            self._write(frame, counted[0])
            counted[0] += 1

        def __exit__(self, *_: object) -> None:
            self._finish()

    video.VideoSink = Writer
    wall, cpu = time.perf_counter(), time.process_time()
    sv.process_video(str(clip), str(out), annotate)
    return counted[0], time.perf_counter() - wall, time.process_time() - cpu


def run_pipeline(clip: Path, model: str, out: Path, *, threads: str) -> tuple[int, float, float]:
    """Run the project's own pipeline; timed, like the others, from opening the clip on."""
    from pipeline.runner import Pipeline
    from pipeline.stage import RunContext, StreamInfo
    from pipeline.wiring import QueueOptions
    from stages.sinks.video import VideoSink, VideoSinkConfig
    from stages.sources.file import FileConfig, FileSource

    started = [0.0, 0.0]

    class Timed(FileSource):
        def open(self, context: RunContext) -> StreamInfo:
            started[:] = time.perf_counter(), time.process_time()
            return super().open(context)

    pipeline = Pipeline(
        [Timed(FileConfig(path=str(clip)), "clip")],
        chain(model, spin=None),
        [VideoSink(VideoSinkConfig(path=str(out), overwrite=True), "video")],
        live=False,
        queues=QueueOptions(threads="single" if threads == "single" else "per_stage"),
    )
    result = pipeline.run()
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    if result.exit_code:
        raise SystemExit(result.reason)
    return result.streams["clip"].frames_out, wall, cpu


def measure_stages(clip: Path, model: str, out: Path, threads: int | None) -> dict[str, Any]:
    """Run the stages in turn, each with the machine to itself: ms of wall and CPU time a frame."""
    from pipeline.frame import Frame
    from pipeline.stage import RunContext
    from stages.sources.file import FileConfig, FileSource

    source = FileSource(FileConfig(path=str(clip)), "clip")
    stages = chain(model, spin=None, threads=threads)
    write, finish = _writer(out)
    wall = dict.fromkeys(STAGES, 0.0)
    cpu = dict.fromkeys(STAGES, 0.0)

    def timed(name: str, action: Callable[[], R]) -> R:
        w, c = time.perf_counter(), time.process_time()
        result = action()
        wall[name] += time.perf_counter() - w
        cpu[name] += time.process_time() - c
        return result

    total = 0
    timed("read", lambda: source.open(RunContext()))
    # Frame by frame: with many frames in a row a stage would have the caches to itself, which it
    # has in no program that does all of them.
    while isinstance(frame := timed("read", lambda: source.read(1)), Frame):
        items: Any = [frame]
        for stage in stages:
            items = timed(stage.name, lambda s=stage, i=items: s.process(i))
        timed("write", lambda f=items[0], n=total: write(f.image, n))
        total += 1
    timed("write", finish)
    source.close()
    return {
        "wall_ms": {name: wall[name] / total * 1e3 for name in STAGES},
        "cpu_ms": {name: cpu[name] / total * 1e3 for name in STAGES},
    }


def _child(name: str, clip: Path, model: str, out: Path) -> dict[str, Any]:
    if name in ("limits", "limits-1"):
        return measure_stages(clip, model, out, 1 if name == "limits-1" else None)
    kind, _, option = name.partition("-")
    if kind == "rackfocus":
        frames, wall, cpu = run_pipeline(clip, model, out, threads=option or "per_stage")
    elif kind == "loop":
        frames, wall, cpu = run_loop(clip, model, out, spin=option != "nospin")
    else:
        frames, wall, cpu = run_supervision(clip, model, out, spin=option != "nospin")
    return {"frames": frames, "fps": frames / wall, "cpu_ms": cpu / frames * 1e3}


def _in_process(name: str, args: argparse.Namespace, clip: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--child", name]
    command += ["--clip", str(clip), "--model", args.model, "--out", str(folder / f"{name}.mp4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure and print; exit 1 when the pipeline is not ahead of every other contestant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, help="default: a 720p clip of the synthetic scene")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--frames", type=int, default=900, help="length of the default clip")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_child(args.child, args.clip, args.model, args.out)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = args.clip
        if clip is None:
            clip = folder / "clip.mp4"
            make_clip(clip, args.frames)
        rounds: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("limits", "limits-1", *CONTESTANTS)
        }
        for number in range(args.rounds):
            for contestant in rounds:
                rounds[contestant].append(_in_process(contestant, args, clip, folder))
            print(f"round {number + 1} of {args.rounds} done", file=sys.stderr)
    return report(args, clip, rounds)


def report(args: argparse.Namespace, clip: Path, rounds: dict[str, list[dict[str, Any]]]) -> int:
    """Print limits, bound and contestants."""
    from pipeline.metrics import available_cores

    cores = available_cores()

    def median(name: str, key: str, stage: str) -> float:
        return statistics.median(run[key][stage] for run in rounds[name])

    print(f"clip {clip.name}, model {args.model}, {cores} cores, medians of {args.rounds} rounds\n")
    print(f"{'stage, alone':<14}{'wall ms':>9}{'CPU ms':>9}{'CPU ms, 1 thread':>18}")
    for stage in STAGES:
        print(
            f"{stage:<14}{median('limits', 'wall_ms', stage):>9.2f}"
            f"{median('limits', 'cpu_ms', stage):>9.2f}{median('limits-1', 'cpu_ms', stage):>18.2f}"
        )
    slowest = max(STAGES, key=lambda s: median("limits", "wall_ms", s))
    by_stage = 1e3 / median("limits", "wall_ms", slowest)
    # The least CPU that the work needs: with one thread each, nothing is spent on sharing it out.
    cpu_ms = sum(median("limits-1", "cpu_ms", stage) for stage in STAGES)
    by_cpu = cores * 1e3 / cpu_ms
    bound = min(by_stage, by_cpu)
    print(
        f"\nslowest stage {slowest}: {by_stage:.1f} fps; {cores} cores / {cpu_ms:.1f} ms CPU a "
        f"frame: {by_cpu:.1f} fps; bound {bound:.1f} fps\n"
    )
    print(
        f"{'contestant':<24}{'fps':>8}{'of bound':>10}{'CPU ms':>9}{'rackfocus / it':>16}  (range)"
    )
    ours = [run["fps"] for run in rounds["rackfocus"]]
    ahead = True
    for name in CONTESTANTS:
        fps = [run["fps"] for run in rounds[name]]
        ratios = [a / b for a, b in zip(ours, fps, strict=True)]
        ratio = statistics.median(ratios)
        ahead &= name == "rackfocus" or ratio > 1
        print(
            f"{name:<24}{statistics.median(fps):>8.1f}{statistics.median(fps) / bound:>10.2f}"
            f"{statistics.median(run['cpu_ms'] for run in rounds[name]):>9.1f}{ratio:>16.2f}"
            f"  ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"bound_fps": bound, "rounds": rounds}, indent=1))
    return 0 if ahead else 1


if __name__ == "__main__":
    sys.exit(main())
