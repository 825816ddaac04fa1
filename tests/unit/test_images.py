"""Natural order, patterns and options of the images source."""

import pytest
from pydantic import ValidationError

from stages.sources.images import ImagesConfig, natural_key


@pytest.mark.parametrize(
    "names",
    [
        ["img2", "img10"],
        ["a.png", "B.png", "c.png"],
        ["1.png", "9.png", "10.png", "100.png"],
        ["shot1-2", "shot1-10", "shot2-1"],
        ["x", "x1"],
        ["0001", "2", "0010"],
    ],
)
def test_numbers_in_names_count_as_numbers(names):
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == names


@pytest.mark.parametrize("fps", ["25", "12.5", "30000/1001", 30, 29.97])
def test_rates_are_fractions(fps):
    assert ImagesConfig(path="x", fps=fps).fps == str(fps)


@pytest.mark.parametrize("fps", ["0", "-1", "fast", "1/0", "", "inf", "nan"])
def test_impossible_rates_are_refused(fps):
    with pytest.raises(ValidationError, match=r"no rate|must be above 0"):
        ImagesConfig(path="x", fps=fps)
