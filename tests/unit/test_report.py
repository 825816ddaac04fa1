"""The report accounts for every frame, follows its schema, and holds no credentials."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pipeline.report import Report, build_report
from pipeline.runner import Pipeline
from tests.helpers.fakes import FakeStage, ListSink, ScriptedSource

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


def report_of(source, stages, sinks, **more):
    result = Pipeline([source], stages, sinks, live=source.live).run()
    report = build_report(result, config={"source": "rtsp://u:secret@h/x"}, **more)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report


def test_the_committed_schema_is_the_one_of_the_code(pytestconfig):
    assert json.loads(SCHEMA.read_text()) == Report.model_json_schema(), (
        "regenerate: python -m pipeline.report > docs/report.schema.json"
    )


def test_a_good_run_accounts_for_every_frame():
    report = report_of(ScriptedSource(12), [FakeStage("a")], [ListSink()])
    assert report["schema"] == 1
    assert report["mode"] == "offline"
    assert report["exit"] == {"code": 0, "reason": "end of stream"}
    stream = report["streams"]["cam"]
    assert (stream["frames_in"], stream["frames_out"]) == (12, 12)
    assert stream["dropped"] == {"full": 0, "stale": 0, "corrupt": 0}
    assert stream["age_ms"]["p99"] >= stream["age_ms"]["p50"] > 0
    assert list(report["stages"]) == ["cam", "a", "out"]
    assert list(report["queues"]) == ["source->a", "a->out"]
    assert report["queues"]["a->out"]["delivered"] == 12
    assert report["throughput"]["bottleneck"] in report["stages"]
    assert report["outputs"][0]["frames"] == 12
    assert report["failures"] == []


def test_a_failed_run_says_who_failed_where():
    report = report_of(ScriptedSource(12), [FakeStage("a", fail="process")], [ListSink()])
    assert report["exit"]["code"] == 1
    failure = report["failures"][0]
    assert (failure["stage"], failure["operation"], failure["frame"]) == ("a", "process", "cam/0/3")
    assert "scripted failure" in failure["message"]


def test_no_credentials_reach_the_report():
    report = report_of(
        ScriptedSource(1),
        [],
        [ListSink()],
        model={"uri": "http://bob:secret@host/m.onnx?token=secret"},
    )
    text = json.dumps(report)
    assert "secret" not in text
    assert "rtsp://***@h/x" in text


@pytest.mark.parametrize("field", ["streams", "exit", "queues"])
def test_the_schema_refuses_a_report_with_a_part_missing(field):
    report = report_of(ScriptedSource(1), [], [ListSink()])
    del report[field]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, json.loads(SCHEMA.read_text()))
