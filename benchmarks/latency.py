"""How old is a picture when all is done with it, and how many are there, on a too fast stream?

    python -m benchmarks.latency [--model NAME|FILE.onnx] [--seconds 60] [--threads N]

A real RTSP server (GStreamer, `clock_server.py`) sends 720p at 30 frames a second with a clock
burnt into the picture. Each contestant finds, suppresses and draws with the same code, then reads
the clock back; its age is the time from drawing the clock to the end of all work on it, with
encoding, network and decoding in it.

    rackfocus  this project's pipeline with its defaults, live
    loop       cv2.VideoCapture, one frame after another

The detector's own rate is measured under the same load: the pipeline reads a recording of the same
stream, offline, while another process watches the server. Choose a detector that is slower than the
stream, or there is nothing to see.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pipeline import Picture, callback, chain
from pipeline.frame import Frame
from pipeline.stage import OutputInfo, RunContext, Sink

ROOT = Path(__file__).parents[1]
SYSTEM_PYTHON = "/usr/bin/python3"
PORT = 8654
URL = f"rtsp://127.0.0.1:{PORT}/live"
BITS = 32
SETTLE_S = 3.0
"""Left out of the figures: connecting, and the first frames of the model."""


def read_clock(image: Picture) -> int | None:
    """Return the milliseconds in a picture of `clock_server.py`; None where they cannot be read."""
    height, width = image.shape[:2]
    cell = width // BITS
    rows = []
    for top in (height - 2 * cell, height - cell):
        inner = image[top + cell // 4 : top + 3 * cell // 4, : cell * BITS].mean(axis=(0, 2))
        cells = inner.reshape(BITS, cell)[:, cell // 4 : 3 * cell // 4].mean(axis=1)
        rows.append(cells > 128)
    if (rows[0] != rows[1]).any():
        return None
    return int(sum(1 << (BITS - 1 - k) for k in np.flatnonzero(rows[0])))


class ClockSink(Sink):
    """Notes (seconds since the start, age in ms) of each picture whose clock can be read."""

    def __init__(self) -> None:
        self.name = "clock"
        self.counters = {"unread": 0}
        self.ages: list[tuple[float, float]] = []

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Read the clocks."""
        for frame in items:
            note(self.ages, self.counters, frame.image)
        return ()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return nothing: it writes none."""
        return ()


def note(ages: list[tuple[float, float]], counters: dict[str, int], image: Picture) -> None:
    """Read the clock of a picture whose treatment has just ended."""
    made_ms = read_clock(image)
    now = time.monotonic()
    if made_ms is None:
        counters["unread"] = counters.get("unread", 0) + 1
        return
    # The clock in the picture has 32 bits.
    ages.append((now, (now * 1000 - made_ms) % (1 << BITS)))


def run_pipeline(model: str, seconds: float, threads: int | None) -> dict[str, Any]:
    """Run the project's pipeline, live."""
    from pipeline.limits import Limits
    from pipeline.runner import Pipeline
    from stages.sources.network import NetworkConfig, NetworkSource
    from stages.sources.reconnecting import Reconnecting

    config = NetworkConfig.model_validate({"url": URL})
    sink = ClockSink()
    source = Reconnecting(NetworkSource(config, "camera"), config.reconnect)
    result = Pipeline(
        [source],
        chain(model, spin=None, threads=threads),
        [sink],
        live=True,
        limits=Limits(None, seconds),
    ).run()
    stream = result.streams["camera"]
    return {
        "ages": sink.ages,
        "unread": sink.counters["unread"],
        "received": stream.frames_in,
        "done": stream.frames_out,
        "accounted": stream.frames_out + stream.dropped_full + stream.dropped_stale,
        "dropped": {
            "full": stream.dropped_full,
            "stale": stream.dropped_stale,
            **source.counters,
        },
    }


def run_loop(model: str, seconds: float, threads: int | None) -> dict[str, Any]:
    """Read, find, draw, one after another."""
    import cv2

    annotate = callback(chain(model, spin=None, threads=threads))
    capture = cv2.VideoCapture(URL)
    ages: list[tuple[float, float]] = []
    counters: dict[str, int] = {}
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        good, image = capture.read()
        if not good:
            break
        note(ages, counters, annotate(image, count))
        count += 1
    capture.release()
    return {"ages": ages, "unread": counters.get("unread", 0), "received": count, "done": count}


