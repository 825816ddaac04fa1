"""The overlay: what it draws, where labels go, and inputs that must not crash or harm anything."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.detections import Detections, Mask
from pipeline.frame import Caption, Frame, FrameId, FrameTime
from pipeline.stage import RunContext
from stages import drawing
from stages.overlay import OverlayConfig, OverlayStage, Rate, clock_text

NAMES = (
    "person",
    "사람",
    "行人",
    "пешеход",
    "dog 🐕",
    "",
    "x" * 5000,
    "a\nb\0c",
    "\ud800",
    "e\u0301",
)
SECOND = 1_000_000_000


class FixedClock:
    def __init__(self, now_ns=0):
        self.at_ns = now_ns

    def now_ns(self):
        return self.at_ns

    def sleep(self, seconds):
        self.at_ns += round(seconds * SECOND)


def opened(clock=None, **config):
    stage = OverlayStage(OverlayConfig(**config), "overlay")
    stage.open(RunContext(clock=clock or FixedClock()))
    return stage


def detections(*boxes, class_id=None, score=0.9, **columns):
    n = len(boxes)
    return Detections(
        xyxy=np.array(boxes, np.float32).reshape(n, 4),
        score=np.full(n, score, np.float32),
        class_id=np.arange(n) % len(NAMES) if class_id is None else np.array(class_id, np.int64),
        class_names=NAMES,
        **columns,
    )


def frame(found=None, size_wh=(320, 240), value=128, **fields):
    image = np.full((size_wh[1], size_wh[0], 3), value, np.uint8)
    time = FrameTime(captured_ns=0, pts=90, time_base=Fraction(1, 90))
    return Frame(FrameId("cam", 0, 7), time, image, found, **fields)


def drawn(stage, item):
    (result,) = stage.process([item])
    return result


def canvas(size_wh=(640, 480), text_px=16):
    image = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    return drawing.Canvas(image, drawing.font(), line_px=2, text_px=text_px)


def changed(result, item):
    return (result.image != item.image).any(axis=2)


def test_input_is_not_written_and_all_else_is_kept():
    item = frame(detections((50, 60, 150, 200)))
    item.image.setflags(write=False)
    result = drawn(opened(), item)
    assert (item.image == 128).all()
    assert (result.id, result.time, result.detections) == (item.id, item.time, item.detections)
    assert result.image.flags.c_contiguous
    assert changed(result, item).any()


def test_a_view_that_is_not_contiguous_is_drawn_on():
    item = frame(detections((50, 60, 150, 200)))
    flipped = replace(item, image=item.image[:, ::-1])
    assert np.array_equal(drawn(opened(), flipped).image, drawn(opened(), item).image)


@pytest.mark.parametrize("found", [None, Detections.empty(NAMES)], ids=["none", "empty"])
def test_with_nothing_to_draw_the_frame_passes_unchanged(found):
    item = frame(found)
    assert drawn(opened(), item) is item


def test_process_before_open_says_so():
    with pytest.raises(RuntimeError, match="overlay: process was called before open"):
        OverlayStage(OverlayConfig(), "overlay").process([frame(detections((1, 1, 50, 50)))])


def test_open_close_open_works_and_close_twice_is_fine():
    stage = opened()
    stage.close()
    stage.close()
    stage.open(RunContext())
    assert drawn(stage, frame(detections((10, 10, 99, 99)))).image.shape == (240, 320, 3)


def test_box_lines_lie_on_the_edges_in_the_class_colour():
    item = frame(detections((50, 60, 150, 200), class_id=[0]))
    image = drawn(opened(labels=False), item).image
    color = drawing.color_of(0)
    # 2 px wide, centred on the continuous edges 50, 60, 150, 200: one pixel to each side.
    for row, column in ((59, 100), (60, 100), (199, 100), (200, 100)):
        assert tuple(image[row, column]) == color
    for row, column in ((130, 49), (130, 50), (130, 149), (130, 150)):
        assert tuple(image[row, column]) == color
    # The dark rim on both sides, then the picture again.
    assert [tuple(image[r, 100]) for r in (58, 61)] == [drawing._RIM] * 2
    assert [tuple(image[r, 100]) for r in (57, 62)] == [(128, 128, 128)] * 2
    assert (image[63:198, 53:148] == 128).all()


@pytest.mark.parametrize("value", [0, 60, 128, 200, 255])
def test_a_box_is_visible_on_any_gray(value):
    for class_id in range(40):
        color = np.array(drawing.color_of(class_id), int)
        # Either the line or its rim differs clearly from the ground.
        assert max(abs(color - value).max(), abs(np.array(drawing._RIM) - value).max()) > 90


def test_a_small_object_is_not_filled_by_a_thick_line():
    item = frame(detections((100, 100, 112, 112)), size_wh=(3840, 2160))
    image = drawn(opened(labels=False), item).image
    assert (image[104:108, 104:108] == 128).all()


def test_boxes_partly_outside_are_closed_at_the_border_and_those_outside_are_counted():
    stage = opened(labels=False)
    boxes = [(-50, -40, 60, 70), (400, 10, 500, 90), (30, 30, 30, 90), (-1e30, 100, 1e30, 200)]
    image = drawn(stage, frame(detections(*boxes))).image
    assert tuple(image[30, 0]) == drawing.color_of(0)
    assert tuple(image[0, 30]) == drawing.color_of(0)
    assert tuple(image[150, 319]) == drawing.color_of(3)
    assert stage.counters == {"boxes_outside": 2}


@pytest.mark.parametrize("size_wh", [(1, 1), (2, 500), (16, 16), (500, 3), (45, 34), (64, 48)])
@pytest.mark.parametrize("config", [{}, {"thickness": 100, "text_px": 400}, {"text_px": 6}])
def test_no_size_of_picture_crashes(size_wh, config):
    w, h = size_wh
    masks = (Mask(0, 0, np.ones((h, w), bool)), Mask(-3, -3, np.ones((9, 9), bool)))
    found = detections((0, 0, w, h), (-5, -5, 2, 2), masks=masks)
    caption = (Caption("two people cross", "test", FrameId("cam", 0, 0)),)
    show = ("stream", "frame", "time", "fps", "age")
    item = frame(found, size_wh, captions=caption)
    result = drawn(opened(show=show, **config), item)
    assert result.image.shape == (h, w, 3)


def test_an_empty_picture_passes():
    item = frame(detections((0, 0, 5, 5)), (0, 0))
    assert drawn(opened(), item) is item


def test_labels_left_out_of_a_tiny_picture_are_counted():
    stage = opened()
    drawn(stage, frame(detections((1, 1, 9, 9), (2, 2, 8, 8)), (16, 16)))
    assert stage.counters == {"labels_left_out": 2}


@pytest.mark.parametrize("name", range(len(NAMES)))
def test_any_name_is_drawn(name):
    # An unpaired surrogate, drawn as it is, ends the process (OpenCV 5.0.0, cv2.putText).
    item = frame(detections((50, 100, 150, 200), class_id=[name]))
    with_label = drawn(opened(), item)
    assert not np.array_equal(with_label.image, drawn(opened(labels=False), item).image)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\r\n\tb", "a b"),
        ("a\0b", "ab"),
        ("\ud800!", "?!"),
        ("e\u0301", "\u00e9"),
        ("a\u200db", "ab"),
        ("\u1112\u1161\u11ab", "한"),
    ],
)
def test_printable(text, shown):
    assert drawing.printable(text) == shown


def test_an_empty_label_without_score_draws_nothing():
    item = frame(detections((50, 100, 150, 200), class_id=[5]))
    without = drawn(opened(labels=False), item).image
    assert np.array_equal(drawn(opened(scores=False), item).image, without)


def test_a_thousand_detections():
    rng = np.random.default_rng(3)
    corners = rng.uniform(-20, 300, (1000, 4)).astype(np.float32)
    corners[:, 2:] = corners[:, :2] + rng.uniform(0, 60, (1000, 2))
    assert changed(drawn(opened(), item := frame(detections(*corners))), item).mean() > 0.5


def test_label_stands_above_its_box_and_inside_where_there_is_no_room():
    sheet = canvas()
    sheet.label((100, 200, 300, 300), "person", (0, 255, 0))
    rows = np.flatnonzero(sheet.image.any(axis=(1, 2)))
    assert rows.max() == 198  # the frame's outer edge is row 199
    sheet = canvas()
    sheet.label((100, 5, 300, 300), "person", (0, 255, 0))
    rows = np.flatnonzero(sheet.image.any(axis=(1, 2)))
    assert rows.min() == 4


@pytest.mark.parametrize("edges", [(600, 200, 640, 300), (0, 0, 640, 480), (630, 470, 640, 480)])
def test_label_stays_inside_the_picture(edges):
    sheet = canvas()
    x, y = sheet._place(edges, 150, 23)
    assert x >= 0
    assert y >= 0
    assert x + 150 <= 640
    assert y + 23 <= 480


def test_labels_of_equal_boxes_do_not_cover_each_other():
    sheet = canvas()
    places = [sheet._place((200, 200, 400, 300), 90, 23) for _ in range(4)]
    for index, (x, y) in enumerate(places):
        for x2, y2 in places[:index]:
            assert abs(x - x2) >= 90 or abs(y - y2) >= 23


def test_a_long_name_is_shortened_and_its_score_stays():
    sheet = canvas()
    texts = []
    sheet._text = lambda text, *rest: texts.append(text)
    sheet.label((10, 100, 300, 300), "w" * 300, (0, 255, 0), " 0.91")
    assert texts[0].endswith("… 0.91")
    columns = np.flatnonzero(sheet.image.any(axis=(0, 2)))
    assert columns.max() - columns.min() + 1 <= 320


@pytest.mark.parametrize(
    ("color", "ink"),
    [((0, 0, 0), 255), ((255, 255, 255), 0), ((255, 0, 0), 255), ((0, 255, 255), 0)],
)
def test_ink_is_the_more_contrasting(color, ink):
    assert drawing.ink_on(color) == (ink, ink, ink)


def test_colors_are_stable_and_differ_between_neighbours():
    colors = [drawing.color_of(i) for i in range(60)]
    assert len(set(colors)) == 60
    assert colors[0] == (75, 75, 255)  # BGR of 0xFF4B4B: class 0 stays red from release to release
    assert all(max(abs(p - q) for p, q in zip(a, b, strict=True)) > 40 for a, b in pairwise(colors))
    assert drawing.color_of(60) == colors[0]


@pytest.mark.parametrize(
    ("size_wh", "line", "text"),
    [
        ((64, 48), 1, 11),
        ((320, 240), 2, 11),
        ((1280, 720), 2, 16),
        ((1920, 1080), 3, 24),
        ((3840, 2160), 6, 48),
    ],
)
def test_sizes_follow_the_picture(size_wh, line, text):
    assert drawing.auto_line_px(size_wh) == line
    assert drawing.auto_text_px(size_wh) == text


def test_mask_tints_its_pixels_only():
    bits = np.zeros((40, 60), bool)
    bits[10:20, 5:50] = True
    found = detections((100, 50, 160, 90), class_id=[0], masks=(Mask(100, 50, bits),))
    image = drawn(opened(boxes=False, labels=False, opacity=0.5), item := frame(found)).image
    expected = item.image.copy()
    blend = [round(128 * 0.5 + c * 0.5 + 1e-9) for c in drawing.color_of(0)]
    expected[60:70, 105:150] = blend
    assert np.abs(image.astype(int) - expected).max() <= 1  # rounding of .5


def test_mask_reaching_out_of_the_picture_is_cut():
    found = detections((0, 0, 30, 30), masks=(Mask(-10, -20, np.ones((40, 40), bool)),))
    result = drawn(opened(boxes=False, labels=False), item := frame(found))
    assert changed(result, item)[:20, :30].all()
    assert changed(result, item).sum() == 600


def test_masks_can_be_turned_off():
    found = detections((0, 0, 30, 30), masks=(Mask(0, 0, np.ones((30, 30), bool)),))
    item = frame(found)
    assert drawn(opened(boxes=False, labels=False, masks=False), item) is item


def labels_of(stage, item, monkeypatch):
    texts = []
    monkeypatch.setattr(
        drawing.Canvas, "label", lambda self, e, text, c, tail="": texts.append(text + tail) or True
    )
    stage.process([item])
    return texts


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        ({}, ["person 0.91", "#3 사람 0.91"]),
        ({"scores": False}, ["person", "#3 사람"]),
        ({"track_ids": False}, ["person 0.91", "사람 0.91"]),
    ],
)
def test_label_texts(config, texts, monkeypatch):
    found = detections((0, 0, 9, 9), (9, 9, 99, 99), score=0.912, track_id=np.array([-1, 3]))
    assert labels_of(opened(**config), frame(found), monkeypatch) == texts


def figures_of(stage, item):
    return stage._figures(item)


def test_header_figures():
    clock = FixedClock(5 * SECOND + 42_900_000)
    stage = opened(clock, show=("stream", "frame", "time", "fps", "age"))
    item = replace(frame(), time=FrameTime(5 * SECOND, 3723_004, Fraction(1, 1000)))
    assert figures_of(stage, item) == ["cam", "frame 7", "1:02:03.004", "-- fps", "age 42 ms"]
    clock.sleep(12)
    later = replace(item, id=FrameId("cam", 2, 8), time=FrameTime(5 * SECOND, None, Fraction(1)))
    assert figures_of(stage, later) == ["cam", "frame 2:8", "time --", "0.1 fps", "age 12.0 s"]


def test_header_is_drawn_without_detections():
    item = frame()
    assert changed(drawn(opened(show=("frame",)), item), item)[:20, :20].any()


def test_rate_counts_frames_over_time_not_the_mean_of_rates():
    rate = Rate()
    now, result = 0, rate.tick(0)
    assert result is None
    # Bursts: 1 ms and 99 ms in turn are 20 frames a second; the mean of instant rates is 505.
    for _ in range(40):
        for gap_ms in (1, 99):
            now += gap_ms * 1_000_000
            result = rate.tick(now)
    assert result == pytest.approx(20, rel=0.03)


def test_rate_recovers_after_a_pause_and_forgets_it():
    rate = Rate()
    rate.tick(0)
    assert rate.tick(10 * SECOND) == pytest.approx(0.1)
    for step in range(1, 61):
        result = rate.tick(10 * SECOND + step * SECOND // 25)
    # 2.4 s later the pause is out of the window.
    assert result == pytest.approx(25, rel=0.02)
    for step in range(1, 61):
        result = rate.tick(12_400_000_000 + step * SECOND // 10)
    # At 10 frames a second now: 2 s hold no frame of the faster time.
    assert result == pytest.approx(10, rel=0.02)


def test_rate_of_two_frames_at_the_same_time_is_unknown():
    rate = Rate()
    rate.tick(5)
    assert rate.tick(5) is None


def test_streams_have_rates_of_their_own():
    clock = FixedClock()
    stage = opened(clock, show=("fps",))
    other = replace(frame(), id=FrameId("other", 0, 0))
    figures_of(stage, frame())
    clock.sleep(1)
    assert figures_of(stage, other) == ["-- fps"]
    assert figures_of(stage, frame()) == ["1.0 fps"]


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [(0, "0:00:00.000"), (-1500, "-0:00:01.500"), (360_000_007, "100:00:00.007")],
)
def test_clock_text(time_ms, text):
    assert clock_text(time_ms) == text


@pytest.mark.parametrize(
    "text", ["", "two people cross", "word " * 500, "가" * 500, "x" * 5000, "\ud800\0"]
)
def test_captions_wrap_into_at_most_three_lines_that_fit(text):
    sheet = canvas()
    lines = sheet.wrap(text)
    assert len(lines) <= 3
    assert all(sheet._measure(line, 16) <= 0.9 * 640 for line in lines)
    if len(text) > 100:
        assert lines[-1].endswith("…")
    elif text.isascii():
        assert " ".join(lines) == text


def test_captions_break_between_words():
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omikron"
    lines = canvas((200, 200)).wrap(words)
    assert all(word in words.split() for line in lines[:-1] for word in line.split())


def test_header_parts_go_to_more_lines_when_narrow():
    sheet = canvas((120, 200))
    lines = sheet.pack(["frame 12345", "0:00:01.000", "25.0 fps"])
    assert len(lines) == 3
    assert canvas().pack(["frame 1", "25.0 fps"]) == ["frame 1   25.0 fps"]


@pytest.mark.parametrize(
    "config",
    [
        {"boxs": True},
        {"opacity": 1.1},
        {"thickness": 0},
        {"thickness": "thin"},
        {"text_px": 5},
        {"show": ("age", "speed")},
    ],
)
def test_config_that_cannot_work_is_refused(config):
    with pytest.raises(ValidationError):
        OverlayConfig(**config)


def test_every_option_is_described():
    assert all(field.description for field in OverlayConfig.model_fields.values())


def test_importing_the_config_does_not_load_opencv():
    code = "import sys, stages.overlay; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
