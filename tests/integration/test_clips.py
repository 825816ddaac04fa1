"""Every real clip through the program: frames, timestamps, duration and sound of what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import pytest

from tests.conftest import ASSETS, ROOT
from tests.helpers.media import probe

CLIPS = sorted((ASSETS / "video").rglob("*.*")) if ASSETS.is_dir() else []
BROKEN = {"decord_corrupted.mp4"}
"""Ends in exit 1 with what could be read: see `tests/faults`."""

ALSO_MKV = {
    "car-detection.mp4",
    "decord_flipping_a_pancake.mkv",
    "mediapipe_vp8_vorbis.mkv",
    "mediapipe_h264_aac.flv",
    "nasa_13013_rotated.mp4",
    "discard_first_keyframe.mp4",
    "vtest_gk.avi",
}


@pytest.fixture
def convert(tmp_path):
    """Run a clip through the program without a model: every stage but inference."""

    def run(clip, output, *more):
        report = tmp_path / "report.json"
        config = tmp_path / "plain.yaml"
        config.write_text("stages: [overlay]\n")
        command = [sys.executable, "run.py", "run", str(clip), "-c", str(config)]
        command += ["-o", str(tmp_path / output), "--report", str(report), "--quiet", *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done, json.loads(report.read_text()), tmp_path / output

    return run


@pytest.mark.assets
@pytest.mark.needs_ffmpeg
@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "container"),
    [(c, "mp4") for c in CLIPS if c.name not in BROKEN]
    + [(c, "mkv") for c in CLIPS if c.name in ALSO_MKV],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_clip_keeps_its_frames_times_duration_and_sound(clip, container, convert):
    # This clip has two video streams; the best one is the larger.
    before = probe(clip, stream=1 if clip.name == "nasa_13013.mp4" else 0)
    done, report, output = convert(clip, f"out.{container}")
    assert done.returncode == 0, done.stderr
    after = probe(output)
    (stream,) = report["streams"].values()
    assert stream["frames_in"] == stream["frames_out"] == before["frames"] == after["frames"]

    shift_s = Fraction(str(report["outputs"][0]["details"]["start_shift_s"]))
    found = [pts * after["time_base"] for pts in after["pts"]]
    stamps = before["pts"]
    if None in stamps:
        # An AVI with B-frames stores no presentation times, only a constant rate.
        stamps = [round(found[0] / before["time_base"]) + k for k in range(len(stamps))]
        assert before["time_base"] == 1 / before["rate"]
    expected = [pts * before["time_base"] + shift_s for pts in stamps]
    assert len(found) == len(expected)
    tick = after["time_base"]
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    # start_shift_s is a decimal in the report: a microsecond is what it may be off.
    assert worst <= tick + Fraction(1, 1_000_000), float(worst)
    assert found[0] == 0 or abs(found[0] - stamps[0] * before["time_base"]) <= tick

    frame_s = 1 / before["rate"]
    assert abs((found[-1] - found[0]) - (expected[-1] - expected[0])) <= tick
    length_s = after["duration_s"]
    if length_s is None:  # Matroska has one duration for all its tracks
        length_s = found[-1] - found[0] + (frame_s if before["duration_s"] is None else 0)
    if before["duration_s"] is not None and after["duration_s"] is not None:
        assert abs(length_s - before["duration_s"]) <= frame_s + tick
    check_sound(before, after, shift_s, report)


def check_sound(before, after, shift_s, report):
    """Copied tracks have the same packets, bit for bit and in time; none is lost without a word."""
    assert len(after["audio"]) == len(before["audio"])
    for index, (one, other) in enumerate(zip(before["audio"], after["audio"], strict=True)):
        if after["audio_codecs"][index] != before["audio_codecs"][index]:
            assert any("transcod" in note for note in report["notes"]), report["notes"]
            continue
        details = report["outputs"][0]["details"]
        if "removed" not in str(details):  # ADTS headers, which these containers cannot hold
            # Sound that goes on after the last picture ends with it.
            assert [md5 for _, md5 in other] == [md5 for _, md5 in one][: len(other)], details
        assert len(one) - len(other) <= 50
        bases = before["audio_time_bases"][index], after["audio_time_bases"][index]
        for (was, _), (now, _) in zip(one, other, strict=False):
            assert abs(was * bases[0] + shift_s - now * bases[1]) <= sum(bases)