def run_file(model: str, seconds: float, threads: int | None) -> dict[str, Any]:
    """Run the pipeline on a recording of the stream while another process watches the server."""
    from pipeline.runner import Pipeline
    from stages.sources.file import FileConfig, FileSource

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mkv"
        _record(clip, seconds)
        watcher = subprocess.Popen([sys.executable, "-m", "benchmarks.latency", "--child", "watch",
                                    "--seconds", str(10 * seconds)], cwd=ROOT)  # fmt: skip
        try:
            time.sleep(SETTLE_S)
            sink = ClockSink()
            source = FileSource(FileConfig(path=str(clip)), "camera")
            Pipeline([source], chain(model, spin=None, threads=threads), [sink], live=False).run()
        finally:
            watcher.kill()
            watcher.wait()
    times = [at for at, _ in sink.ages]
    return {"fps": (len(times) - 1) / (times[-1] - times[0])}


def _record(clip: Path, seconds: float) -> None:
    import av

    with av.open(URL, options={"rtsp_transport": "tcp"}, timeout=10) as source, av.open(
        str(clip), "w"
    ) as out:  # fmt: skip
        stream = out.add_stream_from_template(source.streams.video[0])
        started = time.monotonic()
        for packet in source.demux(video=0):
            if time.monotonic() - started > seconds:
                return
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


def watch(seconds: float) -> dict[str, Any]:
    """Receive and decode the stream, as the live contestants must."""
    from stages.sources.network import NetworkConfig, NetworkSource

    source = NetworkSource(NetworkConfig.model_validate({"url": URL}), "watcher")
    source.open(RunContext())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        source.read(1)
    source.close()
    return {}


def figures(ages: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return rate, percentiles and growth of the ages after the settling time."""
    points: NDArray[np.float64] = np.array(ages, np.float64)
    points = points[points[:, 0] >= points[0, 0] + SETTLE_S]
    p50, p95, p99 = np.percentile(points[:, 1], (50, 95, 99))
    slope = np.polyfit(points[:, 0] - points[0, 0], points[:, 1], 1)[0]
    span = points[-1, 0] - points[0, 0]
    return {
        "fps": (len(points) - 1) / span,
        "p50": float(p50),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(points[:, 1].max()),
        "slope_ms_per_s": float(slope),
    }


def _in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.latency", "--child", name]
    command += ["--model", args.model, "--seconds", str(args.seconds)]
    if args.threads is not None:
        command += ["--threads", str(args.threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _server() -> subprocess.Popen[str]:
    command = [SYSTEM_PYTHON, str(Path(__file__).with_name("clock_server.py")), str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if server.stdout is None or server.stdout.readline().strip() != "ready":
        raise SystemExit("the RTSP server did not start: see clock_server.py for what it needs")
    return server


CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "rackfocus": lambda args: run_pipeline(args.model, args.seconds, args.threads),
    "loop": lambda args: run_loop(args.model, args.seconds, args.threads),
    "file": lambda args: run_file(args.model, min(args.seconds, 20), args.threads),
    "watch": lambda args: watch(args.seconds),
}


def main() -> int:
    """Measure and print; exit 1 where the pipeline's picture ages or its rate falls behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, help="of the model, for all; default: as in a run")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return 0
    server = _server()
    try:
        alone = _in_process("file", args)["fps"]
        live = {name: _in_process(name, args) for name in ("rackfocus", "loop")}
    finally:
        server.kill()
        server.wait()
    print(f"720p, 30 fps over RTSP, {args.seconds:g} s each, model {args.model}")
    print(f"the same detector on a file under the same load: {alone:.1f} fps\n")
    print(f"{'':<11}{'fps':>7}{'of file':>9}{'p50 ms':>8}{'p95':>8}{'p99':>8}{'max':>8}{'ms/s':>8}")
    found = {}
    for name, run in live.items():
        f = found[name] = figures(run["ages"])
        print(
            f"{name:<11}{f['fps']:>7.1f}{f['fps'] / alone:>9.2f}{f['p50']:>8.0f}{f['p95']:>8.0f}"
            f"{f['p99']:>8.0f}{f['max']:>8.0f}{f['slope_ms_per_s']:>8.1f}"
        )
    ours = live["rackfocus"]
    print(
        f"\nrackfocus: {ours['received']} frames received, {ours['done']} done, "
        f"{ours['received'] - ours['accounted']} unaccounted for; dropped {ours['dropped']}; "
        f"{ours['unread']} clocks unread"
    )
    fresh = found["rackfocus"]["p99"] < 200 and found["rackfocus"]["slope_ms_per_s"] < 1
    return 0 if fresh and ours["received"] == ours["accounted"] else 1


if __name__ == "__main__":
    sys.exit(main())
