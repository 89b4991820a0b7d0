"""Runs side by side: learning curves with intervals, and the differences between arms.

Runs of the same settings with other seeds are one arm. Arms with the same seeds are compared seed by seed, others
unpaired (Welch's t).

`python rl/compare.py results/rl/single results/rl/stacked --output results/rl/comparison`
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from common import cli, comparison, stats
from common.comparison import Column
from common.errors import UsageError
from common.experiment import say
from common.files import write_atomically
from common.plotting import COLOURS, figure, png_bytes
from common.report.folders import run_at
from common.tables import Table, counted, difference
from rl import measures, shares
from rl.figures import band
from rl.measures import NAMES, SHARES, Arm
from rl.records import pooled, read, require_comparable


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Compare finished runs of SAC and DQN: curves, table, differences; same settings are one arm."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; an arm has the name of its first one, and every later arm is compared with every earlier one."""
    output: Path = Path("results/rl/comparison")
    """Folder for metrics.json, tables.md and figures/returns.png."""
    margin: str | None = None
    """Differences of this size count as none: a return, or with % a share of the earlier arm's mean. Name it before."""
    of: tuple[measures.Figure, ...] = ("return", "area")
    """What to compare: final return, area under the curve, its logarithm, or a figure that metrics.json lists."""
    share: tuple[measures.Share, ...] = ()
    """Shares of seeds to compare too: those ever paid in training, those that reach the task's reward threshold."""


def main(settings: Comparison) -> None:
    """Writes the comparison and prints its folder."""
    require_margin(settings.margin)
    if not settings.of:
        raise UsageError("--of without a figure: give one or more of return, area, log-area, …; see --help")
    if len(settings.runs) < 2:
        raise UsageError(f"{len(settings.runs)} run folders: a comparison needs two")
    if (settings.output / "config.yaml").exists():
        raise UsageError(f"--output {settings.output}: a run's folder; choose another")
    if len({path.name for path in settings.runs}) < len(settings.runs):
        raise UsageError("two of the run folders have the same name; the comparison needs different ones")
    runs = [run_at(path) for path in settings.runs]
    for run in runs:
        if not run.finished and not run.path.exists():  # a row of runs.csv has no folder
            raise UsageError(f"{run.path}: no such folder")
    arms = [read(run) for run in runs]
    require_comparable(arms)
    arms = pooled(arms)
    if not 2 <= len(arms) <= len(COLOURS):
        raise UsageError(f"{len(arms)} arms: from 2 to {len(COLOURS)} can be told apart in one figure")
    table, differences = gains(arms, settings.margin, settings.of)
    shown = [tables(arms)[0], *measures.tables(arms, settings.of), table]
    record: dict[str, Any] = {"arms": {arm.name: arm.metrics for arm in arms}, "differences": differences}
    for share in settings.share:
        seen = {arm.name: measures.successes(share, arm) for arm in arms}
        drawn, record[share] = shares.tables(seen, SHARES[share])
        shown += drawn
    text = "\n".join(table.markdown() for table in shown)
    write_atomically(settings.output / "metrics.json", json.dumps(record, indent=1).encode())
    write_atomically(settings.output / "tables.md", text.encode())
    write_atomically(settings.output / "figures" / "returns.png", png_bytes(curves(arms)))
    say(text)
    print(settings.output)


def returns(arms: Sequence[Arm]) -> dict[str, dict[int, dict[str, float]]]:
    """Returns the final return of every seed of every arm, as `common/comparison.py` compares them."""
    return {arm.name: comparison.arm_of(arm.metrics["seeds"], {"return": arm.metrics["eval_returns"]}) for arm in arms}


def require_margin(margin: str | None) -> None:
    """Raises UsageError for a margin that is no positive number, with or without %."""
    try:
        good = margin is None or 0 < float(margin.removesuffix("%")) < float("inf")
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"--margin {margin}: a positive return, as 100, or a share of the mean, as 12%")


