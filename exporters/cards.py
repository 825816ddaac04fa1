"""What an entry of the zoo says of itself, as a card and against the card of a file. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from exporters.entry import Entry
from exporters.onnx_export import Card
from pipeline.errors import ParityError

_SHOWN_CHARS: Final = 160
"""How much of a wrong value is quoted."""


def card_of(entry: Entry, licence: str) -> Card:
    """Return what a file of that model shall say of itself, its weights under `licence`."""
    return Card(
        name=entry.name,
        task=entry.task,
        decoder=entry.decoder,
        preprocessing=entry.preprocessing,
        class_names=entry.class_names,
        licence=licence,
        options=entry.options,
    )


def check_card(path: Path, entry: Entry, stated: Mapping[str, Any]) -> None:
    """Refuse a file that says of itself other things than the table does.

    Raises:
        ParityError: the text shows what differs.
    """
    known = {
        "task": entry.task,
        "decoder": entry.decoder,
        "options": dict(entry.options),
        "preprocessing": dataclasses.asdict(entry.preprocessing),
        "class_names": list(entry.class_names),
    }
    source = stated.get("source")
    if isinstance(source, dict) and source.get("weights") == "file":
        del known["class_names"]  # they are the checkpoint's
    # Through JSON, which has lists for tuples.
    wrong = [
        f"  {key} is {short(stated.get(key))}, expected {short(value)}"
        for key, value in json.loads(json.dumps(known)).items()
        if stated.get(key) != value
    ]
    if wrong:
        raise ParityError(f"{path} is no {entry.name} as it is exported here\n" + "\n".join(wrong))


def short(value: object) -> str:
    """Return a value for a message."""
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
