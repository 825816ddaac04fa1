"""What a model file says of itself: our own metadata, and Ultralytics'.

Texts in, values out; nothing is executed. Whether the graph fits what the file says is checked by
`recognise`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import ModelError

KEY = "rackfocus"
SCHEMA = 1
_TASKS = ("detect", "segment", "keypoints", "semantic")
"""Boxes, boxes with masks, boxes with keypoints, a class for each pixel."""
_ULTRALYTICS_TASKS = ("detect", "segment")


@dataclass(frozen=True, slots=True)
class Stated:
    """What a file's metadata says; None and empty where it is silent."""

    by: str
    """Whose metadata it is, for the log."""
    decoder: str | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    """Fields of `Preprocessing`."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The decoder's options."""
    class_names: tuple[str, ...] | None = None
    size_wh: tuple[int, int] | None = None


def stated(metadata: Mapping[str, str]) -> Stated | None:
    """Return what the file says of itself, our own metadata first; None where it says nothing.

    Raises:
        ModelError: metadata that is ours but broken or newer, or a task that cannot be decoded.
    """
    if KEY in metadata:
        return _ours(metadata[KEY])
    if "names" in metadata and "stride" in metadata:
        return _ultralytics(metadata)
    return None


def _ours(text: str) -> Stated:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelError(f"the file's {KEY!r} metadata is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        seen = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ModelError(
            f"the file's {KEY!r} metadata has schema {seen!r}, this version reads {SCHEMA}: update "
            "Rackfocus, or export the model again"
        )
    task = data.get("task")
    if task not in _TASKS:
        raise ModelError(f"the model's task is {task!r}; known: {', '.join(_TASKS)}")
    decoder = data.get("decoder")
    preprocessing = data.get("preprocessing", {})
    options = data.get("options", {})
    names = data.get("class_names")
    if (
        not isinstance(decoder, str)
        or not isinstance(preprocessing, dict)
        or not isinstance(options, dict)
        or not (names is None or (isinstance(names, list) and all(map(_is_text, names))))
    ):
        raise ModelError(
            f"the file's {KEY!r} metadata is broken: decoder must be text, preprocessing "
            "and options objects, class_names a list of texts; export the model again"
        )
    size = preprocessing.get("size_wh")
    return Stated(
        by="Rackfocus metadata",
        decoder=decoder,
        preprocessing=preprocessing,
        options=options,
        class_names=None if names is None else tuple(names),
        size_wh=None if size is None else _size(size, "size_wh"),
    )


def _ultralytics(metadata: Mapping[str, str]) -> Stated:
    task = metadata.get("task", "detect")  # YOLOv5's own exporter writes no task
    if task not in _ULTRALYTICS_TASKS:
        raise ModelError(
            f"Ultralytics' metadata says task {task!r}; only "
            f"{' and '.join(_ULTRALYTICS_TASKS)} can be decoded"
        )
    size_wh = None
    if "imgsz" in metadata:
        height, width = _size(_literal(metadata["imgsz"], "imgsz"), "imgsz")
        size_wh = (width, height)
    return Stated(
        by="Ultralytics metadata",
        class_names=_names(_literal(metadata["names"], "names")),
        size_wh=size_wh,
    )


def _literal(text: str, key: str) -> object:
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ModelError(
            f"Ultralytics' metadata {key!r} is not a Python literal: {text[:80]!r}"
        ) from error
    return value


def _names(value: object) -> tuple[str, ...]:
    """Return the names of {0: "person", ...} or ["person", ...]."""
    if isinstance(value, dict):
        if sorted(value, key=repr) != sorted(range(len(value)), key=repr):
            raise ModelError(
                f"Ultralytics' metadata 'names' must number the classes 0..{len(value) - 1}, "
                f"got {list(value)[:5]}..."
            )
        value = [value[i] for i in range(len(value))]
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise ModelError(f"Ultralytics' metadata 'names' holds no names: {str(value)[:80]!r}")
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _size(value: object, key: str) -> tuple[int, int]:
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
    ):
        return value[0], value[1]
    raise ModelError(f"the file's metadata {key!r} must be two positive whole numbers: {value!r}")
