"""Which runs the report page takes for the original report's claim, and which it keeps apart."""

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


def test_other_arguments_make_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [arm("none"), arm("single", 700), arm("stacked", 1000, env_kwargs='{"healthy_reward": 2}')]
    monkeypatch.setattr(records, "read", lambda folder: next(arm for arm in arms if arm.name == folder.name))
    groups = report.comparable([Folder(Path(arm.name), arm.name, {}, {}, "finished") for arm in arms])
    assert [[of.name for of in group] for group in groups] == [["none", "single"]]
