"""Which runs the report page takes for the original report's claim, and which it keeps apart."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from common.report.folders import Folder
from rl import compare, records, report
from rl.measures import Arm

SAME = {"env_id": "Hopper-v4", "reward": "dense", "env_steps": 1000, "eval_every": 500, "eval_episodes": 1}


def arm(icm: str, parameters: int = 0, **settings: Any) -> Arm:
    metrics = {"icm": icm, "seeds": [0, 1, 2], "eval_returns": [1.0, 2.0, 3.0], "curiosity_parameters": parameters}
    return Arm(icm, {**SAME, "seed": 0, "num_seeds": 3, "icm": icm, **settings}, metrics, [], [])


def claims(*arms: Arm) -> list[str]:
    return [claim.claim for claim in report.claims_of(arms, compare.paired(arms), "#")]


def test_a_stack_is_compared_with_one_frame_with_as_many_parameters_and_with_none() -> None:
    stacked = arm("stacked", 1000, stack=4)
    assert claims(arm("none"), arm("single", 700), stacked) == [report.CLAIM, report.AGAINST_NONE]
    assert claims(arm("single", 990, forward_width=200), stacked) == [report.AGAINST_MATCHED]


@pytest.mark.parametrize("other", [{"intrinsic_weight": 1.0}, {"icm_observation": "positions"}, {"learning_rate": 1.0}])
def test_arms_that_differ_in_more_than_the_frames_do_not_answer_the_claim(other: dict[str, Any]) -> None:
    assert claims(arm("single", 700, **other), arm("stacked", 1000)) == []


def test_plain_sac_has_no_curiosity_that_could_differ() -> None:
    assert claims(arm("none"), arm("stacked", 1000, intrinsic_weight=1.0)) == [report.AGAINST_NONE]
    assert claims(arm("none", learning_rate=1.0), arm("stacked", 1000)) == []


def test_an_arm_without_a_common_seed_makes_no_claim() -> None:
    late = arm("stacked", 1000)
    late.metrics["seeds"] = [3, 4, 5]
    assert claims(arm("single", 700), late) == []


def groups_of(monkeypatch: pytest.MonkeyPatch, *arms: Arm) -> list[dict[str, list[int]]]:
    """Returns the groups that the page makes of runs: the seeds of each arm by its name."""
    found = {arm.name: arm for arm in arms}
    monkeypatch.setattr(records, "read", lambda folder: found[folder.name])
    groups = report.comparable([Folder(Path(arm.name), arm.name, {}, {}, "finished") for arm in arms])
    return [{of.name: of.metrics["seeds"] for of in group} for group in groups]


def test_other_arguments_make_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    other = arm("stacked", 1000, env_kwargs='{"healthy_reward": 2}')
    groups = groups_of(monkeypatch, arm("none"), arm("single", 700), other)
    assert [list(group) for group in groups] == [["none", "single"]]


def later(of: Arm, failed: bool = False) -> Arm:
    """Returns a run of the same settings with the next three seeds; with `failed` the last of them ended early."""
    metrics = of.metrics | {"seeds": [3, 4] if failed else [3, 4, 5]}
    metrics |= {"eval_returns": metrics["seeds"], "failed": [{"seed": 5, "step": 1, "cause": "NaN"}] if failed else []}
    return dataclasses.replace(of, name=f"{of.name}-later", metrics=metrics, settings={**of.settings, "seed": 3})


def whole(of: Arm) -> Arm:
    """Returns the run with the figures that are pooled."""
    missing = {name: None for name in records.FIGURES if name not in of.metrics}
    return dataclasses.replace(of, metrics={**of.metrics, **missing})


@pytest.mark.parametrize("failed", [False, True])
def test_runs_with_more_seeds_are_one_arm_where_each_arm_has_them(
    failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, stacked = whole(arm("single", 700)), whole(arm("stacked", 1000))
    (group,) = groups_of(monkeypatch, single, later(single), stacked, later(stacked, failed))
    assert group == {"single": [*range(6)], "stacked": [*range(5)] if failed else [*range(6)]}


def test_an_arm_whose_further_seeds_no_other_has_is_compared_by_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    none, single = whole(arm("none")), whole(arm("single", 700))
    assert groups_of(monkeypatch, none, single, later(none)) == [{"none": [0, 1, 2], "single": [0, 1, 2]}]
