"""The update against a naive agent written from the paper, and agents in lockstep against agents alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rl.icm import Surprise
from rl.replay import Batch
from rl.sac import (
    SAC,
    intrinsic_target,
    policy_objective,
    soft_bellman_residual,
    soft_bellman_target,
    temperature_objective,
)
from rl.settings import Settings
from rl.streams import Noise
from tests.rl.naive import NaiveSAC, perceptron

OBSERVATION, ACTION, BATCH = 5, 2, 16
CPU = torch.device("cpu")


def sac(agents: range, device: torch.device = CPU, **settings: Any) -> SAC:
    generators = [torch.Generator().manual_seed(seed) for seed in agents]
    chosen = Settings(**{"hidden": (12, 12), "precision": "float32", "learning_rate": 1e-2, **settings})
    return SAC(chosen, OBSERVATION, ACTION, generators, device)


def batch_and_noise(agents: int, step: int, stack: int = 1) -> tuple[Batch, Noise]:
    g = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(agents, BATCH, *shape, generator=g)

    ended = (torch.rand(agents, BATCH, generator=g) < 0.2).float()
    fields = normal(stack, OBSERVATION), normal(ACTION).tanh(), normal(), ended, normal(OBSERVATION)
    return Batch(*fields, following=fields[-1]), Noise(normal(ACTION), normal(ACTION), normal())


def test_twenty_updates_as_the_naive_agent_takes_them() -> None:
    agents = sac(range(2))
    naive = [
        NaiveSAC(
            perceptron(agents.actor.network, k),
            [perceptron(agents.critic.network, k), perceptron(agents.critic.network, 2 + k)],
            *(agents.settings.discount, agents.settings.target_rate, agents.settings.learning_rate),
        )
        for k in range(2)
    ]
    for step in range(20):
        batch, noise = batch_and_noise(2, step)
        agents.update(batch, noise)
        for k, agent in enumerate(naive):
            agent.update(
                *(batch.observation[k], batch.action[k], batch.reward[k], batch.terminated[k]),
                *(batch.next_observation[k], noise.next_action[k], noise.action[k]),
            )
    for k, agent in enumerate(naive):
        pairs = [
            (agents.actor.network, k, agent.actor),
            *((agents.critic.network, 2 * c + k, agent.critics[c]) for c in range(2)),
            *((agents.target_critic.network, 2 * c + k, agent.targets[c]) for c in range(2)),
        ]
        for stack, network, plain in pairs:
            for ours, theirs in zip(perceptron(stack, network).parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(agents.log_temperature[k], agent.log_alpha, rtol=1e-4, atol=1e-5)


def test_the_critics_learn_alone_between_the_updates_of_a_delayed_policy() -> None:
    """The critics' step is that of a whole update; the policy's step after it is the rest of one."""
    whole, parts = sac(range(2), icm="single"), sac(range(2), icm="single")
    batch, noise = batch_and_noise(2, 0)
    before = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    measured, expected = parts.update_critics(batch, noise), whole.update(batch, noise)
    for name, tensor in parts.state_dict().items():
        if name.startswith(("actor.", "log_temperature")):
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, whole.state_dict()[name]), name
    measured |= parts.update_policy(batch, noise)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in parts.state_dict().items())
    assert measured.keys() == expected.keys()


def test_the_critics_may_have_a_learning_rate_of_their_own() -> None:
    """Adam's first step has the size of the learning rate, in the direction of the gradient's sign."""
    agents = sac(range(1), learning_rate=1e-3, critic_learning_rate=1e-2)
    moved = {}
    for name in ("actor", "critic"):
        moved[name] = getattr(agents, name).network.biases[-1].detach().clone()
    agents.update(*batch_and_noise(1, 0))
    for name, rate in (("actor", 1e-3), ("critic", 1e-2)):
        step = getattr(agents, name).network.biases[-1].detach() - moved[name]
        torch.testing.assert_close(step.abs(), torch.full_like(step, rate), rtol=1e-2, atol=0)


def test_the_updates_of_a_step_are_numbered_from_one_on() -> None:
    settings = Settings(random_steps=2, updates_per_step=3)
    assert [list(settings.updates_of(step)) for step in (1, 2, 3, 4)] == [[], [], [1, 2, 3], [4, 5, 6]]
    assert list(Settings(random_steps=5).updates_of(7)) == [2]


@pytest.mark.parametrize(
    "chosen",
    [
        *({"icm": icm} for icm in ("none", "single", "stacked", "random", "rnd")),
        {"icm": "single", "bonus_episodic": False},
    ],
)
def test_an_agent_among_three_is_the_agent_alone(chosen: dict[str, Any]) -> None:
    settings: dict[str, Any] = {**chosen, "feature_size": 6, "icm_width": 10}
    together, alone = sac(range(3), **settings), sac(range(1, 2), **settings)
    for step in range(20):
        batch, noise = batch_and_noise(3, step, together.settings.window)
        together.update(batch, noise)
        alone.update(Batch(*(t[1:2] for t in batch)), Noise(*(t[1:2] for t in noise)))
    own = alone.state_dict()
    assert own.keys() == together.state_dict().keys()
    for name, tensor in together.state_dict().items():
        per_agent = tensor if tensor.ndim == 0 else tensor[1::3]  # twins: networks 1 and 4 of six
        torch.testing.assert_close(per_agent, own[name], rtol=1e-3, atol=1e-4, msg=name)


def test_one_agents_data_change_no_other_agent() -> None:
    one, other = sac(range(3), icm="stacked"), sac(range(3), icm="stacked")
    for step in range(3):
        batch, noise = batch_and_noise(3, step, 4)
        one.update(batch, noise)
        changed = batch._replace(reward=batch.reward + torch.tensor([0.0, 50.0, 0.0])[:, None])
        other.update(changed, noise)
    actors = zip(one.actor.parameters(), other.actor.parameters(), strict=True)
    for ours, theirs in actors:
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_target_bootstraps_unless_the_episode_ended_for_good() -> None:
    values = torch.tensor([[[4.0, 4.0]], [[3.0, 5.0]]])  # (critics, agents, batch): the lesser of two counts
    td_target = soft_bellman_target(
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[0.0, 1.0]]),
        values,
        torch.tensor([[-2.0, 9.0]]),
        torch.tensor([0.5]),
        0.9,
    )
    torch.testing.assert_close(td_target, torch.tensor([[1 + 0.9 * (3 + 0.5 * 2), 1.0]]))


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


def test_losses_by_hand() -> None:
    values, td_target = torch.tensor([[[1.0, 2.0]], [[0.0, 4.0]]]), torch.tensor([[1.0, 1.0]])
    critic_loss = soft_bellman_residual(values, td_target)
    torch.testing.assert_close(critic_loss, torch.tensor([(0 + 0.5) / 2 + (0.5 + 4.5) / 2]))
    actor_loss = policy_objective(torch.tensor([[1.0, 3.0]]), values, torch.tensor([0.1]))
    torch.testing.assert_close(actor_loss, torch.tensor([((0.1 - 0) + (0.3 - 2)) / 2]))
    log_temperature = torch.tensor([0.7], requires_grad=True)
    temperature_loss = temperature_objective(log_temperature, torch.tensor([[1.0, 3.0]]), -3.0)
    (gradient,) = torch.autograd.grad(temperature_loss.sum(), log_temperature)
    torch.testing.assert_close(gradient, torch.tensor([-(2.0 - 3.0)]))  # entropy −2 is above −3: α falls


def test_temperature_falls_when_entropy_is_above_its_aim_and_rises_below() -> None:
    for aim, sign in ((-50.0, -1), (50.0, 1)):
        agents = sac(range(2), target_entropy=aim)
        agents.update(*batch_and_noise(2, 0))
        assert (sign * agents.log_temperature > 0).all()


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


def test_weights_saved_under_the_earlier_name_of_the_target_critic_load() -> None:
    agents, saved = sac(range(2), icm="rnd"), sac(range(2, 4), icm="rnd").state_dict()
    earlier = {name.replace("target_critic.", "target."): tensor for name, tensor in saved.items()}
    assert "target.network.weights.0" in earlier
    assert "curiosity.target.weights.0" in earlier  # random distillation's target keeps its name
    agents.load_state_dict(earlier)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in agents.state_dict().items())
