"""Agents in groups, a thread each, end with the numbers of all agents in one group, and are up to date when read."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from common.fast.parallel import in_parts
from rl.agents import Agents
from rl.dqn import DQN
from rl.groups import Groups
from rl.sac import SAC
from tests.rl.test_dqn import batch_and_noise as grid_batch_and_noise
from tests.rl.test_dqn import dqn
from tests.rl.test_sac import ACTION, OBSERVATION, batch_and_noise, sac

AGENTS, STEPS = 10, 4


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def everything(agents: Agents) -> list[Tensor]:
    """Returns copies of weights, running moments and the optimisers' state."""
    moments = [state[key] for state in map(vars, agents.optimizers) for key in ("_means", "_squares")]
    return [tensor.clone() for tensor in (*agents.state_dict().values(), *(t for ts in moments for t in ts))]


def made(kind: str) -> tuple[Agents, Any]:
    if kind == "dqn":
        return dqn(range(AGENTS)), DQN.update
    own: dict[str, Any] = {"crossq": {"critic": "crossq"}, "heads": {"icm": "rnd", "bonus_episodic": False}}.get(
        kind, {"icm": "stacked"}
    )
    return sac(range(AGENTS), feature_size=6, icm_width=10, **own), SAC.update


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("kind", ["stacked", "heads", "crossq", "dqn"])
def test_groups_change_nothing(kind: str) -> None:
    (alone, method), (grouped, _) = made(kind), made(kind)
    groups = Groups(grouped, AGENTS)
    with groups.threads():
        assert [list(rows) for rows in groups.rows] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
        assert len(groups.groups) == 3
        update = groups.update(method)
        for step in range(STEPS):
            if kind == "dqn":
                batch, noise = grid_batch_and_noise(AGENTS, step)
            else:
                batch, noise = batch_and_noise(AGENTS, step, alone.settings.window)
            expected, measured = method(alone, batch, noise), update(batch, noise)
            assert list(measured) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(measured[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for mine, theirs in zip(everything(grouped), everything(alone), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("three_threads")
def test_what_is_changed_while_up_to_date_reaches_the_groups() -> None:
    agents, method = made("stacked")
    groups = Groups(agents, AGENTS)
    before = everything(agents)
    with groups.threads():
        update = groups.update(method)
        update(*batch_and_noise(AGENTS, 0, agents.settings.window))
        for old, now in zip(before, everything(agents), strict=True):
            assert torch.equal(old, now)  # not up to date yet
        with groups.up_to_date():
            assert all(not torch.equal(old, now) for old, now in zip(before, everything(agents), strict=True))
            for tensor in agents.state_dict().values():
                if tensor.ndim:
                    tensor[3::AGENTS] = 0  # as an agent that failed
        groups.gather()
        assert all(not tensor[3::AGENTS].any() for tensor in agents.state_dict().values() if tensor.ndim)
        observation, exploration = torch.randn(AGENTS, OBSERVATION), torch.randn(AGENTS, ACTION)
        torch.testing.assert_close(groups.act(observation, exploration), agents.act(observation, exploration))


@pytest.mark.parametrize("count", [1, 5])
def test_few_agents_are_one_group_with_all_of_torchs_threads(count: int) -> None:
    before = torch.get_num_threads()
    agents = sac(range(count))
    groups = Groups(agents, count)
    with groups.threads():
        assert groups.groups[0] is agents
        assert torch.get_num_threads() == before


def test_parts_have_a_thread_each_and_raise_what_one_of_them_raises() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def work(number: int) -> int:
        meeting.wait()  # breaks unless three threads come
        return number

    before = torch.get_num_threads()
    with in_parts(3) as parts:
        assert torch.get_num_threads() == 1
        assert parts.map(work, 3) == [0, 1, 2]

        def fail(number: int) -> Sequence[int]:
            if number == 2:
                raise ValueError("of the last part")
            return []

        with pytest.raises(ValueError, match="of the last part"):
            parts.map(fail, 3)
    assert torch.get_num_threads() == before
