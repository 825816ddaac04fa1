"""YAML with lines: duplicates are errors, merges work, every value knows its line."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.yamlfile import load_yaml, parse_value, parse_yaml

TEXT = """\
# a comment
source: clip.mp4
stages:
  - preprocess
  - nms:
      score_threshold: 0.4
      classes: [1, 2]
queues: {capacity: 2}
"""


def test_values_are_read_as_yaml_says():
    document = parse_yaml(TEXT, "run.yaml")
    assert document.value == {
        "source": "clip.mp4",
        "stages": ["preprocess", {"nms": {"score_threshold": 0.4, "classes": [1, 2]}}],
        "queues": {"capacity": 2},
    }


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("source",), 2),
        (("stages",), 3),
        (("stages", 0), 4),
        (("stages", 1, "nms"), 5),
        (("stages", 1, "nms", "score_threshold"), 6),
        (("stages", 1, "nms", "classes", 1), 7),
        (("queues", "capacity"), 8),
        (("queues", "missing"), 8),
        (("missing",), 1),
    ],
)
def test_every_value_knows_its_line_counted_from_1(path, line):
    assert parse_yaml(TEXT, "run.yaml").where(path) == f"run.yaml:{line}"


def test_a_key_written_twice_is_an_error_with_both_lines():
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n", "run.yaml")
    assert str(caught.value).splitlines() == [
        "run.yaml:6: key 'a' is written twice (first on line 1); remove one",
        "run.yaml:5: key 'c' is written twice (first on line 3); remove one",
    ]


def test_merge_keys_fill_in_and_own_keys_win():
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nx:\n  <<: [*base, *more]\n  a: 9\n"
    document = parse_yaml(text, "run.yaml")
    assert document.value["x"] == {"a": 9, "b": 2, "c": 4}  # type: ignore[index] # a map
    assert document.where(("x", "a")) == "run.yaml:5"
    assert document.where(("x", "c")) == "run.yaml:2"


def test_aliases_share_values():
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "f").value == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x\n  b: *x\n",
        "a: &x [*x]\n",
        "a: &x\n  <<: *x\n",
    ],
)
def test_an_alias_inside_its_own_anchor_is_an_error(text):
    with pytest.raises(ConfigError, match="f:"):
        parse_yaml(text, "f")


def test_aliases_that_multiply_without_bound_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("\n".join(lines), "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", r"f:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", r"f:2: not valid YAML"),
        ("a: !!python/object:os.system {}\n", r"f:1: not valid YAML: .*python"),
        ("a: *nothing\n", r"f:1: not valid YAML: .*undefined alias"),
        ("a: 1\n---\nb: 2\n", r"f:2: not valid YAML"),
        ("? [1, 2]\n: 3\n", r"f:1: a key must be a plain word"),
        ("<<: 3\n", r"f:1: '<<' merges mappings"),
        ("a: \x00", r"f:1: not valid YAML"),
    ],
)
def test_broken_yaml_names_file_and_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "f")


def test_words_that_yaml_takes_for_booleans_stay_words_as_keys():
    assert parse_yaml("on: 1\n2: x\n", "f").value == {"on": 1, "2": "x"}


def test_an_empty_file_has_no_value():
    assert parse_yaml("# nothing\n", "f").value is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.4", 0.4), ("true", True), ("[1, 2]", [1, 2]), ("word", "word"), ("", None), ("'7'", "7")],
)
def test_single_values(text, value):
    assert parse_value(text) == value


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        load_yaml(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"x\.yaml: not a UTF-8 text"):
        load_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfsource: a.mp4\n")
    assert load_yaml(path).value == {"source": "a.mp4"}
