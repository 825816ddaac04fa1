"""Do several cameras share one model fairly, and does one that dies leave the others alone?

    python -m benchmarks.streams [--model NAME|FILE.onnx] [--seconds 20]

Real RTSP servers (GStreamer, `clock_server.py`) send 640x360. First one stream with more frames
than the model can take, then four streams with as many together: what all four get, beside what the
one got, and each stream's share of an equal one. Then four that the model can serve, of which one
is killed half-way: the rates of the other three before and after.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.pipeline import chain
from pipeline.frame import Frame
from pipeline.runner import Pipeline
from pipeline.stage import OutputInfo, Sink
from stages.sources.network import NetworkConfig, NetworkSource
from stages.sources.reconnecting import Reconnecting

SYSTEM_PYTHON: Final = "/usr/bin/python3"
TOTAL_HZ: Final = 200
"""Of the streams that are too many: more than the model takes on the machines this was made for."""
EASY_HZ: Final = 5
SETTLE_S: Final = 3.0


class Arrivals(Sink):
    """Notes when each stream's frames arrive, seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.name = "arrivals"
        self.counters = {}
        self.times: dict[str, list[float]] = {}

    def process(self, items: Sequence[Frame]) -> Sequence[Frame]:
        """Note the arrivals."""
        for frame in items:
            self.times.setdefault(frame.id.stream, []).append(time.monotonic())
        return ()

    def outputs(self) -> Sequence[OutputInfo]:
        """Return nothing: it writes none."""
        return ()


def serve(count: int, rate: int) -> tuple[list[subprocess.Popen[str]], list[int]]:
    """Start so many servers; return them and their ports."""
    script = Path(__file__).with_name("clock_server.py")
    servers, ports = [], []
    for _ in range(count):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        command = [SYSTEM_PYTHON, str(script), str(ports[-1]), "640", "360", str(rate)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        if server.stdout is None or server.stdout.readline().strip() != "ready":
            raise SystemExit("an RTSP server did not start: see clock_server.py for what it needs")
    return servers, ports


def measure(
    count: int, rate: int, model: str, seconds: float, *, kill_first: bool = False
) -> dict[str, tuple[float, float]]:
    """Return each stream's rate in the first and in the second half of the time, 1/s."""
    servers, ports = serve(count, rate)
    config = [
        NetworkConfig.model_validate({"url": f"rtsp://127.0.0.1:{port}/live"}) for port in ports
    ]
    sources = [
        Reconnecting(NetworkSource(c, f"camera{k}"), c.reconnect) for k, c in enumerate(config)
    ]
    sink = Arrivals()
    pipeline = Pipeline(sources, chain(model, spin=None), [sink], live=True)
    started = [0.0]

    def control() -> None:
        while len(sink.times) < count:
            time.sleep(0.05)
        started[0] = time.monotonic() + SETTLE_S
        time.sleep(SETTLE_S + seconds / 2)
        if kill_first:
            servers[0].kill()
        time.sleep(seconds / 2)
        pipeline.request_stop()

    threading.Thread(target=control, daemon=True).start()
    try:
        result = pipeline.run()
    finally:
        for server in servers:
            server.kill()
            server.wait()
    if result.failures:
        raise SystemExit(result.reason)
    middle, end = started[0] + seconds / 2, started[0] + seconds

    def rate_of(times: list[float], first: float, last: float) -> float:
        return sum(first <= at < last for at in times) / (last - first)

    return {
        name: (rate_of(times, started[0], middle), rate_of(times, middle, end))
        for name, times in sorted(sink.times.items())
    }


def main() -> int:
    """Measure and print; exit 1 below 0.9 together, 0.8 of a fair share, or 0.9 after the kill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    one = measure(1, TOTAL_HZ, args.model, args.seconds)
    four = measure(4, TOTAL_HZ // 4, args.model, args.seconds)
    killed = measure(4, EASY_HZ, args.model, args.seconds, kill_first=True)
    alone = sum(map(sum, one.values())) / 2
    together = sum(map(sum, four.values())) / 2
    worst = min(sum(pair) / 2 for pair in four.values()) / (together / 4)
    print(f"model {args.model}, {args.seconds:g} s each")
    print(f"one stream of {TOTAL_HZ} fps: {alone:.1f} fps done")
    print(f"four of {TOTAL_HZ // 4}: {together:.1f} fps done, {together / alone:.2f} of the one")
    print(f"the worst served got {worst:.2f} of an equal share")
    kept = 1.0
    print(f"\nfour of {EASY_HZ} fps, camera0 killed half-way: fps before and after")
    for name, (before, after) in killed.items():
        print(f"  {name}: {before:.1f}, {after:.1f}")
        if name != "camera0":
            kept = min(kept, after / before if before else 0.0)
    return 0 if together >= 0.9 * alone and worst >= 0.8 and kept >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
