"""Figures: the learning curve, and everything measured while training, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.plotting import COLOURS, figure
from common.stats import interquartile_mean, mean

History = Mapping[str, list[float]]
LABELS = {
    "return": "return of training episodes",
    "episode_length": "length of training episodes",
    "steps_paid": "steps paid so far",
    "critic_loss": "critic loss (both critics)",
    "q_loss": "loss of the Q-networks",
    "value": "mean action value",
    "bonus_value": "mean action value of the bonus",
    "actor_loss": "actor loss",
    "temperature": "temperature α",
    "entropy": "entropy of the policy [nats]",
    "extrinsic_reward": "extrinsic reward a step",
    "intrinsic_reward": "intrinsic reward a step [deviations]",
    "forward_loss": "forward loss",
    "inverse_loss": "inverse loss",
    "distillation_loss": "distillation loss",
    "feature_variance": "variance of the features",
    "inverse_r2": "inverse model's R²",
    "forward_r2": "forward model's R²",
    "bonus_share": "share of the bonus in the reward",
    "coverage": "cells visited",
}


def seed_curves(history: History, quantity: str, seeds: Sequence[int]) -> list[list[float]]:
    """Returns a list of values for each seed, in step order."""
    return [history[f"{quantity}/seed{seed}"] for seed in seeds]


def band(axes: Axes, steps: Sequence[float], curves: Sequence[Sequence[float]], colour: str, label: str | None) -> None:
    """Draws the mean of `curves` with its 95 % interval at every step; of two alone, whose interval is wide, each.

    A step at which a curve has no value is left out.
    """
    whole = np.isfinite(curves).all(0)
    steps, curves = np.asarray(steps)[whole].tolist(), np.asarray(curves)[:, whole].tolist()
    points = [mean(column, resamples=2000) for column in np.transpose(curves).tolist()]
    axes.plot(steps, [point.estimate for point in points], color=colour, label=label)
    if len(curves) == 2:
        axes.plot(steps, np.transpose(curves), color=colour, linewidth=0.6, alpha=0.5)
        return
    axes.fill_between(steps, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2, linewidth=0)


def learning_curve(history: History, seeds: Sequence[int], title: str, caption: str) -> Figure:
    """Returns the figure of evaluation returns: a thin line for each seed, their mean with its interval, their IQM."""
    sheet, (axes,) = figure(f"Return: {title}", caption, size=(6.4, 4))
    curves = seed_curves(history, "return", seeds)
    for curve in curves:
        axes.plot(history["step"], curve, color=COLOURS[7], linewidth=0.6, alpha=0.4)
    band(axes, history["step"], curves, COLOURS[0], "mean" + (" and 95 % interval" if len(seeds) > 2 else ""))
    if len(seeds) > 2:
        middle = [interquartile_mean(column).estimate for column in np.transpose(curves).tolist()]
        axes.plot(history["step"], middle, color=COLOURS[1], linestyle="--", label="interquartile mean")
    axes.set(xlabel="environment steps of each agent", ylabel="return, policy without noise")
    axes.legend()
    return sheet


def quantities(history: History, seeds: Sequence[int], title: str, caption: str) -> Figure:
    """Returns a figure with a panel for each quantity measured while training: mean over seeds with its interval."""
    shown = [name for name in LABELS if f"{name}/seed{seeds[0]}" in history]
    rows = -(-len(shown) // 3)
    sheet, panels = figure(f"Training: {title}", caption, rows=rows, columns=3, size=(10, 2.3 * rows + 0.6))
    for axes, name in zip(panels, shown, strict=False):
        band(axes, history["step"], seed_curves(history, name, seeds), COLOURS[0], None)
        axes.set(ylabel=LABELS[name], xlabel="environment steps")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return sheet
