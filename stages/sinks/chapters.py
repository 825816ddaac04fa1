"""Chapter marks moved along with everything else. Pure; safe from any thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import cast


def shifted_chapters(
    chapters: Iterable[Mapping[str, object]], shift_s: Fraction, end_s: Fraction | None
) -> list[dict[str, object]]:
    """Return PyAV chapters moved by `shift_s` and cut at `end_s`; those wholly outside go."""
    kept: list[dict[str, object]] = []
    for chapter in chapters:
        base = chapter["time_base"]
        if not isinstance(base, Fraction):
            continue
        start = cast(int, chapter["start"]) + round(shift_s / base)
        end = cast(int, chapter["end"]) + round(shift_s / base)
        if end_s is not None:
            end = min(end, round(end_s / base))
        if end > max(start, 0):
            kept.append({**chapter, "start": max(start, 0), "end": end})
    return kept
