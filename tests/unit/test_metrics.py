"""Histograms: right percentiles within their stated error, in constant memory."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from pipeline.metrics import Histogram, peak_rss_mb


@pytest.mark.parametrize("spread", [(0.01, 1), (1, 100), (50, 100_000)])
def test_percentiles_are_right_within_one_percent(spread):
    rng = random.Random(4)
    values = [rng.uniform(*spread) for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    for percent in (50, 95, 99):
        expected = ordered[-(-len(ordered) * percent // 100) - 1]
        assert histogram.percentile(percent) == pytest.approx(expected, rel=0.0101)
    assert histogram.max == max(values)
    assert histogram.total == pytest.approx(sum(values))


def test_an_empty_histogram_has_no_percentiles():
    assert Histogram().percentile(50) is None
    assert Histogram().summary(50, 99) == {"p50": None, "p99": None}


def test_a_percentile_never_exceeds_the_largest_value():
    histogram = Histogram()
    histogram.add(1.234)
    assert histogram.percentile(99) == pytest.approx(1.234, rel=0.0101)
    assert histogram.percentile(99) <= 1.234


def test_values_outside_the_range_are_counted_at_its_ends():
    histogram = Histogram()
    histogram.add(0.0)
    histogram.add(1e12)
    assert histogram.count == 2
    assert histogram.percentile(50) == 0.0
    assert histogram.percentile(100) > 9e6
    assert histogram.max == 1e12


def test_merged_histograms_know_all_samples():
    one, other = Histogram(), Histogram()
    one.add(1.0, times=3)
    other.add(100.0)
    one.merge(other)
    assert one.count == 4
    assert one.percentile(75) == pytest.approx(1.0, rel=0.0101)
    assert one.percentile(100) == pytest.approx(100.0, rel=0.0101)


def test_peak_memory_is_in_megabytes():
    assert 5 < peak_rss_mb() < 100_000


def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    """Linux's getrusage carries it over: a run begun by a large program looked large itself."""
    ballast = np.ones(40_000_000)  # 320 MB, resident
    code = "from pipeline.metrics import peak_rss_mb; print(peak_rss_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_rss_mb() > ballast.nbytes / 1e6
    assert float(done.stdout) < 200
