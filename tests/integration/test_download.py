"""Weights from a real server on this machine: whole, broken off, resumed, wrong, absent."""

from __future__ import annotations

import hashlib

import pytest

from exporters.download import cache_folder, cached, fetch
from pipeline.errors import ModelError, UsageError
from tests.helpers.file_server import file_server

DATA = bytes(range(256)) * 4096
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with file_server(DATA) as running:
        yield running


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


def test_where_only_the_first_digits_are_published_the_message_says_so(tmp_path):
    with pytest.raises(ModelError, match=rf"sha256 {SHA[:8]}\.\.\., of which only 8 digits"):
        fetch("http://127.0.0.1:1/weights.pth", SHA[:8], folder=tmp_path)


def test_only_http_is_fetched(tmp_path):
    with pytest.raises(UsageError, match="http or https"):
        fetch("file:///etc/passwd", SHA, folder=tmp_path)


def test_the_cache_moves(monkeypatch, tmp_path):
    monkeypatch.setenv("RACKFOCUS_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("RACKFOCUS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rackfocus" / "weights"
