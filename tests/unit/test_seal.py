"""The digest that binds a model file to what it says of itself."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import ModelError
from stages.decoders.metadata import KEY
from stages.decoders.seal import SealError, check_seal, digest, seal

CARD = {"schema": 1, "name": "x", "class_names": ["a", "b"], "parity": {"schema": 1}}
# Field 1, varint 8; field 7, two bytes; field 5, four bytes: as good as a graph.
GRAPH = b"\x08\x08" + b"\x3a\x02hi" + b"\x2d\x00\x00\x80\x3f"


def stated(data):
    """Return our metadata as a runtime would read it: the last field of the file."""
    return {KEY: data[data.rindex(b'{"class_names"') :].decode()}


def written(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    return path


def test_a_sealed_file_is_accepted(tmp_path):
    data = seal(GRAPH, CARD)
    assert data.startswith(GRAPH)
    assert json.loads(stated(data)[KEY])["digest"] == digest(data, CARD)
    assert check_seal(written(tmp_path, data), stated(data))


def test_a_file_without_certificate_is_neither_refused_nor_certified(tmp_path):
    path = written(tmp_path, GRAPH)
    assert not check_seal(path, {})
    assert not check_seal(path, {KEY: "{"})
    assert not check_seal(path, {KEY: "[1]"})
    assert not check_seal(path, {KEY: '{"schema": 1, "parity": {"frames": 8}}'})


@pytest.mark.parametrize("at", range(len(GRAPH)))
def test_every_byte_of_the_graph_counts(tmp_path, at):
    data = bytearray(seal(GRAPH, CARD))
    said = stated(bytes(data))
    data[at] ^= 1
    with pytest.raises(ModelError):
        check_seal(written(tmp_path, bytes(data)), said)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "y"},
        {"class_names": ["b", "a"]},
        {"parity": {"schema": 1, "frames": 9}},
        {"more": 1},
        {"digest": None},
    ],
    ids=str,
)
def test_every_value_of_the_metadata_counts(tmp_path, change):
    data = seal(GRAPH, CARD)
    said = {**json.loads(stated(data)[KEY]), **change}
    with pytest.raises(SealError, match="not the one that was certified"):
        check_seal(written(tmp_path, data), {KEY: json.dumps(said)})


def test_a_certificate_whose_digest_was_removed_is_refused(tmp_path):
    with pytest.raises(SealError):
        check_seal(written(tmp_path, GRAPH), {KEY: json.dumps(CARD)})


def test_a_file_cut_off_says_so(tmp_path):
    data = seal(GRAPH, CARD)
    with pytest.raises(ModelError, match="bytes are missing at its end"):
        check_seal(written(tmp_path, data[:-3]), stated(data))


def test_metadata_of_others_counts_as_part_of_the_graph():
    other = b"\x72\x06\x0a\x01k\x12\x01v"  # metadata_props {key: "k", value: "v"}
    assert digest(GRAPH + other, CARD) != digest(GRAPH, CARD)
