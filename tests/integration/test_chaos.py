"""Faults made on purpose in real files and streams: what is damaged is packets, not pictures."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from pipeline.stage import End, RunContext
from stages.sources.chaos import ChaosConfig, ChaosSource
from stages.sources.file import FileConfig, FileSource
from stages.sources.network import NetworkConfig, NetworkSource
from tests.contracts.check_source import check_source, read_all
from tests.helpers.media import make_video, read_number
from tests.helpers.servers import RtspServer, has_rtsp_server


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("clips") / "a.mp4", frames=75, audio=False)


def broken(clip, *, threads=1, **faults):
    inner = FileSource(FileConfig(path=str(clip), threads=threads), "clip")
    return ChaosSource(ChaosConfig(source="x", **faults), "clip", inner)


def read_file(source):
    source.open(RunContext())
    frames, outcome = read_all(source)
    source.close()
    pixels = hashlib.sha256(b"".join(f.image.tobytes() for f in frames)).hexdigest()
    return frames, outcome, dict(source.counters), pixels


def test_it_keeps_the_contract_around_a_file(clip):
    check_source(lambda: broken(clip, corrupt=1e-4, freeze="0.2s@5", resize="64x48@1s"))


def test_bytes_are_damaged_before_decoding_and_a_seed_repeats_it(clip):
    frames, outcome, counters, pixels = read_file(broken(clip, corrupt=3e-3, seed=5))
    _, _, plain_counters, plain = read_file(broken(clip))
    assert isinstance(outcome, End)
    assert counters["chaos_bytes"] >= counters["chaos_packets"] > 20
    assert counters["corrupt"] + counters["concealed"] > 0, "the decoder saw nothing of it"
    assert plain_counters["corrupt"] == plain_counters["chaos_bytes"] == 0
    assert plain != pixels
    assert len(frames) + counters["corrupt"] == 75
    for threads in (1, 1, 3):
        _, _, more, again = read_file(broken(clip, corrupt=3e-3, seed=5, threads=threads))
        assert more["chaos_bytes"] == counters["chaos_bytes"]
        if threads == 1:
            assert again == pixels
    _, _, _, other = read_file(broken(clip, corrupt=3e-3, seed=6))
    assert other != pixels


def test_a_clock_that_jumps_is_mended_by_the_file_source(clip):
    frames, _, counters, _ = read_file(broken(clip, pts_jump="-1.5s@50"))
    assert counters["chaos_pts_jumps"] == 1
    assert counters["pts_repaired"] > 0
    assert all(np.diff([f.time.pts for f in frames]) > 0)
    assert [read_number(f.image) for f in frames] == list(range(75))
    assert sum(f.discontinuity for f in frames) == 1


def test_a_run_with_faults_accounts_for_them_in_its_report(clip, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    address = f"chaos:{clip}?drop=0.2&seed=4&resize=160x120@40&freeze=0.4s@10"
    arguments = ["--model", "shapes", "--device", "cpu", "--report", "r.json"]
    code = run.main(["run", address, "-o", "out.jsonl", "-o", "out.mp4", *arguments])
    told = capsys.readouterr()
    assert code == 0, told.err
    report = json.loads((tmp_path / "r.json").read_text())
    stream = report["streams"]["a"]
    counters = report["stages"]["a"]["counters"]
    assert stream["frames_in"] == stream["frames_out"] == 75 - counters["chaos_dropped"]
    assert counters["chaos_dropped"] > 3
    assert counters["chaos_frozen"] > 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)
    assert len(lines) == stream["frames_out"]
    assert report["config"]["sources"][0]["source"]["path"] == str(clip)
    assert "a: broken on purpose: seed=4, drop=0.2" in told.err


def test_a_run_that_lost_its_file_says_that_it_was_on_purpose(clip, tmp_path, monkeypatch, capsys):
    import run

    monkeypatch.chdir(tmp_path)
    arguments = ["-o", "out.jsonl", "--model", "shapes", "--device", "cpu"]
    assert run.main(["run", f"chaos:{clip}?lose=@5", *arguments]) == 1
    assert "cut at frame 5 on purpose" in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


@pytest.mark.skipif(not has_rtsp_server(), reason="needs GStreamer's RTSP server")
def test_a_network_stream_is_broken_and_comes_back(tmp_path):
    from pipeline.problems import Problems
    from pipeline.schema import load_config
    from stages.build import build
    from stages.plan import make_plan

    clip = make_video(tmp_path / "live.mp4", frames=50, gop=5, b_frames=0, audio=False)
    server = RtspServer(clip)
    try:
        flags = {
            "sources": ([f"chaos:{server.url}?lose=@20&corrupt=2e-3&pts_jump=-30s@8"], ""),
            "sinks": (["null"], ""),
            "model": ("shapes", ""),
        }
        plan = make_plan(load_config(None, flags, [], Problems()), Problems())
        context = RunContext()
        built = build(plan, context)
        (source,) = built.sources
        assert built.live
        source.open(context)
        frames, _ = read_all(source, limit=30)
        counters = dict(source.counters)
        source.close()
    finally:
        server.kill()
    assert {f.id.epoch for f in frames} >= {0, 1}
    assert counters["chaos_losses"] >= 1
    assert counters["chaos_bytes"] > 0
    assert counters["chaos_pts_jumps"] >= 1
    for epoch in {f.id.epoch for f in frames}:
        assert all(np.diff([f.time.pts for f in frames if f.id.epoch == epoch]) > 0)
    assert [event.state for event in context.events][:2] == ["backing off", "connecting"]


def test_network_and_file_take_faults_in_their_packets():
    from stages.sources.faults import TakesPacketFaults

    network = NetworkSource(NetworkConfig(url="rtsp://h/x"), "n")
    assert isinstance(network, TakesPacketFaults)
    assert isinstance(FileSource(FileConfig(path="x"), "f"), TakesPacketFaults)
