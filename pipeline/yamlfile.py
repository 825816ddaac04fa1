"""YAML with a memory: values together with the line each one was written on.

Reads the safe subset of YAML (no tags that build objects), with anchors and merge keys. A key that
is written twice in one mapping is an error, where plain loaders keep the last one silently. Pure
apart from reading the file; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top, e.g. ("stages", 2, "nms")."""

_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_MAP_TAG: Final = "tag:yaml.org,2002:map"
_LIST_TAG: Final = "tag:yaml.org,2002:seq"
# Aliases let a short file expand without bound ("billion laughs"); a run needs some hundred values.
_MAX_VALUES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file's content and where each value of it stands."""

    value: object
    """dicts with str keys, lists and scalars; None for an empty file."""
    name: str
    """How the file is called in messages."""
    lines: Mapping[KeyPath, int]
    """Line, from 1, of each mapping entry's key and of each list item, by its path."""

    def where(self, path: KeyPath) -> str:
        """Return `file:line` of the value at `path`, or of the nearest value around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return f"{self.name}:1"


def load_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or has duplicate keys; every text starts with
            the file, and with the line where there is one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """Return the values and lines of YAML `text`; `name` stands for the file in messages.

    Raises:
        ConfigError: not YAML, duplicate keys, keys that are not text, or tags that build objects.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.reason}") from None
    try:
        node = loader.get_single_node()
        reader = _Reader(loader, name)
        value = None if node is None else reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        told = error.problem or error.context or "it cannot be parsed"
        raise ConfigError(f"{name}:{line}: not valid YAML: {told}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}:1: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}:1: brackets or lists are nested too deeply") from None
    finally:
        loader.dispose()
    if reader.problems:
        raise ConfigError("\n".join(dict.fromkeys(reader.problems)))
    return Document(value, name, reader.lines)


def parse_value(text: str) -> object:
    """Return the value that `text` has in YAML: `0.4` a float, `true` a bool, `[1, 2]` a list.

    Raises:
        ConfigError: it is not a YAML value.
    """
    return parse_yaml(text, "value").value


@dataclass(slots=True)
class _Reader:
    """Turns nodes into values, noting lines and problems on the way."""

    loader: yaml.SafeLoader
    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    count: int = 0
    active: set[int] = field(default_factory=set)
    """ids of the nodes being read, to notice an alias inside its own anchor."""

    def read(self, node: Node, path: KeyPath) -> object:
        self.count += 1
        if self.count > _MAX_VALUES:
            raise ConfigError(f"{self.name}: more than {_MAX_VALUES} values once aliases expand")
        if id(node) in self.active:
            raise ConfigError(f"{self.name}:{_line(node)}: an alias refers to what contains it")
        self.active.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _MAP_TAG:
                return self._mapping(node, path)
            if isinstance(node, SequenceNode) and node.tag == _LIST_TAG:
                return self._sequence(node, path)
            return self._scalar(node)
        finally:
            self.active.discard(id(node))

    def _scalar(self, node: Node) -> object:
        value: Any = self.loader.construct_object(node, deep=True)
        return value

    def _sequence(self, node: SequenceNode, path: KeyPath) -> list[object]:
        values = []
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = _line(item)
            values.append(self.read(item, (*path, index)))
        return values

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, (key_node, value_node) in self._entries(node).items():
            self.lines[(*path, key)] = _line(key_node)
            result[key] = self.read(value_node, (*path, key))
        return result

    def _entries(self, node: MappingNode) -> dict[str, tuple[Node, Node]]:
        """Return the entries by key: those written here, over those merged in with `<<`."""
        own: dict[str, tuple[Node, Node]] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                for key, entry in self._merged(value_node).items():
                    merged.setdefault(key, entry)
                continue
            parsed = self._key(key_node)
            if parsed is None:
                continue
            if parsed in own:
                first = _line(own[parsed][0])
                self.problems.append(
                    f"{self.name}:{_line(key_node)}: key '{parsed}' is written twice "
                    f"(first on line {first}); remove one"
                )
                continue
            own[parsed] = (key_node, value_node)
        return {**merged, **own}

    def _merged(self, node: Node) -> dict[str, tuple[Node, Node]]:
        if id(node) in self.active:
            raise ConfigError(f"{self.name}:{_line(node)}: '<<' merges a mapping into itself")
        if isinstance(node, MappingNode):
            self.active.add(id(node))
            try:
                return self._entries(node)
            finally:
                self.active.discard(id(node))
        if isinstance(node, SequenceNode):
            result: dict[str, tuple[Node, Node]] = {}
            for item in node.value:
                for key, entry in self._merged(item).items():
                    result.setdefault(key, entry)
            return result
        self.problems.append(f"{self.name}:{_line(node)}: '<<' merges mappings, not single values")
        return {}

    def _key(self, node: Node) -> str | None:
        if isinstance(node, ScalarNode):
            return str(node.value)
        self.problems.append(f"{self.name}:{_line(node)}: a key must be a plain word")
        return None


def _line(node: Node) -> int:
    """Return a node's line as editors count, from 1 (PyYAML's marks count from 0)."""
    return int(node.start_mark.line) + 1
