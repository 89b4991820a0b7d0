"""Figures of seeds beside the return: what is averaged, what is read, and runs that do not have it."""

import math

import pytest

from common.errors import RunError
from rl.measures import Arm, area, figure_of, figures_of, of_seeds, successes, tables


def finished(**metrics: object) -> Arm:
    given = {"seeds": [3, 4], "eval_returns": [90.0, 10.0], "env_id": "MountainCarContinuous-v0", **metrics}
    return Arm("mine", {}, given, [0.0, 10.0], [[1.0, 3.0], [2.0, 8.0]])


def test_figures_of_the_last_tenth_and_of_the_whole_training() -> None:
    rows = {"step": [float(t) for t in range(20)]}
    evaluations = rows | {f"length/seed{seed}": [seed * t for t in rows["step"]] for seed in (3, 4)}
    training = rows | {f"coverage/seed{seed}": [seed + t for t in rows["step"]] for seed in (3, 4)}
    assert of_seeds(evaluations, training, [3, 4]) == {
        "eval_lengths": [3 * 18.5, 4 * 18.5],  # rows 18 and 19 of 20
        "coverage": [22.0, 23.0],
    }


def test_the_log_area_of_a_seed() -> None:
    assert figure_of("area", finished()) == [2.0, 5.0]
    assert figure_of("log-area", finished()) == pytest.approx([math.log(2), math.log(5)])
    below = Arm("low", {}, finished().metrics, [0.0, 1.0], [[-1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(RunError, match="--of log-area: in low a seed's area under the curve is not positive"):
        figure_of("log-area", below)


def test_seeds_that_are_paid_and_that_solve_the_task() -> None:
    assert successes("paid", finished(steps_paid=[0.0, 2.0])) == [False, True]
    assert successes("solved", finished(solved_at=90.0)) == [True, False]
    with pytest.raises(RunError, match="mine have no steps_paid"):
        successes("paid", finished())
    with pytest.raises(RunError, match="mine has no solved_at, MountainCarContinuous-v0 no threshold"):
        successes("solved", finished(solved_at=None))
    with pytest.raises(RunError, match="--of distance: the metrics of mine have no eval_distances"):
        figure_of("distance", finished())


def test_the_table_has_what_no_other_one_shows() -> None:
    arm = finished(coverage=[10.0, 20.0])
    assert figures_of([arm], ["coverage", "return"])["mine"][4] == {"cells visited": 20.0, "final return": 10.0}
    assert tables([arm], ["return", "area"]) == []
    (table,) = tables([arm], ["return", "coverage"])
    assert list(table.head) == ["arm", "cells visited"]
    assert table.rows[0][1].startswith("15")


def test_area_is_the_mean_height_of_the_curve() -> None:
    assert area([0.0, 10.0, 40.0], [0.0, 2.0, 4.0]) == pytest.approx((10 * 1 + 30 * 3) / 40)
    assert area([5.0], [7.0]) == 7.0
