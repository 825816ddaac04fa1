"""What is wrong with a configuration, said so that it can be put right: where, what, remedy.

Collects all problems instead of stopping at the first, knows where each value came from (a line of
a file, a flag), and turns pydantic's errors into sentences. Not thread-safe; used before a run.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

from pipeline.errors import ConfigError, UsageError
from pipeline.url import MASK, redact
from pipeline.yamlfile import Document, KeyPath

_SHOWN_CHARS = 60
"""How much of a wrong value is quoted: enough to recognise it, and one line of a terminal."""


class Origins:
    """Where each value of the configuration was written: `file:line`, or the flag that set it."""

    def __init__(self, document: Document | None = None) -> None:
        self._document = document
        self._told: dict[KeyPath, str] = {}

    def put(self, path: KeyPath, where: str) -> None:
        """Say that the value at `path`, and all below it, came from `where`."""
        self._told = {p: w for p, w in self._told.items() if p[: len(path)] != path}
        self._told[path] = where

    def where(self, path: KeyPath) -> str:
        """Return the place of the value at `path`, or of the nearest around it; "" if unknown."""
        # A flag replaces what the file says there and below, so flags are asked first.
        for end in range(len(path), 0, -1):
            if path[:end] in self._told:
                return self._told[path[:end]]
        if self._document is None:
            return ""
        known = any(path[:end] in self._document.lines for end in range(len(path), 0, -1))
        return self._document.where(path) if known else self._document.name


class Problems:
    """The problems found so far, in the order they were found."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._config = False

    def add(self, where: str, text: str) -> None:
        """Note one problem; repeated texts are dropped."""
        line = redact(f"{where}: {text}" if where else text)
        self._config = self._config or bool(where)
        if line not in self.texts:
            self.texts.append(line)

    def add_error(self, where: str, error: Exception) -> None:
        """Note each line of an error's text."""
        self.add(where, str(error))

    def raise_if_any(self) -> None:
        """Raise one error with all the problems.

        Raises:
            ConfigError: there are problems and some have a place in a file or flag.
            UsageError: there are problems, none with a place.
        """
        if self.texts:
            raise (ConfigError if self._config else UsageError)("\n".join(self.texts))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or "" where none is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def unknown_key(key: str, subject: str, known: Iterable[str]) -> str:
    """Return the sentence about a key that `subject` does not have."""
    names = sorted(known)
    options = f"known keys: {', '.join(names)}" if names else "it has no options"
    return f"unknown key '{key}' in {subject}{did_you_mean(key, names)} ({options})"


def show(value: object) -> str:
    """Return a value for a message: short, and without credentials."""
    text = redact(repr(value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def explain(
    error: ValidationError,
    model: type[BaseModel],
    subject: str,
    path: KeyPath,
    origins: Origins,
    problems: Problems,
    *,
    also_known: Iterable[str] = (),
) -> None:
    """Add one problem for each wrong value of a pydantic error.

    Args:
        error: what validation raised.
        model: the class that was validated.
        subject: how the section is called in messages, e.g. "stage 'nms'".
        path: where the section stands in the configuration.
        origins: where the values came from.
        problems: receives the sentences.
        also_known: keys of the section that the class does not have.
    """
    wrong: dict[KeyPath, tuple[object, list[str]]] = {}
    for item in error.errors(include_url=False):
        # A union's branches and a validator's name stand in `loc` too; only field names, and the
        # indices and keys below them, are places in the file.
        loc, section = _place(model, item["loc"])
        where = origins.where((*path, *loc))
        if item["type"] == "extra_forbidden":
            known = list(section.model_fields) if section is not None else []
            known += also_known if len(loc) == 1 else ()
            inside = subject if len(loc) < 2 else f"'{'.'.join(map(str, loc[:-1]))}' of {subject}"
            problems.add(where, unknown_key(str(loc[-1]), inside, known))
        elif item["type"] == "missing" and isinstance(loc[-1], int):
            wrong.setdefault(loc[:-1], (item["input"], []))[1].append("it has too few values")
        elif item["type"] == "missing":
            field = section.model_fields.get(str(loc[-1])) if section is not None else None
            told = f" ({field.description.rstrip('.')})" if field and field.description else ""
            problems.add(where, f"{subject} needs the key '{loc[-1]}'{told}")
        else:
            wrong.setdefault(loc, (item["input"], []))[1].append(_reason(item))
    for loc, (value, reasons) in wrong.items():
        text = " or ".join(dict.fromkeys(reasons))
        label = f"'{'.'.join(map(str, loc))}' of {subject}" if loc else subject
        shown = MASK if _is_secret(model, loc) else show(value)
        problems.add(origins.where((*path, *loc)), f"{label} is {shown}: {text}")


def _reason(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """Return pydantic's message in our wording."""
    text = str(item["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        text = text.removeprefix(prefix)
    return text.replace("Input should be", "it should be")


def _is_secret(model: type[BaseModel], loc: KeyPath) -> bool:
    """Return whether a value of this field must not be shown, also where it is a wrong one."""
    field = model.model_fields.get(str(loc[0])) if loc else None
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def _place(model: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel] | None]:
    """Return the part of `loc` that exists in the file, and the section its last key belongs to."""
    section: type[BaseModel] | None = model
    path: list[str | int] = []
    owner: type[BaseModel] | None = model
    for depth, part in enumerate(loc):
        if isinstance(part, int):  # where it is an item of a list of sections, that one goes on
            path.append(part)
            continue
        if section is None:
            continue
        owner = section
        field = section.model_fields.get(str(part))
        path.append(part)
        if field is None:
            # An unknown key ends the path; anything else here is a union's branch name.
            return (tuple(path) if depth == len(loc) - 1 else tuple(path[:-1])), owner
        section = _section_of(field.annotation)
    return tuple(path), owner


def _section_of(annotation: object) -> type[BaseModel] | None:
    """Return the config class inside an annotation: `X`, `X | None`, `tuple[X, ...]`; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is tuple:
        return _section_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        found = [s for s in map(_section_of, get_args(annotation)) if s is not None]
        return found[0] if len(found) == 1 else None
    return None
