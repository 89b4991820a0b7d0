"""Intervals: what they contain, how often, and that pairing is by seed."""

import numpy as np
import pytest
import scipy.stats

from common import stats


def test_mean_lies_in_its_interval() -> None:
    interval = stats.mean([3.0, 1.0, 4.0, 1.0, 5.0])
    assert interval.estimate == pytest.approx(2.8)
    assert interval.low < 2.8 < interval.high
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


def test_few_values_get_students_interval() -> None:
    """Mean ± t(n − 1) s/√n with the quantile from a table: 2.776 of four degrees of freedom."""
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    half = 2.776 * np.std(values, ddof=1) / np.sqrt(5)
    interval = stats.mean(values)
    assert (interval.low, interval.high) == pytest.approx((2.8 - half, 2.8 + half), abs=1e-3)
    assert stats.mean([-0.1, -0.3, -0.41]).low == pytest.approx(-0.27 - 4.303 * 0.1572 / np.sqrt(3), abs=1e-3)


@pytest.mark.parametrize(("seeds", "coverage"), [(2, 0.95), (3, 0.95), (5, 0.95), (9, 0.95), (10, 0.9), (20, 0.93)])
def test_how_often_an_interval_of_95_percent_contains_the_mean(seeds: int, coverage: float) -> None:
    """Of normal values: Student's up to nine, the bootstrap from ten on."""
    generator = np.random.default_rng(0)
    intervals = [stats.mean(generator.normal(size=seeds).tolist(), resamples=300) for _ in range(600)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(coverage, abs=0.025)


@pytest.mark.parametrize(("seeds", "conclusive"), [(2, False), (4, False), (5, True)])
def test_nothing_is_concluded_from_fewer_than_five_values(seeds: int, conclusive: bool) -> None:
    values = [1.0 + 0.1 * seed for seed in range(seeds)]
    assert seeds == 2 or stats.mean(values).low > 0
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


def test_within_a_margin_is_the_whole_interval() -> None:
    assert stats.Interval(0.1, -0.2, 0.4).within(0.5)
    assert not stats.Interval(0.1, -0.2, 0.6).within(0.5)
    assert not stats.Interval(-0.4, -0.6, -0.2).within(0.5)
    assert not stats.Interval(0.0, -0.1, 0.1, 4).within(0.5)  # too few values for a conclusion


@pytest.mark.slow
def test_the_smallest_difference_seen_is_seen_in_four_of_five_studies() -> None:
    """Simulated: normal differences around that value, with the spread that the interval had on average."""
    generator = np.random.default_rng(0)
    spread = stats.Interval(0.0, -1.0, 1.0, 8)
    deviation = 1 / 2.365 * np.sqrt(8)  # t₀.₉₇₅ of seven degrees of freedom
    studies = generator.normal(spread.smallest_seen, deviation, size=(2000, 8))
    seen = np.mean([stats.mean(study.tolist()).conclusive for study in studies])
    assert seen == pytest.approx(0.8, abs=0.04)


def test_t_and_welch_intervals_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(1, 1, 12), generator.normal(0, 3, 7)
    own, welch = stats.t_mean(one.tolist()), stats.welch_difference(one.tolist(), other.tolist())
    expected = scipy.stats.ttest_1samp(one, 0.0).confidence_interval()
    assert (own.low, own.high) == pytest.approx((expected.low, expected.high))
    expected = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (welch.low, welch.high) == pytest.approx((expected.low, expected.high))
    assert (welch.estimate, welch.values) == (pytest.approx(one.mean() - other.mean()), 7)
    assert stats.welch_difference([1.0], [3.0, 4.0]).low == -2.5


@pytest.mark.parametrize("paired", [False, True])
def test_power_is_how_often_simulated_studies_see_the_difference(paired: bool) -> None:
    seeds = stats.seeds_needed(0.8, 1.0, paired=paired)
    assert stats.power(0.8, 1.0, seeds - 1, paired=paired) < 0.8 <= stats.power(0.8, 1.0, seeds, paired=paired)
    one, other = np.random.default_rng(1).normal(0, 1, (2, 20_000, seeds))
    tests = scipy.stats.ttest_1samp(one + 0.8, 0, axis=1) if paired else scipy.stats.ttest_ind(one + 0.8, other, axis=1)
    assert (tests.pvalue < 0.05).mean() == pytest.approx(stats.power(0.8, 1.0, seeds, paired=paired), abs=0.01)


@pytest.mark.parametrize("paired", [False, True])
def test_power_of_equivalence_is_how_often_simulated_intervals_lie_within_the_margin(paired: bool) -> None:
    one, other = np.random.default_rng(3).normal(0, 1, (2, 20_000, 12))
    tests = scipy.stats.ttest_1samp(one, 0, axis=1) if paired else scipy.stats.ttest_ind(one, other, axis=1)
    interval = tests.confidence_interval(0.95)
    seen = np.mean(np.maximum(-interval.low, interval.high) < 0.9)
    assert 0.1 < seen < 0.9
    assert seen == pytest.approx(stats.equivalence_power(0.9, 1.0, 12, paired=paired), abs=0.015)


def test_a_bootstrap_of_unpaired_arms_has_about_welchs_width() -> None:
    one, other = np.random.default_rng(2).normal(0, 1, (2, 60)).tolist()
    drawn, welch = stats.bootstrap_difference(one, other, paired=False), stats.welch_difference(one, other)
    assert drawn.estimate == pytest.approx(welch.estimate)
    assert drawn.high - drawn.low == pytest.approx(welch.high - welch.low, rel=0.05)
