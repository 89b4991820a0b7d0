"""The curiosity section of the report page: learning curves with intervals, paired differences, and every run."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from common.comparison import verdict
from common.errors import RunError
from common.plotting import COLOURS
from common.report.document import Block, Claim, Heading, Picture, Section, link, runs_details
from common.report.folders import Folder, usable
from common.stats import Interval
from common.tables import Table, counted
from rl import compare, records
from rl.dqn_settings import DQNSettings, kind_of
from rl.measures import Arm


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of a run's metrics, besides what `rl/records.py` reads."""

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
    "best_policy": "An episode of the best final policy, without its noise, at the speed of the simulation.",
    "training": "What was measured while training, mean over seeds with its 95 % interval.",
}
ORDER = {"none": 0, "single": 1, "stacked": 2}
CLAIM = "Curiosity: ICM on a stack of frames is “marginally better” than on one frame"
AGAINST_MATCHED = "Our control: a stack of frames against one frame with as many parameters"
AGAINST_NONE = "Our control: a stack of frames against SAC without curiosity"
AGAINST_SAC = "DQN, the report's first attempt: “a continuous action space is not ideal for a DQN”; here DQN − SAC"
COMMAND = "python rl/train_sac_icm.py --icm stacked"  # and --icm single
KEPT_CURVES = ("eval",)  # stages of history.csv that a compact folder of runs keeps


def section(folders: Sequence[Folder]) -> Section:
    """Returns what the original report said, the comparison of arms with the same seeds, and every run."""
    ours = [folder for folder in folders if "icm" in folder.settings]
    runs = usable(ours, Metrics)
    blocks: list[Block] = [
        "The original report trained SAC with an Intrinsic Curiosity Module (Pathak et al. 2017) on Hopper-v4. It "
        "found the forward model on a stack of frames “marginally better” than on one frame. It gave no seeds and no "
        "intervals.",
    ]
    claims = []
    # Plain SAC first, then one frame, then more, then DQN: each later arm is compared with each earlier one.
    order = sorted(
        runs, key=lambda run: (is_dqn(run[0]), ORDER.get(run[1].icm, len(ORDER)), run[1].curiosity_parameters)
    )
    whole = [folder for folder, _ in order if folder.settings.get("smoke_test") is not True]  # a check, not a result
    for group in comparable(whole):
        arms = named_apart(group[: len(COLOURS)])
        differences = compare.paired(arms)
        protocol, *tables = compare.tables(arms)
        title = protocol.caption.split(";")[0]
        evidence = link("returns", f"{title} {[arm.name for arm in group]}")
        said = claims_of(arms, differences, evidence)
        answers = [of for of in said if of.claim != AGAINST_NONE]
        claims += [dataclasses.replace(of, measured=f"{of.measured}, {title}") for of in answers]
        blocks += [
            Heading(title, evidence),
            *said_and_measured(said),
            Picture("Mean over seeds with its 95 % interval.", compare.curves(arms)),
            protocol,
            *tables,
        ]
        if len(group) > len(arms):
            left_out = ", ".join(arm.name for arm in group[len(arms) :])
            blocks.append(f"Left out, because no more than {len(arms)} can be told apart in one figure: {left_out}.")
    finished = [(folder, metrics) for folder, metrics in runs if folder.finished]
    if finished:
        table = Table(HEAD, [row(folder, metrics) for folder, metrics in finished])
        blocks += [
            "# All curiosity runs",
            runs_details("runs", table, [folder for folder, _ in finished], CAPTIONS),
        ]
    else:
        blocks.append(f"No finished run yet: `{COMMAND}`.")
    if all(of.claim == AGAINST_SAC for of in claims):
        claims = [Claim.not_measured(CLAIM, f"{COMMAND}` and `--icm single"), *claims]
    return Section("Curiosity", blocks, claims)


def comparable(folders: Sequence[Folder]) -> list[list[Arm]]:
    """Returns the groups of two and more arms of the same task with the same seeds.

    Runs of the same settings with other seeds are one arm, if each such arm then has the seeds of another one. A run
    whose evaluations cannot be read is called damaged.
    """
    tasks: dict[tuple[str, ...], list[Arm]] = defaultdict(list)
    for folder in folders:
        try:
            arm = records.read(folder)
        except RunError as error:
            folder.state = f"damaged: {str(error).removeprefix(f'{folder.path}: ')}"
            continue
        tasks[tuple(map(str, records.task_of(arm).values()))].append(arm)
    found = []
    for arms in tasks.values():
        groups = by_seeds(records.pooled(arms))
        if any(len(group) == 1 and "runs" in group[0].metrics for group in groups):
            groups = by_seeds(arms)
        found += [group for group in groups if len(group) > 1]
    return found


