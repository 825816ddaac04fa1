"""The shape of a run configuration: merging file, flags and --set, and saying what is wrong."""

from __future__ import annotations

import pytest
from pydantic import Field

from pipeline.config import Config
from pipeline.errors import ConfigError, UsageError
from pipeline.problems import Origins, Problems, did_you_mean, explain
from pipeline.schema import Settings, load_config, parse_assignment, parse_entry
from pipeline.yamlfile import parse_yaml


def load(text="", flags=None, sets=()):
    problems = Problems()
    document = parse_yaml(text, "run.yaml") if text else None
    config = load_config(document, flags or {}, [parse_assignment(s) for s in sets], problems)
    return config, problems.texts


def test_an_empty_configuration_has_the_default_chain_and_no_ends():
    config, problems = load()
    assert problems == []
    assert [stage.kind for stage in config.stages] == ["preprocess", "infer", "nms", "overlay"]
    assert (config.sources, config.sinks) == ((), ())
    assert config.settings.queues.capacity == 4
    assert config.settings.mode == "auto"


def test_flags_outrank_the_file_and_set_outranks_both():
    text = "source: a.mp4\nmode: live\nmax_frames: 1\nqueues: {capacity: 2}\n"
    flags = {"sources": (["b.mp4"], ""), "mode": ("offline", "--offline"), "max_frames": ("5", "x")}
    config, problems = load(text, flags, ["max_frames=7", "queues.capacity=8"])
    assert problems == []
    assert [s.address for s in config.sources] == ["b.mp4"]
    assert config.settings.mode == "offline"
    assert config.settings.max_frames == 7
    assert config.settings.queues.capacity == 8


def test_a_bare_number_as_source_is_a_camera():
    config, _ = load("source: 0\n")
    assert config.sources[0].address == "0"


@pytest.mark.parametrize(
    ("text", "kind", "name", "options", "option_path"),
    [
        ("stages: [nms]", "nms", None, {}, ("stages", 0, "x")),
        ("stages: [{nms: {a: 1}}]", "nms", None, {"a": 1}, ("stages", 0, "nms", "x")),
        ("stages: [{nms: }]", "nms", None, {}, ("stages", 0, "nms", "x")),
        ("stages: [{kind: nms, name: n, a: 1}]", "nms", "n", {"a": 1}, ("stages", 0, "x")),
        ("stages: [{nms: {name: 2, a: 1}}]", "nms", "2", {"a": 1}, ("stages", 0, "nms", "x")),
    ],
)
def test_the_ways_to_write_a_stage(text, kind, name, options, option_path):
    config, problems = load(text)
    assert problems == []
    (stage,) = config.stages
    assert (stage.kind, stage.name, dict(stage.options)) == (kind, name, options)
    assert stage.option_path("x") == option_path


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (None, "expected a name or a map"),
        ("", "expected a name or a map"),
        ([1], "expected a name or a map"),
        (True, "expected a name or a map"),
        ({}, "expected a name or a map"),
        ({"nms": 3}, "expected a map of its options"),
        ({"kind": 3}, "expected a word"),
        ({"nms": None, "score_threshold": 0.4}, "indent the options below 'nms:'"),
        ({"nms": {}, "infer": {}}, "no 'kind'"),
        ({"nms": {"name": "a/b"}}, "expected letters, digits"),
        ({"nms": {"name": ""}}, "expected letters, digits"),
    ],
)
def test_entries_that_are_no_component(entry, complaint):
    component, text = parse_entry(entry, ("stages", 0), addressable=False)
    assert component is None
    assert complaint in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sorce: a.mp4", "run.yaml:1: unknown key 'sorce' in the configuration; did you mean"),
        ("queues:\n  capacty: 3", "run.yaml:2: unknown key 'capacty' in 'queues' of the confi"),
        ("queues: {capacity: many}", "run.yaml:1: 'queues.capacity' of the configuration is 'man"),
        ("queues: {capacity: 0}", "greater than or equal to 1"),
        ("queues: 3", "'queues' of the configuration is 3"),
        ("mode: fast", "'auto', 'live' or 'offline'"),
        ("device: gpu", "'device' of the configuration is 'gpu'"),
        ("duration_s: -1", "greater than 0"),
        ("duration_s: .inf", "finite"),
        ("max_frames: 0", "greater than or equal to 1"),
        ("stages: nms", "run.yaml:1: 'stages' of the configuration is 'nms'"),
        ("source: a\nsources: [b]", "run.yaml:2: give either 'source' or 'sources'"),
        ("- a", "run.yaml: expected a mapping of keys"),
        ("source: [a, b]", "run.yaml:1: this source entry is ['a', 'b']"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, message):
    _, problems = load(text)
    assert len(problems) == 1
    assert message in problems[0]


