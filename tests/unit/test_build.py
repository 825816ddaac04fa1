"""From a configuration to a plan: kinds, names, options, order, and what cannot work."""

from __future__ import annotations

import pytest

from pipeline.problems import Problems
from pipeline.schema import load_config, parse_assignment
from pipeline.yamlfile import parse_yaml
from stages.catalog import TABLES
from stages.plan import make_plan

ENDS = "source: 'synthetic:shapes'\nsinks: ['null']\n"


def plan(text, flags=None, sets=()):
    problems = Problems()
    document = parse_yaml(text, "f.yaml") if text else None
    config = load_config(document, flags or {}, [parse_assignment(s) for s in sets], problems)
    made = make_plan(config, problems)
    assert (made is None) == bool(problems.texts)
    return made, problems.texts


def test_the_default_chain_with_the_built_in_model():
    made, problems = plan(ENDS)
    assert problems == []
    assert [part.name for part in made.stages] == ["preprocess", "infer", "nms", "overlay"]
    assert made.stages[1].config.model == "shapes"
    assert [part.name for part in made.sources] == ["shapes"]
    assert [part.name for part in made.sinks] == ["null"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[preprocess, nms, overlay]", "stage 'nms' accepts Inferred, but 'preprocess' produces P"),
        ("[infer]", "stage 'infer' accepts Prepared, but the source produces Frame"),
        ("[overlay, nms]", "stage 'nms' accepts Inferred, but 'overlay' produces Frame"),
        ("[preprocess, infer]", "sinks accept Frame, but 'infer', the last stage, produces Inf"),
        ("[preprocess, {infer: {name: net}}, overlay]", "accepts Frame, but 'net' produces Infer"),
        ("[preprocess, preprocess]", "stage 'preprocess' accepts Frame, but 'preprocess' produces"),
    ],
)
def test_an_order_that_cannot_work_is_said_with_line_and_remedy(stages, message):
    _, problems = plan(f"{ENDS}stages: {stages}\n")
    orders = [text for text in problems if " accepts " in text or " accept " in text]
    assert len(orders) == 1
    assert orders[0].startswith("f.yaml:3: ")
    assert message in orders[0]
    assert "preprocess, infer, nms" in orders[0] or "put '" in orders[0]


def test_the_missing_stage_is_named():
    _, problems = plan(f"{ENDS}stages: [preprocess, nms, overlay]\n")
    assert problems[0].endswith("put 'infer' between them")


def test_a_chain_without_a_model_needs_none():
    made, problems = plan("source: a.mp4\nsinks: ['null']\nstages: [overlay]\n")
    assert problems == []
    assert [part.name for part in made.stages] == ["overlay"]


def test_sources_other_than_synthetic_need_a_model():
    _, problems = plan("source: a.mp4\nsinks: ['null']\n")
    assert len(problems) == 1
    assert "no model: add --model FILE.onnx" in problems[0]
    _, problems = plan("sources: [a.mp4, 'synthetic:shapes']\nsinks: ['null']\n")
    assert "no model" in problems[0]


def test_shorthands_reach_the_infer_stage():
    made, _ = plan(f"{ENDS}model: a.onnx\ndevice: cpu\nbackend: onnx\n")
    infer = made.stages[1].config
    assert (infer.model, infer.device, infer.backend) == ("a.onnx", "cpu", "onnx")


def test_a_flag_outranks_the_stage_in_the_file():
    text = f"{ENDS}stages: [preprocess, {{infer: {{model: a.onnx}}}}, nms]\n"
    made, problems = plan(text, {"model": ("b.onnx", "--model")})
    assert problems == []
    assert made.stages[1].config.model == "b.onnx"


def test_the_same_said_twice_in_a_file_is_an_error():
    text = f"{ENDS}model: b.onnx\nstages: [preprocess, {{infer: {{model: a.onnx}}}}, nms]\n"
    _, problems = plan(text)
    assert problems == ["f.yaml:3: 'model' is given here and at f.yaml:4; remove one"]


