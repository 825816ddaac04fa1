"""Real servers on the loopback interface: RTSP by GStreamer, HTTP by the standard library."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's bindings of GStreamer belong to its own Python."""
_PROBE = "import gi; gi.require_version('GstRtspServer', '1.0')"


@functools.cache
def has_rtsp_server():
    if not Path(SYSTEM_PYTHON).exists():
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True).returncode == 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class RtspServer:
    """`rtsp_server.py` in a process that may be killed, frozen and started again."""

    def __init__(self, clip, *login, port=None):
        self.clip, self.login = clip, login
        self.port = port or free_port()
        self.process = None
        self.start()

    @property
    def url(self):
        return f"rtsp://127.0.0.1:{self.port}/live"

    def start(self, clip=None):
        command = [
            SYSTEM_PYTHON, str(Path(__file__).with_name("rtsp_server.py")),
            str(clip or self.clip), str(self.port), *self.login,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip() == "ready"

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def freeze(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self.process.pid, signal.SIGCONT)


@contextlib.contextmanager
def http_server(handler):
    """Serve with a `BaseHTTPRequestHandler` class; yield the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def folder_handler(folder):
    """Return a handler that serves the files of a folder, with ranges left out."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    return Handler


def mjpeg_handler(pictures, *, pause_s=0.03):
    """Return a handler that sends JPEG pictures as a camera's web page does, then hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for data in pictures:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    self.wfile.write(f"{head}\r\n\r\n".encode() + data + b"\r\n")
                    time.sleep(pause_s)

        def log_message(self, *_):
            pass

    return Handler
