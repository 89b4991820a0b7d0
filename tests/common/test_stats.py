"""Intervals: what they contain, how often, and that pairing is by seed."""

import numpy as np
import pytest

from common import stats


def test_mean_lies_in_its_interval_and_the_interval_in_the_data() -> None:
    interval = stats.mean([3.0, 1.0, 4.0, 1.0, 5.0])
    assert interval.estimate == pytest.approx(2.8)
    assert 1 <= interval.low < 2.8 < interval.high <= 5
    assert interval == stats.mean([3.0, 1.0, 4.0, 1.0, 5.0])  # the same every time


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    interval = stats.mean(values.tolist(), resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(4000)
    assert interval.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert interval.high == pytest.approx(values.mean() + half, abs=half / 10)


def test_one_value_or_equal_values_are_a_point() -> None:
    assert stats.mean([2.0]) == stats.Interval(2.0, 2.0, 2.0)
    assert stats.mean([2.0, 2.0]) == stats.Interval(2.0, 2.0, 2.0)
    assert not stats.mean([2.0]).excludes_zero  # one seed shows nothing


def test_pairing_takes_out_what_the_seeds_share() -> None:
    shared = np.random.default_rng(1).normal(scale=100, size=8)
    one, other = shared + 1 + 0.01 * np.arange(8), shared
    difference = stats.paired_difference(one.tolist(), other.tolist())
    assert difference.estimate == pytest.approx(1.035)
    assert difference.excludes_zero
    shuffled = stats.paired_difference(one.tolist(), other[::-1].tolist())
    assert not shuffled.excludes_zero


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_difference([1.0, 2.0], [1.0])


def test_coverage_for_five_seeds_is_what_the_docstring_says() -> None:
    """Of 95 % percentile intervals over five normal values, about five in six contain the mean."""
    generator = np.random.default_rng(0)
    intervals = [stats.mean(generator.normal(size=5).tolist(), resamples=500) for _ in range(600)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.835, abs=0.04)


def test_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    """As Agarwal et al. 2021 define it: scipy's trimmed mean with a quarter cut off on both sides."""
    assert stats.interquartile_mean([900.0, 1.0, 2.0, 3.0, -500.0]).estimate == 2
    eight = stats.interquartile_mean([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 1e6])
    assert eight.estimate == (30 + 40 + 50 + 60) / 4
    assert eight.low < eight.estimate < eight.high
    single = stats.interquartile_mean([4.0])
    assert (single.low, single.high) == (4, 4)
