"""The report on the disk: whole or not at all. Any thread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import SinkError


def write_report(path: str, report: Mapping[str, object]) -> None:
    """Write the report as JSON; a file that is there is replaced, a pipe or device written to.

    Raises:
        SinkError: it cannot be written; what was there is as it was.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    # A file name that is no UTF-8 has lone surrogates in Python; `\udcff` is how JSON writes them.
    data = text.encode("utf-8", errors="backslashreplace")
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)  # replacing it would destroy the device
            return
        target = target.resolve()  # a link stays one
        part = target.with_name(f"{target.name}.part")
        try:
            part.write_bytes(data)
            part.replace(target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SinkError(f"the report {path} cannot be written: {error.strerror}") from error
