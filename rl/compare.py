"""Runs with the same seeds side by side: learning curves with intervals, and the paired differences between them.

`python rl/compare.py results/rl/single results/rl/stacked --output results/rl/comparison`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from common import cli, comparison, stats
from common.comparison import Column
from common.errors import RunError, UsageError
from common.experiment import say
from common.files import write_atomically
from common.plotting import COLOURS, figure, png_bytes
from common.report.folders import Folder, run_at
from common.tables import Table, counted
from rl.figures import band, seed_curves

# Settings that compared runs share, and what a run's metrics.json must say.
SAME = {"env_id", "reward", "seed", "num_seeds", "env_steps", "eval_every", "eval_episodes"}
FIGURES = {
    *("env_id", "reward", "seeds", "env_steps", "evaluations_averaged", "curiosity_parameters", "eval_returns"),
    *("eval_return_mean", "eval_return_interval", "eval_return_iqm", "eval_return_iqm_interval"),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Compare finished runs of rl/train_sac_icm.py that share their seeds: curves, table, paired differences."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; each is named after its folder, and every later one is compared with every earlier one."""
    output: Path = Path("results/rl/comparison")
    """Folder for metrics.json, tables.md and figures/returns.png."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One finished run: its settings, what its metrics.json says, and its evaluations."""

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    steps: list[float]
    curves: list[list[float]]  # a list of returns for each seed


def main(settings: Comparison) -> None:
    """Writes the comparison and prints its folder."""
    if not 2 <= len(settings.runs) <= len(COLOURS):
        raise UsageError(f"{len(settings.runs)} run folders: from 2 to {len(COLOURS)} can be told apart in one figure")
    if (settings.output / "config.yaml").exists():
        raise UsageError(f"--output {settings.output}: a run's folder; choose another")
    if len({path.name for path in settings.runs}) < len(settings.runs):
        raise UsageError("two of the run folders have the same name; the comparison needs different ones")
    arms = [read(run_at(path)) for path in settings.runs]
    require_comparable(arms)
    differences = paired(arms)
    text = "\n".join(table.markdown() for table in tables(arms))
    record = {
        "arms": {arm.name: arm.metrics for arm in arms},
        "differences": {name: dataclasses.asdict(interval) for name, interval in differences.items()},
    }
    write_atomically(settings.output / "metrics.json", json.dumps(record, indent=1).encode())
    write_atomically(settings.output / "tables.md", text.encode())
    write_atomically(settings.output / "figures" / "returns.png", png_bytes(curves(arms)))
    say(text)
    print(settings.output)


def require_comparable(arms: Sequence[Arm]) -> None:
    """Raises RunError for runs of another task, reward, length or other seeds."""
    for arm in arms[1:]:
        for key in sorted(SAME):
            if arm.settings[key] != arms[0].settings[key]:
                ours, theirs = arm.settings[key], arms[0].settings[key]
                raise RunError(f"{arm.name} has {key} {ours}, {arms[0].name} has {theirs}: they do not compare")


def read(run: Folder) -> Arm:
    """Returns a finished run.

    Raises:
        RunError: it is no finished run of this task, or a damaged one.
    """
    if run.damaged:
        raise RunError(f"{run.path}: not a finished run of rl/train_sac_icm.py ({run.state.removeprefix('damaged: ')})")
    if not run.finished:
        raise RunError(f"{run.path}: no finished run (metrics.json is missing)")
    try:
        settings, metrics = run.settings, run.metrics
        missing = [*(SAME - settings.keys()), *(FIGURES - metrics.keys())]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        history = run.history("eval")
        curves = seed_curves(history, "return", metrics["seeds"])
        if not len(curves) == len(metrics["eval_returns"]) == settings["num_seeds"]:
            raise ValueError("not a return for every seed")
        return Arm(run.path.name, settings, metrics, history["step"], curves)
    except FileNotFoundError as error:
        raise RunError(f"{run.path}: no finished run ({Path(error.filename).name} is missing)") from None
    except KeyError as error:
        raise RunError(f"{run.path}: damaged or cut short: its history or its metrics lack {error}") from None
    except (OSError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise RunError(f"{run.path}: not a finished run of rl/train_sac_icm.py ({error})") from None


def returns(arms: Sequence[Arm]) -> dict[str, dict[int, dict[str, float]]]:
    """Returns the final return of every seed of every arm, as `common/comparison.py` compares them."""
    return {arm.name: comparison.arm_of(arm.metrics["seeds"], {"return": arm.metrics["eval_returns"]}) for arm in arms}


def paired(arms: Sequence[Arm]) -> dict[str, stats.Interval]:
    """Returns the difference in final return of every later arm from every earlier one, seed by seed."""
    pairs = comparison.every_pair([arm.name for arm in arms])
    found = comparison.differences(returns(arms), pairs, ["return"])
    return {name: gains["return"] for name, gains in found.items()}


def tables(arms: Sequence[Arm]) -> list[Table]:
    """Returns every arm's figures, and the differences between arms, bold where they are conclusive."""
    first = arms[0].metrics
    protocol = (
        f"{first['env_id']}, {first['reward']} reward, {counted(len(first['seeds']), 'seed')} × {first['env_steps']:,} "
        f"steps; return of the policy without noise, mean over the last {first['evaluations_averaged']} evaluations, "
        "95 % bootstrap intervals"
    )
    columns = [
        Column("return", "mean return"),
        Column("return", "interquartile mean", shows="interquartile mean"),
    ]
    means = comparison.mean_table(returns(arms), columns, protocol, seeds=False)
    rows = [
        [
            *row,
            ", ".join(f"{value:.0f}" for value in arm.metrics["eval_returns"]),
            f"{arm.metrics['curiosity_parameters']:,}",
        ]
        for row, arm in zip(means.rows, arms, strict=True)
    ]
    gains = [
        Column("return", "mean return"),
        Column("return", "so", shows="verdict"),
        Column("return", "probability of improvement", shows="improvement"),
    ]
    pairs = comparison.every_pair([arm.name for arm in arms])
    return [
        Table([*means.head, "seeds", "parameters of the curiosity module"], rows, protocol),
        comparison.difference_table(returns(arms), pairs, gains, heading="difference, paired by seed", seeds=False),
    ]


def curves(arms: Sequence[Arm]) -> Figure:
    """Returns the figure of the arms' learning curves, each with its interval."""
    first = arms[0].metrics
    caption = f"{first['env_id']}, {first['reward']} reward, {len(first['seeds'])} seeds, 95 % intervals"
    sheet, (axes,) = figure("Return of the policy without noise", caption, size=(6.4, 4))
    for arm, colour in zip(arms, COLOURS, strict=False):
        band(axes, arm.steps, arm.curves, colour, arm.name)
    axes.set(xlabel="environment steps of each agent", ylabel="return")
    axes.legend()
    return sheet


if __name__ == "__main__":
    cli.command(main, Comparison)
