"""The timestamp rules of `stages.sources.timeline`, case by case."""

import itertools
import random

import pytest

from stages.sources.timeline import Timeline


def run(stamps, *, step=40, reorder=0, duration=None):
    timeline = Timeline(step=step, reorder=reorder)
    out = [done for k, pts in enumerate(stamps) for done in timeline.push(k, pts, duration)]
    return out + list(timeline.flush())


def pts(stamps, **options):
    out = run(stamps, **options)
    assert [s.item for s in out] == list(range(len(stamps)))
    return [s.pts for s in out]


@pytest.mark.parametrize(
    "stamps",
    [[], [0], [7], [0, 40, 80], [-80, -40, 0], [0, 1, 500, 501, 100_000], [3_000_000, 3_000_001]],
)
def test_good_timestamps_pass_untouched(stamps):
    out = run(stamps, duration=40)
    assert [s.pts for s in out] == stamps
    assert not any(s.repaired or s.discontinuity for s in out)
    assert all(s.duration == 40 for s in out)


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([0, 40, 40, 80, 120], [0, 40, 60, 80, 120]),  # repeated, room before the next
        ([0, 1, 1, 2, 10], [0, 1, 2, 3, 10]),  # repeated, no room: recovers at the gap
        ([0, 40, 40, 40, 80, 120], [0, 40, 45, 62, 80, 120]),  # three times the same
        ([0, 40, 20, 120, 160], [0, 40, 80, 120, 160]),  # one goes back alone
        ([0, 40, None, 120], [0, 40, 80, 120]),  # missing in the middle
        ([0, 40, None, 60, 100], [0, 40, 50, 60, 100]),  # missing, and the next is near
        ([None, 80, 120], [40, 80, 120]),  # missing at the start
        ([0, 40, None], [0, 40, 80]),  # missing at the end
        ([None, None, None], [0, 40, 80]),  # none at all
        ([None, None, 200, 240], [0, 40, 200, 240]),
    ],
)
def test_missing_repeated_and_backward_timestamps_are_repaired(stamps, expected):
    assert pts(stamps) == expected


def test_repairs_are_counted_one_by_one():
    assert [s.repaired for s in run([0, 40, 40, 80, None])] == [False, False, True, False, True]


def test_a_repaired_frame_claims_no_duration():
    assert [s.duration for s in run([0, 40, 40, 80], duration=40)] == [40, 40, None, 40]


def test_a_clock_that_starts_over_continues_the_timeline():
    out = run([1000, 1040, 1080, 0, 40, 80], duration=40)
    assert [s.pts for s in out] == [1000, 1040, 1080, 1120, 1160, 1200]
    assert [s.discontinuity for s in out] == [False, False, False, True, False, False]
    assert sum(s.repaired for s in out) == 1


def test_two_splices_add_up():
    assert pts([0, 40, 80, 0, 40, 80, 0, 40]) == [0, 40, 80, 120, 160, 200, 240, 280]


def test_avi_with_b_frames_gets_its_times_in_display_order():
    # Display order of I B B P ... when every picture has the time of its place in the file.
    out = run([1, 4, 3, 5, 2, 8, 7, 9, 6], step=1, reorder=16)
    assert [s.item for s in out] == list(range(9))
    assert [s.pts for s in out] == list(range(1, 10))
    assert [s.repaired for s in out] == [False, True, False, True, True, True, False, True, True]


def test_the_window_is_as_wide_as_it_is_told():
    late = [1, 2, 3, 4, 0]  # displaced by four
    assert pts(late, step=1, reorder=4) == [0, 1, 2, 3, 4]
    assert pts(late, step=1, reorder=3) != [0, 1, 2, 3, 4]


def test_any_input_comes_out_complete_in_order_and_strictly_increasing():
    rng = random.Random(7)
    for _ in range(300):
        stamps = [rng.choice([None, rng.randrange(-50, 400)]) for _ in range(rng.randrange(1, 40))]
        out = pts(stamps, step=rng.randrange(1, 60), reorder=rng.choice([0, 0, 3, 16]))
        assert all(b > a for a, b in itertools.pairwise(out)), stamps


def test_nothing_is_held_longer_than_needed():
    timeline = Timeline(step=1)
    assert list(timeline.push("a", 0)) == []
    assert [s.item for s in timeline.push("b", 1)] == ["a"]
    assert [s.item for s in timeline.flush()] == ["b"]
    assert list(timeline.flush()) == []


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="step=0"):
        Timeline(step=0)
