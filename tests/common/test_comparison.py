"""Arms against arms: by hand with numpy, with seeds that one arm lacks, with values that are missing, and in words."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import comparison, stats
from common.comparison import Arms, Column
from common.stats import Interval

ARMS: Arms = {
    "plain": {seed: {"loss": float(seed), "score": 10.0 + seed} for seed in range(6)},
    "new": {seed: {"loss": seed - 1.0 - 0.1 * seed, "score": 12.0 - seed} for seed in range(1, 8)},
    "alone": {40: {"loss": 1.0, "score": 1.0}},
}


def test_a_difference_is_first_minus_second_over_the_seeds_that_both_have() -> None:
    gain = comparison.paired(ARMS["new"], ARMS["plain"], "loss")
    by_hand = np.array([(seed - 1.0 - 0.1 * seed) - seed for seed in range(1, 6)])
    assert gain is not None
    assert gain.values == 5
    assert gain.estimate == pytest.approx(by_hand.mean())
    assert by_hand.min() <= gain.low < gain.estimate < gain.high <= by_hand.max()
    assert gain == stats.mean(
        [
            new - old
            for new, old in zip(
                [ARMS["new"][s]["loss"] for s in range(1, 6)],
                [ARMS["plain"][s]["loss"] for s in range(1, 6)],
                strict=True,
            )
        ]
    )


def test_pairing_goes_by_seed_not_by_place() -> None:
    turned = {seed: ARMS["new"][seed] for seed in reversed(ARMS["new"])}
    one, other = (comparison.paired(arm, ARMS["plain"], "loss") for arm in (ARMS["new"], turned))
    assert one is not None
    assert other is not None
    assert one.estimate == pytest.approx(other.estimate)


def test_nothing_is_said_without_a_shared_seed_or_with_a_value_missing() -> None:
    assert comparison.paired(ARMS["new"], ARMS["alone"], "loss") is None
    assert comparison.paired(ARMS["new"], ARMS["plain"], "accuracy") is None
    assert comparison.mean({}, "loss") is None
    for missing in (math.nan, math.inf):
        arm = {0: {"loss": 1.0}, 1: {"loss": missing}}
        assert comparison.mean(arm, "loss") is None
        assert comparison.interquartile_mean(arm, "loss") is None
        assert comparison.paired(arm, ARMS["plain"], "loss") is None
        assert comparison.improvement(arm, ARMS["plain"], "loss") is None
        assert comparison.differences({"a": arm, **ARMS}, {"d": ("a", "plain")}, ["loss"]) == {"d": {}}


def test_means_are_those_of_the_statistics_module() -> None:
    values = [ARMS["new"][seed]["score"] for seed in range(1, 8)]
    assert comparison.mean(ARMS["new"], "score") == stats.mean(values)
    assert comparison.mean(ARMS["new"], "score", 100) == stats.mean([100 * value for value in values])
    assert comparison.interquartile_mean(ARMS["new"], "score") == stats.interquartile_mean(values)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.floats(-1e6, 1e6), min_size=1),
    st.dictionaries(st.integers(0, 9), st.floats(-1e6, 1e6), min_size=1),
)
def test_swapping_the_arms_turns_the_difference_round(ours: dict[int, float], theirs: dict[int, float]) -> None:
    one, other = ({seed: {"x": value} for seed, value in arm.items()} for arm in (ours, theirs))
    gain, loss = comparison.paired(one, other, "x"), comparison.paired(other, one, "x")
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        assert gain is None
        assert loss is None
        return
    assert gain is not None
    assert loss is not None
    expected = np.mean([ours[seed] - theirs[seed] for seed in shared])
    assert gain.estimate == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert loss.estimate == pytest.approx(-gain.estimate, rel=1e-9, abs=1e-6)
    assert gain.values == loss.values == len(shared)


def test_improvement_counts_every_pair_of_runs() -> None:
    ours, theirs = ARMS["new"], ARMS["plain"]
    won = [(a["score"] > b["score"]) + 0.5 * (a["score"] == b["score"]) for a in ours.values() for b in theirs.values()]
    more = comparison.improvement(ours, theirs, "score")
    less = comparison.improvement(ours, theirs, "score", lower_is_better=True)
    assert more is not None
    assert less is not None
    assert more.estimate == pytest.approx(np.mean(won))
    assert less.estimate == pytest.approx(1 - np.mean(won))


def test_verdicts_in_words() -> None:
    gains = [Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(2.0, -1.0, 3.0), Interval(2.0, 2.0, 2.0)]
    assert [comparison.verdict(gain) for gain in gains] == ["better", "worse", "nothing shown", "nothing shown"]
    assert [comparison.verdict(lower=[gain]) for gain in gains] == ["worse", "better", "nothing shown", "nothing shown"]
    assert comparison.verdict(Interval(2.0, 1.0, 3.0, values=4)) == "too few seeds"
    up, down, open_ = gains[:3]
    assert comparison.verdict(up, lower=[down]) == "better"
    assert comparison.verdict(up, lower=[up]) == "better in one, worse in the other"
    assert comparison.verdict(open_, lower=[up]) == "worse"
    assert comparison.verdict(up, lower=[Interval(-2.0, -3.0, -1.0, values=3)]) == "too few seeds"


def test_which_arms_are_paired() -> None:
    assert comparison.from_baseline(ARMS, "plain") == {"new": ("new", "plain"), "alone": ("alone", "plain")}
    assert comparison.every_pair(["a", "b", "c"]) == {"b − a": ("b", "a"), "c − a": ("c", "a"), "c − b": ("c", "b")}


def test_differences_of_every_pair_and_figure() -> None:
    found = comparison.differences(ARMS, {"gain": ("new", "plain")}, ("score", "loss"))
    assert list(found["gain"]) == ["score", "loss"]
    assert found["gain"]["loss"] == comparison.paired(ARMS["new"], ARMS["plain"], "loss")


def test_a_table_of_arms() -> None:
    columns = [
        Column("loss"),
        Column("score", "score [%]", 1, 100),
        Column("score", "middle", 2, shows="interquartile mean"),
        Column("score", "bare", 2, shows="estimate"),
        Column("accuracy"),
    ]
    table = comparison.mean_table(ARMS, columns, "What came out.")
    assert table.head == ["arm", "seeds", "loss", "score [%]", "middle", "bare", "accuracy"]
    plain, new, alone = table.rows
    percent = comparison.mean(ARMS["new"], "score", 100)
    middle = comparison.interquartile_mean(ARMS["new"], "score")
    assert percent is not None
    assert middle is not None
    assert plain[:2] == ["plain", "6"]
    assert new == ["new", "7", str(comparison.mean(ARMS["new"], "loss")), percent.text(1), middle.text(2), "8.00", ""]
    assert alone == ["alone", "1", "1.000", "100.0", "1.00", "1.00", ""]
    bare = comparison.mean_table(ARMS, columns[:1], heading="model", seeds=False)
    assert bare.head == ["model", "loss"]
    assert bare.rows[2] == ["alone", "1.000"]


def test_a_table_of_differences() -> None:
    columns = [
        Column("loss", "loss", 2),
        Column("loss", "so", shows="verdict", lower_is_better=True),
        Column("score", "more", shows="verdict"),
        Column("score", "probability", 2, shows="improvement"),
        Column("accuracy"),
    ]
    pairs = {"gain": ("new", "plain"), "none": ("alone", "plain")}
    table = comparison.difference_table(ARMS, pairs, columns)
    assert table.head == ["difference", "seeds", "loss", "so", "more", "probability", "accuracy"]
    gain = comparison.paired(ARMS["new"], ARMS["plain"], "loss")
    probability = comparison.improvement(ARMS["new"], ARMS["plain"], "score")
    assert gain is not None
    assert probability is not None
    assert table.rows[0][:4] == ["gain", "5", f"**{gain.text(2, signed=True)}**", "better"]
    assert table.rows[0][4:] == ["worse", probability.text(2), ""]
    assert table.rows[1] == ["none", "0", "", "", "", "0.00", ""]
    again = comparison.interval_table({"gain": {"loss": gain}}, [columns[0], columns[4]], heading="claim")
    assert again.head == ["claim", "loss", "accuracy"]
    assert again.rows == [["gain", table.rows[0][2], ""]]


def test_a_column_that_does_not_fit_its_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="verdict is of two arms"):
        comparison.mean_table(ARMS, [Column("loss", shows="verdict")])
    with pytest.raises(ValueError, match="interquartile mean is of one arm"):
        comparison.difference_table(ARMS, {"d": ("new", "plain")}, [Column("loss", shows="interquartile mean")])


def test_lists_become_arms() -> None:
    assert comparison.arm_of([3, 5], {"x": [1.0, 2.0], "y": [3.0, 4.0]}) == {
        3: {"x": 1.0, "y": 3.0},
        5: {"x": 2.0, "y": 4.0},
    }
    with pytest.raises(ValueError, match="x: 1 values of 2 seeds"):
        comparison.arm_of([3, 5], {"x": [1.0]})
