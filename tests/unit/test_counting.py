"""Lines and zones: each crossing once, trembling not at all, and time inside by the clock."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import ValidationError

from stages.counting import Counts, LineConfig, LineCounter, ZoneConfig, ZoneCounter, contains

SQUARE = [(10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0)]


def crossings(points, *, start=(50, 0), end=(50, 100), band_px=2.0):
    line = LineCounter(start, end, band_px)
    return [crossed for xy in points if (crossed := line.update(1, xy))]


def walk(x1, x2, y=50.0, step=1.0):
    steps = int(abs(x2 - x1) / step)
    return [(x1 + (x2 - x1) * k / steps, y) for k in range(steps + 1)]


@pytest.mark.parametrize(
    ("start", "end", "move", "expected"),
    [
        # Seen from start to end, with y down: down the picture, left is where x is larger.
        ((50, 0), (50, 100), walk(30, 70), ["out"]),
        ((50, 100), (50, 0), walk(30, 70), ["in"]),
        ((50, 100), (50, 0), walk(70, 30), ["out"]),
        ((0, 50), (100, 50), [(20, 30), (20, 70)], ["in"]),
        ((100, 50), (0, 50), [(20, 30), (20, 70)], ["out"]),
    ],
)
def test_direction_is_from_left_to_right_seen_along_the_line(start, end, move, expected):
    assert crossings(move, start=start, end=end) == expected


def test_one_step_over_the_line_counts_like_many():
    assert crossings([(30, 50), (70, 50)]) == crossings(walk(30, 70)) == ["out"]


def test_there_and_back_is_one_of_each():
    assert crossings(walk(30, 70) + walk(70, 30)) == ["out", "in"]


def test_trembling_on_the_line_counts_nothing_and_a_trembling_crossing_once():
    rng = random.Random(1)

    def shaken(points):
        return [(x + rng.uniform(-1.9, 1.9), y) for x, y in points]

    still = shaken([(50, 50)] * 200)
    assert crossings([(30, 50), *still, (30, 50)]) == []
    assert crossings([(30, 50), *still, (70, 50)]) == ["out"]
    assert crossings(shaken(walk(30, 70, step=0.1))) == ["out"]
    # Without the band the same trembling is counted again and again.
    assert len(crossings([(30, 50), *still, (30, 50)], band_px=0)) > 50


def test_around_the_end_of_a_line_is_not_across_it():
    around = [(30, 50), (30, 120), (70, 120), (70, 50)]
    assert crossings(around) == []
    assert crossings([*around, (30, 50)]) == ["in"]


def test_a_track_that_begins_in_the_band_has_not_crossed():
    assert crossings([(50.5, 50), (49, 50), (30, 50)]) == []
    assert crossings([(50.5, 50), (30, 50), (70, 50)]) == ["out"]


def test_tracks_do_not_mix_and_are_forgotten():
    line = LineCounter((50, 0), (50, 100), 2)
    assert line.update(1, (30, 50)) is None
    assert line.update(2, (70, 50)) is None
    assert line.update(1, (70, 50)) == "out"
    line.keep([1])
    assert line.update(2, (30, 50)) is None
    assert line.update(1, (30, 50)) == "in"


@pytest.mark.parametrize(
    ("xy", "inside"),
    [
        ((20, 20), True),
        ((10.1, 29.9), True),
        ((9, 20), False),
        ((31, 20), False),
        ((20, 31), False),
    ],
)
def test_points_in_a_square(xy, inside):
    assert contains(SQUARE, xy) is inside


def test_a_notch_is_outside():
    notched = [(0.0, 0.0), (40.0, 0.0), (40.0, 40.0), (20.0, 10.0), (0.0, 40.0)]
    assert contains(notched, (20, 5))
    assert not contains(notched, (20, 20))
    assert contains(notched, (5, 20))


def test_dwell_is_time_and_not_frames():
    zone = ZoneCounter(SQUARE, 2)
    times = (0.0, 0.5, 0.6, 2.6)
    assert [zone.update(1, (20, 20), t) for t in times] == [
        (True, 0.0),
        (False, 0.5),
        (False, pytest.approx(0.1)),
        (False, 2.0),
    ]
    assert zone.dwell_s([1, 7]) == {1: pytest.approx(2.6)}
    assert zone.dwell_s([]) == {}


def test_visits_add_up_and_the_edge_does_not_tear_them_apart():
    zone = ZoneCounter(SQUARE, 2)
    entered = [
        zone.update(1, (x, 20), t)[0]
        for t, x in enumerate((20, 29, 31, 29, 31.9, 20, 40, 40, 20, 20))
    ]
    assert entered == [True, *[False] * 7, True, False]
    assert zone.dwell_s([1]) == {1: pytest.approx(5 + 1)}
    # Beside a corner the distance is to the corner.
    corner = ZoneCounter(SQUARE, 2)
    corner.update(1, (29, 29), 0)
    assert not corner.update(1, (31, 31), 1)[0]
    assert corner.dwell_s([1]) == {1: 1}
    corner.update(1, (31.6, 31.6), 2)
    assert math.dist((31.6, 31.6), (30, 30)) > 2
    assert corner.dwell_s([1]) == {}


def test_totals_by_class_and_shares_of_the_picture():
    counters = {}
    counts = Counts(
        "street",
        [LineConfig(name="door", start=(0.5, 1), end=(0.5, 0))],
        [ZoneConfig(name="yard", polygon=((0.5, 0), (1, 0), (1, 1), (0.5, 1)))],
        0.01,
        counters,
    )
    counts.begin((200, 100))
    for time_s, x in ((0.0, 50), (0.25, 150), (0.5, 150)):
        crossed = [
            crossing
            for track_id, name in ((1, "car"), (2, "person"), (3, "person"))
            for crossing in counts.update(track_id, name, (x, 50), time_s)
        ]
        assert [c.track_id for c in crossed] == ([1, 2, 3] if time_s == 0.25 else [])
    assert counters == {
        "street/door/in/car": 1,
        "street/door/in/person": 2,
        "street/yard/entered/car": 1,
        "street/yard/entered/person": 2,
        "street/yard/dwell_ms/car": 250,
        "street/yard/dwell_ms/person": 500,
    }
    (line,), (zone,) = counts.lines(), counts.zones([1, 3])
    assert (line.start, line.end) == ((100, 100), (100, 0))
    assert (line.crossed_in, line.crossed_out) == (3, 0)
    assert zone.dwell_s == {1: 0.25, 3: 0.25}
    counts.begin((400, 200))
    assert counts.lines()[0].start == (200, 200)
    assert counts.lines()[0].crossed_in == 3
    assert counts.zones([1])[0].dwell_s == {}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LineConfig(name="a", start=(0, 0.5), end=(0, 0.5)), "same point"),
        (lambda: LineConfig(name="a", start=(0, 0), end=(640, 0)), "less than or equal to 1"),
        (lambda: LineConfig(name="a/b", start=(0, 0), end=(1, 0)), "pattern"),
        (lambda: ZoneConfig(name="a", polygon=((0, 0), (1, 0))), "at least 3"),
    ],
)
def test_what_cannot_be_counted_at_is_refused(make, text):
    with pytest.raises(ValidationError, match=text):
        make()
