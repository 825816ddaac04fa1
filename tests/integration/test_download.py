"""Weights from a real server on this machine: whole, broken off, resumed, wrong, absent."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exporters.download import cache_folder, cached, fetch
from pipeline.errors import ModelError, UsageError

DATA = bytes(range(256)) * 4096
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    """A server of DATA at any path; `cut_at` breaks its first answer off."""

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
    state.requests, state.cut_at, state.ranges, state.data = [], None, True, DATA
    thread = threading.Thread(target=state.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{state.server_port}/weights.pth"
    yield state
    state.shutdown()
    state.server_close()
    thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_once_and_with_progress(server, tmp_path):
    seen = []
    path = fetch(server.url, SHA, folder=tmp_path, progress=lambda *step: seen.append(step))
    assert path == tmp_path / "weights.pth"
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert len(seen) > 1
    assert fetch(server.url, SHA[:8], folder=tmp_path) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(server, tmp_path, ranges):
    server.cut_at, server.ranges = 300_000, ranges
    with pytest.raises(ModelError, match="the next try goes on from there"):
        fetch(server.url, SHA, folder=tmp_path)
    assert names(tmp_path) == ["weights.pth.part"]
    seen = []
    path = fetch(server.url, SHA, folder=tmp_path, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert server.requests == [None, "bytes=300000-"]
    assert names(tmp_path) == ["weights.pth"]


def test_a_complete_part_is_only_renamed(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(DATA)
    assert fetch(server.url, SHA, folder=tmp_path).read_bytes() == DATA


def test_another_file_is_refused_and_leaves_nothing(server, tmp_path):
    server.data = DATA[:-1] + b"x"
    with pytest.raises(ModelError, match="gave another file than was published"):
        fetch(server.url, SHA, folder=tmp_path)
    assert names(tmp_path) == []


def test_a_wrong_file_in_the_cache_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ModelError, match="delete it and try again"):
        cached("http://127.0.0.1:1/weights.pth", SHA, tmp_path)


@pytest.mark.parametrize("kind", ["no server", "not found"])
def test_without_network_the_message_says_what_to_put_where(server, tmp_path, kind):
    url = server.url.replace("/weights", "/missing")
    if kind == "no server":
        url = "http://127.0.0.1:1/missing.pth"
    with pytest.raises(ModelError) as error:
        fetch(url, SHA, folder=tmp_path)
    for part in (url, str(tmp_path / "missing.pth"), SHA):
        assert part in str(error.value)
    assert names(tmp_path) == []


def test_only_http_is_fetched(tmp_path):
    with pytest.raises(UsageError, match="http or https"):
        fetch("file:///etc/passwd", SHA, folder=tmp_path)


def test_the_cache_moves(monkeypatch, tmp_path):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("RACKFOCUS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rackfocus" / "weights"