def test_all_problems_are_found_at_once():
    _, problems = load("sorce: a\nqueues: {capacity: 0}\nmode: x\nstages: [3.5]\n")
    assert [text.split(":")[1] for text in sorted(problems)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mdoe=live", "--set mdoe: unknown key 'mdoe'; did you mean 'mode'?"),
        ("queues.capacty=3", "--set queues.capacty: unknown key 'capacty'"),
        ("queues.capacity=x", "--set queues.capacity: 'queues.capacity' of"),
        ("stages.nms=3", "--set stages.nms: 'stages' cannot be set from here"),
    ],
)
def test_set_is_checked_like_the_file(text, message):
    _, problems = load("source: a.mp4\n", sets=[text])
    assert len(problems) == 1
    assert problems[0].startswith(message)


@pytest.mark.parametrize("text", ["nms", "=3", "nms.=3", ".x=3", "", "nms.x=[1"])
def test_set_needs_a_key_and_a_value(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_assignment(text)


def test_set_of_a_component_is_left_for_the_catalog():
    config, _ = load(sets=["nms.score_threshold=0.4"])
    (assignment,) = config.assignments
    assert (assignment.keys, assignment.value) == (("nms", "score_threshold"), 0.4)


def test_sizes_may_be_written_with_a_unit():
    config, _ = load("queues: {max_bytes: 64MiB}")
    assert int(config.settings.queues.max_bytes) == 64 * 1024 * 1024


class Inner(Config):
    size: int = Field(default=1, description="A size.")


class Outer(Config):
    path: str = Field(description="Where.")
    inner: Inner = Field(default_factory=Inner, description="More.")
    text_px: int | str = Field(default=1, description="Either.")
    flags: list[int] = Field(default_factory=list, description="Several.")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "f:1: sink 'x' needs the key 'path' (Where)"),
        (
            {"path": "a", "inner": {"siez": 1}},
            "f:1: unknown key 'siez' in 'inner' of sink 'x'; did",
        ),
        ({"path": "a", "inner": {"size": "b"}}, "f:1: 'inner.size' of sink 'x' is 'b': it should"),
        ({"path": "a", "text_px": [1]}, "f:1: 'text_px' of sink 'x' is [1]: it should be a valid"),
        ({"path": "a", "flags": [1, "b"]}, "f:1: 'flags.1' of sink 'x' is 'b': it should be"),
    ],
)
def test_pydantic_errors_become_sentences(value, message):
    from pydantic import ValidationError

    problems = Problems()
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    origins = Origins(parse_yaml("sinks: [{}]", "f"))
    explain(caught.value, Outer, "sink 'x'", ("sinks", 0), origins, problems)
    assert len(problems.texts) == 1
    assert problems.texts[0].startswith(message)


def test_flags_and_lines_are_told_apart():
    origins = Origins(parse_yaml("a:\n  b: 1\n", "f"))
    assert origins.where(("a", "b")) == "f:2"
    origins.put(("a",), "--a")
    assert origins.where(("a", "b")) == "--a"
    assert Origins().where(("a",)) == ""


def test_credentials_are_masked_in_problems():
    problems = Problems()
    problems.add("run.yaml:3", "cannot use rtsp://me:secret@cam/1")
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert "secret" not in str(caught.value)
    assert "cam/1" in str(caught.value)


def test_problems_without_a_place_are_usage_errors():
    problems = Problems()
    problems.add("", "no source")
    with pytest.raises(UsageError) as caught:
        problems.raise_if_any()
    assert not isinstance(caught.value, ConfigError)


def test_did_you_mean_is_silent_about_what_is_far():
    assert did_you_mean("zzz", ["nms"]) == ""
    assert did_you_mean("nsm", ["nms"]) == "; did you mean 'nms'?"


def test_every_setting_has_a_description():
    assert all(field.description for field in Settings.model_fields.values())
