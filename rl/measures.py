"""What a run says of each seed beside its return: metrics.json lists it, `rl/compare.py --of …` compares it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from common import comparison
from common.comparison import Column
from common.errors import RunError
from common.tables import Table
from rl.figures import History

Figure = Literal["return", "area", "log-area", "distance", "length", "coverage", "forward-r2"]
Share = Literal["paid", "solved"]
NAMES: dict[Figure, str] = {
    "return": "final return",
    "area": "area",
    "log-area": "log area",
    "distance": "distance [m]",
    "length": "episode length",
    "coverage": "cells visited",
    "forward-r2": "forward R²",
}
SHARES: dict[Share, str] = {
    "paid": "share of seeds ever paid in training",
    "solved": "share of seeds that solve the task",
}
KEYS: dict[Figure, str] = {  # of metrics.json
    "return": "eval_returns",
    "distance": "eval_distances",
    "length": "eval_lengths",
    "coverage": "coverage",
    "forward-r2": "forward_r2",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One finished run: its settings, what its metrics.json says, and its evaluations."""

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    steps: list[float]
    curves: list[list[float]]  # a list of returns for each seed


def of_seeds(evaluations: History, training: History, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Returns name in metrics.json → a value for each seed, of the columns that the histories have.

    `eval_distances` [m] and `eval_lengths` [steps] are of the policy without noise, and with `forward_r2`, of the
    replay's newest transitions, means over the last 10 % of their rows; `coverage` [cells] and `steps_paid`, the
    training steps with a reward above 0, are those of the whole training.
    """
    columns = {
        "eval_distances": (evaluations, "distance", False),
        "eval_lengths": (evaluations, "length", False),
        "forward_r2": (training, "forward_r2", False),
        "coverage": (training, "coverage", True),
        "steps_paid": (training, "steps_paid", True),
    }
    found = {}
    for key, (history, name, last) in columns.items():
        if all(f"{name}/seed{seed}" in history for seed in seeds):
            rows = 1 if last else math.ceil(0.1 * len(history["step"]))
            values = [statistics.fmean(history[f"{name}/seed{seed}"][-rows:]) for seed in seeds]
            if all(map(math.isfinite, values)):  # what was counted to the end
                found[key] = values
    return found


def area(steps: Sequence[float], curve: Sequence[float]) -> float:
    """Returns the area under a learning curve over its length: the mean return between its ends."""
    return float(np.trapezoid(curve, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else float(curve[0])


def figure_of(figure: Figure, arm: Arm) -> list[float]:
    """Returns a figure of each seed, of metrics.json or of the learning curves.

    Raises:
        RunError: the run does not have it, or an area has no logarithm.
    """
    if figure in ("area", "log-area"):
        areas = [area(arm.steps, curve) for curve in arm.curves]
        if figure == "area":
            return areas
        if min(areas) <= 0:
            raise RunError(f"--of log-area: in {arm.name} a seed's area under the curve is not positive")
        return [math.log(value) for value in areas]
    if KEYS[figure] not in arm.metrics:
        raise RunError(f"--of {figure}: the metrics of {arm.name} have no {KEYS[figure]}")
    return list(arm.metrics[KEYS[figure]])


def successes(share: Share, arm: Arm) -> list[bool]:
    """Returns for each seed whether it was ever paid in training, or reaches the task's threshold in the end.

    Raises:
        RunError: the run does not say so, or the task has no threshold.
    """
    if share == "paid":
        if "steps_paid" not in arm.metrics:
            raise RunError(f"--share paid: the metrics of {arm.name} have no steps_paid")
        return [steps > 0 for steps in arm.metrics["steps_paid"]]
    if arm.metrics.get("solved_at") is None:
        raise RunError(f"--share solved: {arm.name} has no solved_at, {arm.metrics['env_id']} no threshold")
    return [value >= arm.metrics["solved_at"] for value in arm.metrics["eval_returns"]]


def figures_of(arms: Sequence[Arm], of: Sequence[Figure]) -> dict[str, dict[int, dict[str, float]]]:
    """Returns the figures of every seed of every arm, as `common/comparison.py` compares them.

    Raises:
        RunError: a run does not have one of them.
    """
    found = {}
    for arm in arms:
        values = {NAMES[name]: figure_of(name, arm) for name in of}
        found[arm.name] = comparison.arm_of(arm.metrics["seeds"], values)
    return found


def tables(arms: Sequence[Arm], of: Sequence[Figure]) -> list[Table]:
    """Returns the table of every arm's mean in the figures that no other table shows; none where there are none."""
    more = [name for name in of if name not in ("return", "area")]
    if not more:
        return []
    means = figures_of(arms, more)
    return [comparison.mean_table(means, [Column(NAMES[name]) for name in more], "Means, 95 % intervals", seeds=False)]
