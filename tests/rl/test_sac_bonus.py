"""SAC with a bonus: its critic's two heads by hand, weights that switch a reward off, and what a bonus depends on."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rl.icm import Surprise
from rl.replay import Batch
from rl.sac import SAC, intrinsic_target
from rl.settings import Settings
from tests.rl.test_sac import BATCH, CPU, batch_and_noise, sac


def test_the_target_of_a_bonus_goes_on_after_a_termination() -> None:
    """By hand: the lesser twin, no entropy, and nothing that asks whether the episode ended."""
    values = torch.tensor([[[4.0, 4.0]], [[3.0, 5.0]]])  # (critics, agents, batch)
    torch.testing.assert_close(
        intrinsic_target(torch.tensor([[1.0, 2.0]]), values, 0.5), torch.tensor([[1 + 1.5, 2 + 2.0]])
    )


def test_the_head_of_the_bonus_bootstraps_after_a_termination_and_that_of_the_reward_does_not() -> None:
    """The gradient of the last biases, one a head, is the mean of Q − y, with y written out for each transition."""
    agents = sac(range(2), icm="single", bonus_episodic=False, discount=0.9, intrinsic_discount=0.7, bonus_decay=0.5)
    batch, noise = batch_and_noise(2, 0)
    batch = batch._replace(following=torch.where(batch.terminated[..., None] > 0, 0.3, batch.next_observation))
    twin, alpha = sac(range(2), icm="single", bonus_episodic=False), agents.log_temperature.exp()[:, None]
    twin.load_state_dict(agents.state_dict())
    bonus = twin.rewards(batch, noise.shuffle).bonus
    assert bonus is not None
    assert batch.terminated.sum() > 0
    with torch.no_grad():
        action, log_probability = agents.actor(batch.following, noise.next_action)
        reward_value, bonus_value = agents.target_critic(batch.following, action)
        after = torch.where(batch.terminated > 0, 0.0, reward_value.amin(0) - alpha * log_probability)
        targets = batch.reward + 0.9 * after, bonus + 0.7 * bonus_value.amin(0)
        heads = agents.critic(batch.observation, batch.action)
    gradients: list[torch.Tensor] = []
    descend = agents.critic_optimizer.descend
    agents.critic_optimizer.descend = lambda loss: (  # type: ignore[method-assign]
        gradients.extend(torch.autograd.grad(loss, [agents.critic.network.biases[-1]], retain_graph=True)),
        descend(loss),
    )[1]
    agents.update_critics(batch, noise)
    for head, (values, target) in enumerate(zip(heads, targets, strict=True)):
        expected = (values - target).mean(-1)  # (twins, agents)
        torch.testing.assert_close(gradients[0][:, 0, head].view(2, 2), expected, rtol=1e-4, atol=1e-5)


def test_the_policy_maximises_the_weighted_sum_of_both_heads() -> None:
    """Against autograd of α log π − min Q − w·min Q of the bonus, with the weight decayed to half."""
    agents = sac(range(2), icm="single", bonus_episodic=False, bonus_decay=1.0, intrinsic_weight=0.4, env_steps=10)
    agents.weigh_bonus(6)
    assert float(agents.bonus_weight) == pytest.approx(0.2)
    batch, noise = batch_and_noise(2, 0)
    action, log_probability = agents.actor(batch.observation, noise.action)
    pairs = torch.cat([batch.observation, action], -1)
    q = agents.critic.network(torch.cat([pairs, pairs])).view(2, 2, BATCH, 2)  # (twins, agents, batch, heads)
    value = torch.minimum(q[0], q[1])
    naive = (agents.log_temperature.exp()[:, None] * log_probability - value[..., 0] - 0.2 * value[..., 1]).mean(1)
    expected = torch.autograd.grad(naive.sum(), list(agents.actor.parameters()))
    gradients: list[torch.Tensor] = []
    agents.actor_optimizer.descend = lambda loss: gradients.extend(  # type: ignore[method-assign]
        torch.autograd.grad(loss, list(agents.actor.parameters()))
    )
    measured = agents.update_policy(batch, noise)
    torch.testing.assert_close(measured["actor_loss"], naive.detach())
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("icm", ["none", "stacked"])
def test_weight_zero_switches_a_reward_off(icm: str) -> None:
    """With no weight on the task's reward, what it is must not matter to any weight."""
    results = []
    for reward in (0.0, 100.0):
        agents = sac(range(2), icm=icm, extrinsic_weight=0.0)
        batch, noise = batch_and_noise(2, 1, agents.settings.window)
        agents.update(batch._replace(reward=torch.full_like(batch.reward, reward)), noise)
        results.append(agents.state_dict())
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_intrinsic_weight_zero_is_plain_sac() -> None:
    plain, curious = sac(range(2)), sac(range(2), icm="single", intrinsic_weight=0.0)
    for step in range(5):
        for agents in (plain, curious):
            agents.update(*batch_and_noise(2, step))
    own = curious.state_dict()
    for name, tensor in plain.state_dict().items():
        if not name.startswith("intrinsic."):
            torch.testing.assert_close(tensor, own[name], msg=name)


