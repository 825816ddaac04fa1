"""A real HTTP server on this machine that gives the same bytes at any path."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def file_server(data: bytes, name: str = "weights.pth"):
    """Serve `data`; yield a state whose fields may be changed while it runs.

    `url`: where to fetch it. `data`: what is served. `requests`: the Range headers so far.
    `cut_at`: the next answer breaks off after so many bytes. `ranges`: whether ranges are
    understood. Paths that start with /missing are not found.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(self.headers.get("Range"))
            if self.path.startswith("/missing"):
                self.send_error(404)
                return
            start = 0
            asked = self.headers.get("Range")
            if asked is not None and state.ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(state.data):
                    self.send_error(416)
                    return
                self.send_response(206)
                end = len(state.data)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            else:
                self.send_response(200)
            body = state.data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cut_at is not None:
                body, state.cut_at = body[: state.cut_at], None
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    state = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.requests, state.cut_at, state.ranges, state.data = [], None, True, data
    thread = threading.Thread(target=state.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{state.server_port}/{name}"
    try:
        yield state
    finally:
        state.shutdown()
        state.server_close()
        thread.join()
