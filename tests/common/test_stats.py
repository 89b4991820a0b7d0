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
    assert stats.mean([2.0]) == stats.Interval(2.0, 2.0, 2.0, 1)
    assert stats.mean([2.0, 2.0]) == stats.Interval(2.0, 2.0, 2.0, 2)
    assert not stats.mean([2.0]).conclusive  # one seed shows nothing


def test_pairing_takes_out_what_the_seeds_share() -> None:
    shared = np.random.default_rng(1).normal(scale=100, size=8)
    one, other = shared + 1 + 0.01 * np.arange(8), shared
    difference = stats.paired_difference(one.tolist(), other.tolist())
    assert difference.estimate == pytest.approx(1.035)
    assert difference.conclusive
    shuffled = stats.paired_difference(one.tolist(), other[::-1].tolist())
    assert not shuffled.conclusive


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_difference([1.0, 2.0], [1.0])


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "coverage"), [(2, 0.5), (3, 0.75), (5, 0.835)])
def test_coverage_for_few_seeds_is_what_the_docstring_says(seeds: int, coverage: float) -> None:
    """Of 95 % percentile intervals over so few normal values, this share contains the mean."""
    generator = np.random.default_rng(0)
    intervals = [stats.mean(generator.normal(size=seeds).tolist(), resamples=500) for _ in range(600)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(coverage, abs=0.04)


@pytest.mark.parametrize(("seeds", "conclusive"), [(2, False), (4, False), (5, True)])
def test_nothing_is_concluded_from_fewer_than_five_values(seeds: int, conclusive: bool) -> None:
    values = [1.0 + 0.1 * seed for seed in range(seeds)]
    assert stats.mean(values).low > 0
    assert stats.mean(values).conclusive is conclusive
    assert stats.probability_of_improvement([values], [[0.0] * 9]).values == seeds


def test_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    """As Agarwal et al. 2021 define it: scipy's trimmed mean with a quarter cut off on both sides."""
    assert stats.interquartile_mean([900.0, 1.0, 2.0, 3.0, -500.0]).estimate == 2
    eight = stats.interquartile_mean([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 1e6])
    assert eight.estimate == (30 + 40 + 50 + 60) / 4
    assert eight.low < eight.estimate < eight.high
    single = stats.interquartile_mean([4.0])
    assert (single.low, single.high) == (4, 4)


def test_interquartile_mean_of_tasks_is_that_of_all_runs_together() -> None:
    """rliable's aggregate_iqm: the trimmed mean of the whole matrix of scores, tasks and seeds alike."""
    scores = np.random.default_rng(0).normal(size=(3, 8)) + np.array([[0.0], [5.0], [9.0]])
    ordered = np.sort(scores.ravel())
    assert stats.interquartile_mean(scores.tolist()).estimate == pytest.approx(ordered[6:18].mean())


def test_bootstrap_is_stratified_by_task() -> None:
    """Two tasks far apart with constant seeds: drawing within a task changes nothing, drawing across would."""
    point = stats.interquartile_mean([[1.0] * 5, [9.0] * 5])
    assert (point.low, point.high) == (5, 5)
    interval = stats.interquartile_mean([[1.0, 1.2, 0.8, 1.1], [9.0, 9.2, 8.8, 9.1]])
    assert 4.7 < interval.low < interval.estimate < interval.high < 5.4


def test_probability_of_improvement_counts_the_pairs_that_are_won() -> None:
    """rliable's definition: won pairs and half of the drawn ones, over all pairs, averaged over the tasks."""
    generator = np.random.default_rng(2)
    ours = [generator.integers(0, 6, size=5).tolist() for _ in range(3)]
    theirs = [generator.integers(0, 5, size=7).tolist() for _ in range(3)]
    by_task = [
        np.mean([(one > other) + 0.5 * (one == other) for one in x for other in y])
        for x, y in zip(ours, theirs, strict=True)
    ]
    interval = stats.probability_of_improvement(ours, theirs)
    assert interval.estimate == pytest.approx(np.mean(by_task))
    assert 0 <= interval.low < interval.estimate < interval.high <= 1
    opposite = stats.probability_of_improvement(theirs, ours)
    assert opposite.estimate == pytest.approx(1 - interval.estimate)


def test_probability_of_improvement_of_clear_cases() -> None:
    better, worse = [[5.0, 6.0, 7.0]], [[1.0, 2.0]]
    assert stats.probability_of_improvement(better, worse) == stats.Interval(1, 1, 1, 2)
    assert stats.probability_of_improvement(worse, worse).estimate == 0.5
    with pytest.raises(ValueError, match="1 tasks against 2"):
        stats.probability_of_improvement(better, [[1.0], [2.0]])


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (stats.Interval(717.4, 446.2, 989.9), "717 [446, 990]"),
        (stats.Interval(0.8768, 0.8751, 0.8790), "0.8768 [0.8751, 0.8790]"),
        (stats.Interval(-0.31, -0.5, 0.1), "−0.31 [−0.50, 0.10]"),
        (stats.Interval(0.8768, 0.8768, 0.8768), "0.8768"),
        (stats.Interval(0, 0, 0), "0"),
    ],
)
def test_intervals_are_written_with_the_digits_they_carry(interval: stats.Interval, text: str) -> None:
    assert str(interval) == text


def test_differences_carry_their_sign() -> None:
    assert stats.Interval(3.25, 1.0, 5.0).text(1, signed=True) == "+3.2 [+1.0, +5.0]"
