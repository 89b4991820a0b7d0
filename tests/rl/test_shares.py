"""Shares of seeds: intervals and differences against published numbers, the test against its definition."""

import math

import numpy as np
import pytest

from rl.shares import fisher, newcombe, power, tables, wilson


def seen(successes: int, seeds: int) -> list[bool]:
    return [True] * successes + [False] * (seeds - successes)


def test_the_interval_is_wilsons() -> None:
    """Its ends solve |p̂ − p| = z √(p(1 − p)/n); of none of n the lower one is 0 and the upper z²/(n + z²)."""
    z = 1.959964
    found = wilson(seen(15, 148))
    for end in (found.low, found.high):
        assert abs(found.estimate - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 148), rel=1e-5)
    none = wilson(seen(0, 22))
    assert (none.low, none.high) == pytest.approx((0, z**2 / (22 + z**2)), abs=1e-6)


def test_the_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 − 48/80 is 0.2 [0.0524, 0.3339]; 10/10 − 0/10 is 1 [0.6075, 1]."""
    first, second = newcombe(seen(56, 70), seen(48, 80)), newcombe(seen(10, 10), seen(0, 10))
    assert (first.estimate, first.low, first.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert (second.estimate, second.low, second.high) == pytest.approx((1, 0.6075, 1), abs=5e-5)


def test_fishers_test_by_hand() -> None:
    """Of 4 and 4 seeds with 4 successes in all, none against all is the most extreme of C(8, 4) tables, twice."""
    assert fisher(seen(0, 4), seen(4, 4)) == pytest.approx(2 / math.comb(8, 4))
    assert fisher(seen(2, 4), seen(2, 4)) == pytest.approx(1)
    assert power(0.0, 1.0, 4) == pytest.approx(1)  # 2/70 is below 5 %
    assert power(0.0, 1.0, 3) == pytest.approx(0)  # 2/20 is not
    assert power(0.3, 0.3, 5) < 0.05


def test_power_is_how_often_simulated_studies_tell_the_shares_apart() -> None:
    drawn = np.random.default_rng(0).binomial(22, [[0.1], [0.5]], (2, 4000))
    told = [fisher(seen(one, 22), seen(other, 22)) <= 0.05 for one, other in drawn.T.tolist()]
    assert np.mean(told) == pytest.approx(power(0.1, 0.5, 22), abs=0.025)


def test_tables_and_their_record() -> None:
    (arms, gains), record = tables({"none": seen(1, 8), "single": seen(6, 8)}, "paid")
    assert [row[:2] for row in arms.rows] == [["none", "1 of 8"], ["single", "6 of 8"]]
    assert gains.rows[0][0] == "single − none"
    assert record["differences"]["single − none"]["fisher_p"] == pytest.approx(fisher(seen(6, 8), seen(1, 8)))
    assert record["arms"]["none"]["estimate"] == 1 / 8
