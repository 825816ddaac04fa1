"""Does a camera that comes and goes leak? Memory, threads and files after many reconnects.

    python -m benchmarks.reconnects [--times 500]

A web server on this machine plays a camera (MJPEG over HTTP) that hangs up after three pictures.
The figures are taken after a tenth of the reconnects, when caches are filled, and at the end. Exit
code 1 where threads or files have grown, or memory by more than 5 %.
"""

from __future__ import annotations

import argparse
import http.server
import sys
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.frame import Frame
from pipeline.stage import RunContext
from stages.sources.network import NetworkConfig, NetworkSource
from stages.sources.reconnecting import ReconnectConfig, Reconnecting

_PICTURES: Final = 3
_GROWTH: Final = 1.05


def camera(pictures: list[bytes]) -> http.server.ThreadingHTTPServer:
    """Return a server that sends `pictures` as MJPEG and hangs up."""

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for data in pictures:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                self.wfile.write(f"{head}\r\n\r\n".encode() + data + b"\r\n")

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    return server


def figures() -> dict[str, int]:
    """Return resident memory in KiB, threads and open files of this process (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "memory_kib": int(lines["VmRSS"].split()[0]),
        "threads": int(lines["Threads"]),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def main() -> int:
    """Reconnect, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=500)
    args = parser.parse_args()
    import cv2

    rng = np.random.default_rng(1)
    pictures = [
        cv2.imencode(".jpg", rng.integers(0, 255, (480, 640, 3), np.uint8))[1].tobytes()
        for _ in range(_PICTURES)
    ]
    server = camera(pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = NetworkConfig.model_validate(
        {"url": f"http://127.0.0.1:{server.server_address[1]}/", "live": True}
    )
    source = Reconnecting(
        NetworkSource(config, "camera"), ReconnectConfig(initial_s=0.001, max_s=0.001)
    )
    source.open(RunContext())
    began, frames, epoch = time.monotonic(), 0, 0
    before: dict[str, int] | None = None
    while epoch < args.times:
        result = source.read(1)
        if isinstance(result, Frame):
            frames, epoch = frames + 1, result.id.epoch
        if before is None and epoch >= args.times // 10:
            before = figures()
    after = figures()
    source.close()
    server.shutdown()
    took_s = time.monotonic() - began
    print(f"{epoch} reconnects and {frames} frames in {took_s:.0f} s")
    before = before or after
    for key, value in after.items():
        print(f"{key:<12}{before[key]:>10} after a tenth{value:>10} at the end")
    # One more may be that of the connection of this very moment.
    steady = all(after[key] <= before[key] + 1 for key in ("threads", "files"))
    return 0 if steady and after["memory_kib"] <= before["memory_kib"] * _GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
