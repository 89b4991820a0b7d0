"""The curiosity section of the report: learning curves with intervals, paired differences, and every run."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from common.comparison import verdict
from common.errors import RunError
from common.plotting import COLOURS
from common.report.document import Block, Picture, Section, run_details
from common.report.folders import Folder, usable
from common.stats import Interval
from common.tables import Table, difference
from rl import compare


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of metrics.json, beside what `rl/compare.py` reads."""

    icm: str
    seeds: list[int]
    eval_returns: list[float]
    curiosity_parameters: int
    evaluations_averaged: int
    env_steps: int
    eval_return_mean: float
    eval_return_interval: tuple[float, float]
    eval_return_iqm: float
    eval_return_iqm_interval: tuple[float, float]
    agent_steps_per_second: float


CAPTIONS = {
    "learning_curve": "Return of the policy without noise: every seed, their mean with its 95 % interval and, with "
    "three seeds or more, their interquartile mean.",
    "training": "What was measured while training, mean over seeds with its 95 % interval.",
}
ORDER = {"none": 0, "single": 1, "stacked": 2}


def section(folders: Sequence[Folder]) -> Section:
    """Returns what the reference study said, the comparison of arms with the same seeds, and every run."""
    ours = [folder for folder in folders if "icm" in folder.settings]
    runs = usable(ours, Metrics)
    blocks: list[Block] = [
        "The reference study trained SAC with an Intrinsic Curiosity Module (Pathak et al. 2017) on Hopper-v4 and "
        "found the forward model on a stack of frames “marginally better” than on one. It gave no seeds, no intervals.",
    ]
    # Plain SAC first, then one frame, then more: each later arm is compared with each earlier one.
    order = sorted(runs, key=lambda run: (ORDER.get(run[1].icm, len(ORDER)), run[1].curiosity_parameters))
    for group in comparable([folder for folder, _ in order]):
        arms = named_apart(group[: len(COLOURS)])
        differences = compare.paired(arms)
        protocol, *tables = compare.tables(arms)
        curves = Picture("Mean over seeds with its 95 % interval.", compare.curves(arms))
        blocks += [
            f"# {protocol.caption.split(';')[0]}",
            *said_and_measured(arms, differences),
            curves,
            protocol,
            *tables,
        ]
        if len(group) > len(arms):
            left_out = ", ".join(arm.name for arm in group[len(arms) :])
            blocks.append(f"Left out, because no more than {len(arms)} can be told apart in one figure: {left_out}.")
    if runs:
        rows = [row(folder, metrics) for folder, metrics in runs if folder.finished]
        blocks += ["# All curiosity runs", Table(HEAD, rows)]
        blocks += [run_details(folder, CAPTIONS) for folder, _ in runs if folder.finished]
    else:
        blocks.append("No finished run yet: `python rl/train_sac_icm.py --icm stacked`.")
    return Section("Curiosity", blocks)


def comparable(folders: Sequence[Folder]) -> list[list[compare.Arm]]:
    """Returns the groups of two and more runs on the same task with the same seeds; a run that is damaged says so."""
    groups: dict[tuple[str, ...], list[compare.Arm]] = defaultdict(list)
    for folder in folders:
        try:
            arm = compare.read(folder.path)
        except RunError as error:
            folder.state = f"damaged: {str(error).removeprefix(f'{folder.path}: ')}"
            continue
        groups[tuple(str(arm.settings[name]) for name in sorted(compare.SAME))].append(arm)
    return [group for group in groups.values() if len(group) > 1]


def said_and_measured(arms: Sequence[compare.Arm], differences: Mapping[str, Interval]) -> list[Block]:
    """Returns what the reference study claimed beside the `differences` of these arms, if they hold the claim."""
    stacked = next((arm for arm in arms if arm.metrics["icm"] == "stacked"), None)
    if stacked is None:
        return []
    size = stacked.metrics["curiosity_parameters"]
    rows = []
    for arm in arms:
        matched = abs(arm.metrics["curiosity_parameters"] - size) < 0.05 * size
        match arm.metrics["icm"]:
            case "single" if matched:
                row = ["ICM on a stack of frames against one frame with as many parameters", "no claim"]
            case "single":
                row = ["ICM on a stack of frames against one frame", "“marginally better”"]
            case "none":
                row = ["ICM on a stack of frames against SAC without curiosity", "no claim"]
            case _:
                continue
        gain = differences[f"{stacked.name} − {arm.name}"]
        rows.append([*row, difference(gain), verdict(gain)])
    head = ["", "the reference study said", "we measured, difference in return", "so"]
    return [Table(head, rows, "Seed by seed, 95 % bootstrap intervals.")] if rows else []


def named_apart(group: Sequence[compare.Arm]) -> list[compare.Arm]:
    """Returns the arms with names that differ: a number behind those that would be called the same."""
    names: list[str] = []
    for arm in group:
        count = sum(name.split(" (")[0] == arm.name for name in names)
        names.append(f"{arm.name} ({count + 1})" if count else arm.name)
    return [dataclasses.replace(arm, name=name) for arm, name in zip(group, names, strict=True)]


HEAD = ["run", "curiosity", "task", "reward", "seeds", "steps", "mean return", "interquartile mean", "agent steps/s"]


def row(folder: Folder, metrics: Metrics) -> list[str]:
    """Returns a run's line of the table of all runs."""
    return [
        folder.name,
        metrics.icm,
        folder.dataset,
        str(folder.settings.get("reward")),
        str(len(metrics.seeds)),
        f"{metrics.env_steps:,}",
        str(Interval(metrics.eval_return_mean, *metrics.eval_return_interval)),
        str(Interval(metrics.eval_return_iqm, *metrics.eval_return_iqm_interval)),
        f"{metrics.agent_steps_per_second:.0f}",
    ]
