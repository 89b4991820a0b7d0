"""Finished runs as arms: what a run folder must say to be compared, and runs of the same settings in one arm."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from common import stats
from common.errors import RunError
from common.report.folders import Folder
from rl.dqn_settings import SCRIPTS, kind_of
from rl.figures import seed_curves
from rl.measures import Arm

# Settings that compared runs share, those in which runs of one arm may differ, what a run's metrics.json must say.
SAME = {"env_id", "reward", "env_steps", "eval_every", "eval_episodes"}
SEEDS = {"seed", "num_seeds"}
MACHINE = {
    *("device", "threads", "data_dir", "results_dir", "run_name", "checkpoint_every", "log_every", "video"),
    *("extended_from", "keep_state", "track", "select"),
}
FIGURES = {
    *("env_id", "reward", "seeds", "env_steps", "evaluations_averaged", "curiosity_parameters", "eval_returns"),
    *("eval_return_mean", "eval_return_interval", "eval_return_iqm", "eval_return_iqm_interval"),
}


def require_comparable(arms: Sequence[Arm]) -> None:
    """Raises RunError for runs of another task, reward, length or evaluation."""
    for arm in arms[1:]:
        ours, theirs = task_of(arm), task_of(arms[0])
        for key in (key for key in ours if ours[key] != theirs[key]):
            raise RunError(f"{arm.name} has {key} {ours[key]}, {arms[0].name} has {theirs[key]}: they do not compare")


def task_of(arm: Arm) -> dict[str, Any]:
    """Returns the settings that compared runs share."""
    return {key: arm.settings.get(key, "") for key in sorted(SAME | {"env_kwargs"})}  # earlier runs lack the latter


def pooled(arms: Sequence[Arm]) -> list[Arm]:
    """Returns the arms with runs of the same settings and other seeds in one, named after the first of them.

    A run that shares a seed with an earlier one of the same settings stays an arm of its own.
    """
    groups: list[tuple[str, list[Arm]]] = []
    for arm in arms:
        key = settings_apart_from(SEEDS | MACHINE, arm)
        for other, members in groups:
            taken = {seed for member in members for seed in member.metrics["seeds"]}
            if key == other and arm.steps == members[0].steps and not taken & set(arm.metrics["seeds"]):
                members.append(arm)
                break
        else:
            groups.append((key, [arm]))
    return [_in_one(members) if len(members) > 1 else members[0] for _, members in groups]


def settings_apart_from(names: Collection[str], arm: Arm) -> str:
    """Returns an arm's settings without those of these names, as text; a setting that it lacks has its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind_of(arm.settings))}
    chosen = {name: value for name, value in (defaults | arm.settings).items() if name not in names}
    return json.dumps(chosen, sort_keys=True, default=str)


def _in_one(members: Sequence[Arm]) -> Arm:
    first = members[0]
    metrics: dict[str, Any] = {name: first.metrics[name] for name in FIGURES if not name.startswith("eval_return_")}
    for name in ("seeds", "eval_returns", "eval_distances", "eval_lengths", "coverage", "forward_r2", "steps_paid"):
        if all(name in member.metrics for member in members):  # earlier runs lack some
            metrics[name] = [value for member in members for value in member.metrics[name]]
    metrics["solved_at"] = first.metrics.get("solved_at")
    mean, middle = stats.mean(metrics["eval_returns"]), stats.interquartile_mean(metrics["eval_returns"])
    metrics |= {"eval_return_mean": mean.estimate, "eval_return_interval": [mean.low, mean.high]}
    metrics |= {"eval_return_iqm": middle.estimate, "eval_return_iqm_interval": [middle.low, middle.high]}
    metrics["failed"] = [agent for member in members for agent in member.metrics.get("failed", ())]
    metrics["runs"] = [member.name for member in members]
    return Arm(first.name, first.settings, metrics, first.steps, [c for member in members for c in member.curves])


def read(run: Folder) -> Arm:
    """Returns a finished run.

    Raises:
        RunError: it is no finished run of this task, or a damaged one.
    """
    if run.damaged:
        raise RunError(f"{run.path}: not a finished run of {SCRIPTS} ({run.state.removeprefix('damaged: ')})")
    if not run.finished:
        raise RunError(f"{run.path}: no finished run (metrics.json is missing)")
    try:
        settings, metrics = run.settings, run.metrics
        missing = [*(SAME - settings.keys()), *(FIGURES - metrics.keys())]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        steps, curves = evaluations(run, metrics["seeds"], settings["env_steps"])
        if not len(curves) == len(metrics["eval_returns"]) == settings["num_seeds"] - len(metrics.get("failed", ())):
            raise ValueError("not a return for every seed")
        return Arm(run.path.name, settings, metrics, steps, curves)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{run.path}: not a finished run of {SCRIPTS} ({error})") from None


def evaluations(run: Folder, seeds: Sequence[int], env_steps: int) -> tuple[list[float], list[list[float]]]:
    """Returns the steps of a finished run's evaluations, and a list of returns for each seed.

    Raises:
        RunError: its history is missing, damaged or cut short: the last evaluation is at the end of the training.
    """
    try:
        history = run.history("eval")
        steps, curves = history["step"], seed_curves(history, "return", seeds)
    except FileNotFoundError as error:
        raise RunError(f"{run.path}: no finished run ({Path(error.filename).name} is missing)") from None
    except KeyError as error:
        raise RunError(f"{run.path}: damaged or cut short: its history lacks {error}") from None
    except (OSError, ValueError, TypeError, IndexError, csv.Error):
        raise RunError(f"{run.path}: damaged or cut short: its history holds what is no number") from None
    if steps[-1] != env_steps:
        raise RunError(f"{run.path}: damaged or cut short: its history has no evaluation after {env_steps:,} steps")
    return steps, curves
