"""The update against a naive agent written from the paper, and agents in lockstep against agents alone."""

from typing import Any

import pytest
import torch

from rl.replay import Batch
from rl.sac import SAC, policy_objective, soft_bellman_residual, soft_bellman_target, temperature_objective
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


def test_weights_saved_under_the_earlier_name_of_the_target_critic_load() -> None:
    agents, saved = sac(range(2), icm="rnd"), sac(range(2, 4), icm="rnd").state_dict()
    earlier = {name.replace("target_critic.", "target."): tensor for name, tensor in saved.items()}
    assert "target.network.weights.0" in earlier
    assert "curiosity.target.weights.0" in earlier  # random distillation's target keeps its name
    agents.load_state_dict(earlier)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in agents.state_dict().items())