def test_a_device_without_a_model_stage_is_an_error():
    _, problems = plan(f"{ENDS}device: cpu\nstages: [overlay]\n")
    assert problems == ["f.yaml:3: 'device' has no effect: the chain has no stage 'infer'"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "nms.scor_threshold=1",
            "--set nms.scor_threshold: unknown key 'scor_threshold' in stage 'n",
        ),
        (
            "nms.score_threshold=2",
            "--set nms.score_threshold: 'score_threshold' of stage 'nms' is 2",
        ),
        (
            "nsm.score_threshold=0.5",
            "--set nsm.score_threshold: 'nsm' is not known; did you mean 'n",
        ),
        ("video.crf=20", "--set video.crf: 'video' is not known"),
        ("null.x=20", "--set null.x: unknown key 'x' in sink 'null' (known keys: kind, name)"),
    ],
)
def test_set_is_checked_against_the_kind(assignment, message):
    _, problems = plan(ENDS, sets=[assignment])
    assert len(problems) == 1
    assert problems[0].startswith(message)


def test_set_finds_stages_by_kind_and_by_name_and_sources_and_sinks_too():
    text = (
        "source: 'synthetic:shapes?seed=1'\nsinks: [{kind: jsonl, path: a.jsonl, name: lines}]\n"
        "stages: [preprocess, infer, nms, {overlay: {name: one}}, {overlay: {name: two}}]\n"
    )
    sets = ["nms.score_threshold=0.7", "two.thickness=5", "lines.path=b.jsonl", "synthetic.seed=9"]
    made, problems = plan(text, sets=sets)
    assert problems == []
    assert made.stages[2].config.score_threshold == 0.7
    assert [made.stages[i].config.thickness for i in (3, 4)] == ["auto", 5]
    assert made.sinks[0].config.path == "b.jsonl"
    assert made.sources[0].config.seed == 9


def test_set_of_a_kind_that_is_there_twice_asks_for_names():
    _, problems = plan(f"{ENDS}stages: [overlay, overlay]\n", sets=["overlay.thickness=3"])
    assert "'overlay' fits 2 parts of this run" in problems[0]


def test_names_are_made_unique_over_all_parts():
    text = "sources: [a/clip.mp4, b/clip.mp4, overlay.mp4]\nsinks: ['null', 'null']\n"
    made, problems = plan(f"{text}stages: [overlay, overlay]\n")
    assert problems == []
    assert [p.name for p in made.stages] == ["overlay", "overlay-2"]
    assert [p.name for p in made.sources] == ["clip", "clip-2", "overlay-3"]
    assert [p.name for p in made.sinks] == ["null", "null-2"]


def test_a_name_given_twice_is_an_error():
    _, problems = plan(f"{ENDS}stages:\n - {{overlay: {{name: a}}}}\n - {{overlay: {{name: a}}}}\n")
    assert problems == ["f.yaml:5: the name 'a' is taken (first at f.yaml:4); choose another"]


def test_unknown_kinds_name_the_known_ones():
    text = "source: {kind: fiel}\nstages: [preproces]\nsinks: [{vidoe: {}}]\n"
    _, problems = plan(text)
    assert len(problems) == 3
    for problem, near in zip(problems, ("file", "preprocess", "video"), strict=True):
        assert f"did you mean '{near}'" in problem
        assert near in problem.partition("known ")[2]


def test_without_a_sink_a_window_where_there_is_a_screen(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    made, _ = plan("source: 'synthetic:shapes'\n")
    assert [part.kind.name for part in made.sinks] == ["window"]
    monkeypatch.delenv("DISPLAY")
    _, problems = plan("source: 'synthetic:shapes'\n")
    assert problems[0].startswith("no output, and no screen for a window: add -o SINK")


def test_a_run_without_a_source_says_what_one_is():
    _, problems = plan("sinks: ['null']\n")
    assert problems[0].startswith("no source: give a video file")


def test_overwrite_reaches_the_sinks_that_know_it():
    sinks = "sinks: [a.jsonl, {kind: jsonl, path: b.jsonl, overwrite: no}]"
    made, _ = plan(f"source: 'synthetic:shapes'\n{sinks}\noverwrite: true\n")
    assert [part.config.overwrite for part in made.sinks] == [True, False]


def test_the_effective_configuration_is_json_with_all_defaults():
    import json

    made, _ = plan(ENDS)
    effective = json.loads(json.dumps(made.effective()))
    assert effective["stages"][2]["kind"] == "nms"
    assert "score_threshold" in effective["stages"][2]
    assert effective["queues"]["capacity"] == 4


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role, kinds in TABLES.items() for name in kinds]
)
def test_every_kind_of_the_catalog_is_there_and_described(role, name):
    kind = TABLES[role][name]
    fields = kind.config_class().model_fields
    assert all(field.description for field in fields.values()), f"{name} has undescribed options"
    component = kind.component_class()
    if role == "stage":
        assert component.accepts
        assert component.produces
