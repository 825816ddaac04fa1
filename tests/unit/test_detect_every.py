"""`infer.detect_every`: which frames are inferred, how the others pass, what they say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.problems import Problems
from pipeline.schema import load_config
from pipeline.stage import RunContext
from pipeline.tracks import Crossing, Tracks, ZoneState
from pipeline.yamlfile import parse_yaml
from stages.infer import InferConfig, InferStage
from stages.nms import NmsConfig, NmsStage
from stages.plan import make_plan
from stages.preprocess import PreprocessConfig, PreprocessStage
from stages.sinks.record import record_line
from tests.helpers.models import FakeModel, frames

TABLE = np.array([[4, 4, 12, 12, 0.9, 0]], np.float32)


class SeeingModel(FakeModel):
    """Finds one box in every picture."""

    def run(self, tensors):
        self.runs.append(len(tensors))
        return [{"rows": TABLE} for _ in tensors]


def chain(every, *, batch=1):
    model = SeeingModel()
    stages = [
        PreprocessStage(PreprocessConfig(), "preprocess", model, every),
        InferStage(InferConfig(batch=batch), "infer", model),
        NmsStage(NmsConfig(), "nms", model),
    ]
    for stage in stages:
        stage.open(RunContext())
    model.runs.clear()
    return stages, model


def send(stages, items):
    for stage in stages:
        size = stage.batching.max_size
        items = [
            out
            for start in range(0, len(items), size)
            for out in stage.process(items[start : start + size])
        ]
    return items


def inferred(items):
    return [item.inferred for item in items]


@pytest.mark.parametrize(("every", "batch"), [(1, 1), (3, 1), (3, 4), (2, 3)])
def test_every_nth_frame_is_inferred_and_the_others_pass(every, batch):
    stages, model = chain(every, batch=batch)
    given = frames(10)
    out = send(stages, given)
    assert [item.id.seq for item in out] == list(range(10))
    assert inferred(out) == [k % every == 0 for k in range(10)]
    assert [item.detections is not None for item in out] == inferred(out)
    assert all(item.image is source.image for item, source in zip(out, given, strict=True))
    if batch == 1:
        assert model.runs == [1] * sum(inferred(out))
    else:
        assert set(model.runs) == {batch}, "the shape of a batch depends on who is in it"


def test_streams_count_for_themselves_and_a_jump_counts_anew():
    stages, _ = chain(3)
    one = frames(6)
    other = [replace(item, id=replace(item.id, stream="t")) for item in frames(6)]
    out = send(stages, [item for pair in zip(one, other, strict=True) for item in pair])
    assert inferred(out[0::2]) == inferred(out[1::2]) == [True, False, False] * 2
    stages, _ = chain(3)
    items = frames(8)
    items[2] = replace(items[2], discontinuity=True)
    items[4:] = [replace(item, id=replace(item.id, epoch=1)) for item in items[4:]]
    assert inferred(send(stages, items)) == [True, False, True, False, True, False, False, True]


def test_counting_is_of_frames_that_arrive():
    """A live run that drops every second frame still has its share inferred."""
    stages, _ = chain(2)
    assert inferred(send(stages, frames(12)[1::2])) == [True, False] * 3


def test_json_lines_say_what_was_not_inferred():
    (item,) = frames(1)
    assert "inferred" not in json.loads(record_line(item))
    assert json.loads(record_line(replace(item, inferred=False)))["inferred"] is False


def test_json_lines_tell_crossings_and_zones():
    (item,) = frames(1)
    zones = (ZoneState("yard", ((0, 0), (1, 0), (1, 1)), {3: 1.23456}), ZoneState("door", (), {}))
    tracks = Tracks(0.0, {}, (Crossing("gate", "in", 3, "car"),), (), zones)
    record = json.loads(record_line(replace(item, tracks=tracks)))
    assert record["crossings"] == [
        {"line": "gate", "direction": "in", "track_id": 3, "class_name": "car"}
    ]
    assert record["zones"] == {"yard": [{"track_id": 3, "dwell_s": 1.235}], "door": []}
    assert {"crossings", "zones"}.isdisjoint(
        json.loads(record_line(replace(item, tracks=Tracks(0.0, {}))))
    )


def problems_of(stages):
    problems = Problems()
    text = f"source: synthetic:shapes\nsinks: ['null']\nstages: {stages}\n"
    make_plan(load_config(parse_yaml(text, "run.yaml"), {}, [], problems), problems)
    return problems.texts


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ("[preprocess, {infer: {detect_every: 2}}, nms, track, {overlay: {trails: 3}}]", ""),
        ("[preprocess, {infer: {detect_every: 2}}, nms]", "put the stage 'track' behind 'nms'"),
        ("[preprocess, infer, nms, {overlay: {trails: 1}}]", "put 'track' before it"),
        (
            "[preprocess, infer, nms, {track: {trail_s: 1}}, {overlay: {trails: 2}}]",
            "'trails' of stage 'overlay' is 2 s, but frames come with 1 s of each path; "
            "raise 'track.trail_s'",
        ),
        (
            "[preprocess, infer, nms, {track: {lines: [{name: a, begin: [0, 0], end: [1, 1]}]}}]",
            "unknown key 'begin' in 'lines.0' of stage 'track'",
        ),
        (
            "[preprocess, infer, nms, {track: {lines: [{name: a, start: [0, 9], end: [1, 1]}]}}]",
            "'lines.0.start.1' of stage 'track' is 9: it should be less than or equal to 1",
        ),
    ],
)
def test_what_the_plan_says(stages, text):
    told = problems_of(stages)
    assert bool(told) is bool(text)
    assert not text or any(text in line for line in told), told
    assert all(line.startswith("run.yaml:3") for line in told)