def by_seeds(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Returns the arms in groups of the same seeds, those of failed agents included."""
    groups: dict[tuple[int, ...], list[Arm]] = defaultdict(list)
    for arm in arms:
        failed = [agent["seed"] for agent in arm.metrics.get("failed", ())]
        groups[tuple(sorted([*arm.metrics["seeds"], *failed]))].append(arm)
    return list(groups.values())


def claims_of(arms: Sequence[Arm], differences: Mapping[str, Interval], evidence: str) -> list[Claim]:
    """Returns the original report's claims and our controls of them beside the `differences` of arms that hold them."""
    of_sac, of_dqn = ([arm for arm in arms if is_dqn(arm) is wanted] for wanted in (False, True))
    twin = [arm for arm in of_sac if arm.settings.get("critic", "twin") == "twin"]  # CrossQ is no plain SAC
    plain = next((arm for arm in twin if arm.metrics["icm"] == "none"), None)
    claims = [
        claim_of(AGAINST_SAC, differences[of], evidence, arm.name)
        for arm in of_dqn
        if plain is not None and arm.metrics["icm"] == "none" and (of := f"{arm.name} − {plain.name}") in differences
    ]
    stacked = next((arm for arm in of_sac if arm.metrics["icm"] == "stacked"), None)
    if stacked is None:
        return claims
    size = stacked.metrics["curiosity_parameters"]
    for arm in of_sac:
        matched = abs(arm.metrics["curiosity_parameters"] - size) < 0.05 * size
        match arm.metrics["icm"]:
            case "single":
                claim, may_differ = AGAINST_MATCHED if matched else CLAIM, FRAMES
            case "none":
                claim, may_differ = AGAINST_NONE, CURIOSITY
            case _:
                continue
        gain = differences.get(f"{stacked.name} − {arm.name}")
        if gain is not None and differ_only_in(may_differ, arm, stacked):
            claims.append(claim_of(claim, gain, evidence))
    return sorted(claims, key=lambda claim: claim.claim != CLAIM)


def claim_of(claim: str, gain: Interval, evidence: str, of: str = "") -> Claim:
    """Returns a claim beside a difference in return, `of` the arm that it names if there may be several."""
    estimate, _, interval = gain.text(signed=True).partition(" ")
    measured = f"{of}: {estimate} return" if of else f"{estimate} return"
    return Claim(claim, measured, interval or "none", gain.values, sentence(gain), evidence)


def differ_only_in(names: Collection[str], *arms: Arm) -> bool:
    """Whether arms have the same settings but for those of these names, their seeds and their machine."""
    return len({records.settings_apart_from(records.SEEDS | records.MACHINE | set(names), arm) for arm in arms}) == 1


def is_dqn(run: Folder | Arm) -> bool:
    """Whether a run is one of rl/train_dqn.py."""
    return kind_of(run.settings) is DQNSettings


def said_and_measured(claims: Sequence[Claim]) -> list[Block]:
    """Returns the table of the original report's claim and our controls, if these arms hold them."""
    rows = [[of.claim, of.measured, of.interval, of.verdict] for of in claims]
    head = ["the original report's claim", "we measured, difference seed by seed", "95 % interval", "verdict"]
    return [Table(head, rows)] if rows else []


def sentence(gain: Interval) -> str:
    """Returns in a sentence what a difference in return allows to say."""
    sentences = {
        "too few seeds": f"open: {counted(gain.values, 'seed')}, too few for a conclusion",
        "nothing shown": "not shown: the interval contains 0",
    }
    words = verdict(gain)
    return sentences.get(words, f"{words}: the interval excludes 0")


def named_apart(group: Sequence[Arm]) -> list[Arm]:
    """Returns the arms with a number after each name that an earlier one has."""
    names: list[str] = []
    for arm in group:
        count = sum(name.split(" (")[0] == arm.name for name in names)
        names.append(f"{arm.name} ({count + 1})" if count else arm.name)
    return [dataclasses.replace(arm, name=name) for arm, name in zip(group, names, strict=True)]


FRAMES = {"icm", "stack", "forward_width"}  # in which a stack and one frame, matched or not, may differ
CURIOSITY = {  # section 2 of rl/settings.py, but for extrinsic_weight, which counts without curiosity too
    *("icm", "stack", "intrinsic_weight", "bonus", "bonus_decay", "icm_observation", "feature_size", "icm_width"),
    *("forward_width", "forward_share", "icm_learning_rate", "deviation_horizon"),
    *("bonus_episodic", "intrinsic_discount"),
}
HEAD = [
    "run",
    "agent",
    "curiosity",
    "task",
    "reward",
    "seeds",
    "steps",
    "mean return",
    "interquartile mean",
    "agent steps/s",
]


def row(folder: Folder, metrics: Metrics) -> list[str]:
    """Returns a run's line of the table of all runs."""
    return [
        folder.name,
        f"DQN, {folder.settings['head']}" if is_dqn(folder) else "SAC",
        metrics.icm,
        folder.dataset,
        str(folder.settings.get("reward")),
        str(len(metrics.seeds)),
        f"{metrics.env_steps:,}",
        str(Interval(metrics.eval_return_mean, *metrics.eval_return_interval)),
        str(Interval(metrics.eval_return_iqm, *metrics.eval_return_iqm_interval)),
        f"{metrics.agent_steps_per_second:.0f}",
    ]