def gains(
    arms: Sequence[Arm], margin: str | None = None, chosen: Sequence[measures.Figure] = ("return", "area")
) -> tuple[Table, dict[str, dict[str, Any]]]:
    """Returns the differences of every later arm from every earlier one, as a table and as a record of their numbers.

    Of every figure `chosen`: t interval, bootstrap interval, what the difference allows to say, the smallest one that
    the study could have seen, and whether it is one within ±`margin`; of a log area a margin of 12 % is log 1.12.
    """
    figures = measures.figures_of(arms, chosen)
    rows: list[list[str]] = []
    record: dict[str, dict[str, Any]] = {}
    for name, (one, other) in comparison.every_pair([arm.name for arm in arms]).items():
        for of in map(NAMES.__getitem__, chosen):
            gain = comparison.gain(figures[one], figures[other], of)
            chance = comparison.improvement(figures[one], figures[other], of)
            reference = comparison.mean(figures[other], of)
            if gain is None or chance is None or reference is None:
                continue
            said: dict[str, Any] = {
                "paired": gain.paired,
                "smallest_seen": gain.t.smallest_seen,
                "says": comparison.verdict(gain.t),
            }
            cells = [
                *(name, of, "paired" if gain.paired else "Welch", difference(gain.t, None, None)),
                *(gain.bootstrap.text(signed=True), said["says"], str(chance), size_of(gain.t.smallest_seen)),
            ]
            if margin is not None:
                size = float(margin.removesuffix("%"))
                if margin.endswith("%"):
                    logarithm = of == NAMES["log-area"]
                    size = math.log1p(size / 100) if logarithm else size / 100 * abs(reference.estimate)
                said |= {"margin": size, "equivalence": comparison.equivalence(gain.t, size)}
                cells.append(f"{said['equivalence']} (±{size_of(size)})")
            intervals = {"t": dataclasses.asdict(gain.t), "bootstrap": dataclasses.asdict(gain.bootstrap)}
            record.setdefault(name, {})[of] = intervals | said
            rows.append(cells)
    head = ["difference", "of", "statistics", "t interval", "bootstrap interval", "so", "probability of improvement"]
    head += ["could have seen (80 %)", *(["equivalent?"] if margin is not None else [])]
    return Table(head, rows), record


def size_of(difference: float) -> str:
    """Returns a size for a reader: whole from 10 on, as a return, else two digits."""
    return f"{difference:.0f}" if difference >= 10 else f"{difference:.2g}"


def paired(arms: Sequence[Arm]) -> dict[str, stats.Interval]:
    """Returns the difference in final return of every later arm from every earlier one, over the seeds of both."""
    pairs = comparison.every_pair([arm.name for arm in arms])
    found = comparison.differences(returns(arms), pairs, ["return"])
    return {name: gains["return"] for name, gains in found.items() if gains}  # none where no seed is shared


def tables(arms: Sequence[Arm]) -> list[Table]:
    """Returns every arm's figures, and the differences between arms, bold where they are conclusive."""
    first = arms[0].metrics
    protocol = (
        f"{first['env_id']}, {first['reward']} reward, {seeds_of(arms)} × {first['env_steps']:,} "
        f"steps; return of the policy without noise, mean over the last {first['evaluations_averaged']} evaluations, "
        "95 % intervals"
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
        comparison.difference_table(
            returns(arms), pairs, gains, heading="difference (means paired by seed)", seeds=False
        ),
    ]


def seeds_of(arms: Sequence[Arm]) -> str:
    """Returns how many seeds the arms have, in words."""
    numbers = sorted({len(arm.metrics["seeds"]) for arm in arms})
    return counted(numbers[0], "seed") if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} seeds"


def curves(arms: Sequence[Arm]) -> Figure:
    """Returns the figure of the arms' learning curves, each with its interval."""
    first = arms[0].metrics
    caption = f"{first['env_id']}, {first['reward']} reward, {seeds_of(arms)}, 95 % intervals"
    sheet, (axes,) = figure("Return of the policy without noise", caption, size=(6.4, 4))
    for arm, colour in zip(arms, COLOURS, strict=False):
        band(axes, arm.steps, arm.curves, colour, arm.name)
    axes.set(xlabel="environment steps of each agent", ylabel="return")
    axes.legend()
    return sheet


if __name__ == "__main__":
    cli.command(main, Comparison)
