"""The digest that binds a model file to what its metadata says of it.

It covers the graph with its weights and everything under our metadata key but the digest itself, so
that a file whose numbers, preprocessing, class names or certificate were changed afterwards is
noticed. Against accidents and edits, not against forgers: there is no secret in it. Reads the
file's outermost structure only, so that no ONNX package is needed to run a model. Pure.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ModelError
from stages.decoders.metadata import KEY

DIGEST: Final = "digest"
"""The metadata's own field that holds it."""
# onnx.proto: ModelProto.metadata_props = 14, StringStringEntryProto.key = 1 and value = 2.
_METADATA_PROPS: Final = 14
_KEY_FIELD: Final = 1
_VALUE_FIELD: Final = 2
# Protobuf's wire types: varint, 8 bytes, length-delimited, 4 bytes.
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class SealError(ModelError):
    """A file that is not the one its certificate was made for."""


def seal(model: bytes, card: Mapping[str, object]) -> bytes:
    """Return the file: `model` with `card` and its digest as metadata.

    Args:
        model: a serialised ModelProto without our metadata.
        card: all that shall stand under our key; values that JSON can hold.
    """
    stated = {**card, DIGEST: digest(model, card)}
    value = json.dumps(stated, sort_keys=True).encode()
    entry = _field(_KEY_FIELD, KEY.encode()) + _field(_VALUE_FIELD, value)
    # Serialised messages may be joined: fields that repeat are appended.
    return model + _field(_METADATA_PROPS, entry)


def digest(model: bytes | memoryview, card: Mapping[str, object]) -> str:
    """Return the digest over a serialised ModelProto, our metadata left out, and over `card`.

    Raises:
        ModelError: the bytes are no protobuf message.
    """
    running = hashlib.sha256()
    for number, raw, content in _fields(memoryview(model)):
        if number != _METADATA_PROPS or not _is_ours(content):
            running.update(raw)
    named = {key: value for key, value in card.items() if key != DIGEST}
    running.update(json.dumps(named, sort_keys=True, separators=(",", ":")).encode())
    return running.hexdigest()


def check_seal(path: Path, metadata: Mapping[str, str]) -> bool:
    """Return whether the file carries a digest; raise where it does not fit.

    Args:
        path: the model file.
        metadata: what a runtime has read from it.

    Raises:
        SealError: the file is not the one that was certified.
    """
    try:
        card = json.loads(metadata.get(KEY, "null"))
    except ValueError:
        card = None
    if not isinstance(card, dict):
        return False  # nothing there, or broken: recognition says so
    parity = card.get("parity")
    # Certificates have a schema; files from before there were any state a parity and no digest.
    certified = isinstance(parity, dict) and "schema" in parity
    if DIGEST not in card and not certified:
        return False
    if card.get(DIGEST) != digest(path.read_bytes(), card):
        raise SealError(
            "the file is not the one that was certified: its graph, weights, preprocessing or "
            "class names were changed after the export; export it again"
        )
    return True


def read_card(path: Path) -> dict[str, Any]:
    """Return what stands under our key in a file, without checking the digest; {} for nothing.

    Reads only the pages it needs, so a large file costs no more than a small one.

    Raises:
        ModelError: the file is no protobuf message, or what stands there is no JSON object.
        OSError: it cannot be read.
    """
    if not path.stat().st_size:  # nothing that could be mapped
        return {}
    with path.open("rb") as file:
        # Not closed by hand: views of it may live on in an error's traceback.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        card = json.loads(_own_text(memoryview(mapped)))
    except ValueError as error:
        raise ModelError(f"the file's {KEY!r} metadata is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise ModelError(f"the file's {KEY!r} metadata is no JSON object")
    return card


def _own_text(data: memoryview) -> bytes:
    for number, _, content in _fields(data):
        if number == _METADATA_PROPS and _is_ours(content):
            return b"".join(bytes(value) for n, _, value in _fields(content) if n == _VALUE_FIELD)
    return b"{}"


def _is_ours(content: memoryview) -> bool:
    return any(
        number == _KEY_FIELD and bytes(value) == KEY.encode()
        for number, _, value in _fields(content)
    )


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield each field of a message: number, bytes with its tag, bytes of its content."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            begin = at
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, begin = _varint(data, at)
            at = begin + size
        elif kind in (_EIGHT, _FOUR):
            begin, at = at, at + (8 if kind == _EIGHT else 4)
        else:
            raise ModelError(f"the file is damaged: no protobuf message at byte {start}")
        if at > len(data):
            raise ModelError(f"the file is cut off: {at - len(data)} bytes are missing at its end")
        yield tag >> 3, data[start:at], data[begin:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ModelError(f"the file is damaged: no protobuf message at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7


def _field(number: int, content: bytes) -> bytes:
    out = bytearray()
    for value in (number << 3 | _BYTES, len(content)):
        rest = value
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out) + content