def test_shuffled_rewards_are_the_same_rewards_in_another_order() -> None:
    error, shuffle = torch.rand(3, BATCH), torch.randn(3, BATCH)
    plain = sac(range(3), icm="single").intrinsic_reward(error, shuffle)
    random = sac(range(3), icm="random").intrinsic_reward(error, shuffle)
    assert not torch.equal(plain, random)
    torch.testing.assert_close(plain.sort(1).values, random.sort(1).values)
    torch.testing.assert_close(plain.std(1, correction=0), torch.ones(3), rtol=1e-3, atol=1e-3)  # in deviations


def test_with_positions_alone_velocities_change_no_bonus_but_the_action() -> None:
    chosen = Settings(icm="stacked", icm_observation="positions", hidden=(8,), feature_size=4, icm_width=8)
    g = torch.Generator().manual_seed(0)
    agents = SAC(chosen, 11, 3, [g], CPU)
    window, reached = torch.randn(1, BATCH, 4, 11, generator=g), torch.randn(1, BATCH, 11, generator=g)
    batch = Batch(window, torch.randn(1, BATCH, 3), torch.zeros(1, BATCH), torch.zeros(1, BATCH), reached, reached)
    bonuses, actions, r2 = [], [], []
    for first in (11, 5, 4):  # changes nothing, the velocities, the last position too
        later = [torch.cat([part[..., :first], part[..., first:] + 1], -1) for part in (window, reached)]
        moved = batch._replace(window=later[0], next_observation=later[1], following=later[1])
        twin = SAC(chosen, 11, 3, [torch.Generator()], CPU)
        twin.load_state_dict(agents.state_dict())
        bonuses.append(twin.rewards(moved, torch.zeros(1, BATCH)).bonus)
        actions.append(twin.actor.deterministic(moved.observation[:, 0]))
        r2.append(twin.diagnostics(moved)["forward_r2"])
    assert all(torch.equal(of[0], of[1]) for of in (bonuses, r2))
    assert not torch.equal(bonuses[0], bonuses[2])
    assert not torch.equal(actions[0], actions[1])


def test_a_new_intrinsic_reward_as_the_docs_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    example = re.search(r"```python\n(class Motion.*?)```", page, re.DOTALL)
    assert example
    names: dict[str, Any] = {"nn": nn, "Batch": Batch, "Surprise": Surprise}
    exec(example[1], names)
    monkeypatch.setattr("rl.agents.build_curiosity", lambda *_: names["Motion"]())
    agents = sac(range(2), icm="single")  # it has nothing to learn
    batch, noise = batch_and_noise(2, 0)
    moved = (batch.next_observation - batch.observation).square().sum(-1)
    measured = agents.update(batch, noise)
    deviation = agents.intrinsic.deviation
    torch.testing.assert_close(measured["intrinsic_reward"], (moved / deviation).mean(1))
