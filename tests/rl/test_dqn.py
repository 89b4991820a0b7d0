"""Double DQN against a naive agent written from the papers; agents in lockstep against agents alone."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.dqn import DQN, ActionGrid, double_q_target, epsilon_at, huber_loss, value_of
from rl.dqn_settings import DQNSettings
from rl.replay import Batch
from rl.streams import Noise, RandomStreams
from tests.rl.naive import perceptron

OBSERVATION, ACTION, BATCH = 5, 2, 16
CPU = torch.device("cpu")
HEADS = ("joint", "decoupled")


def dqn(agents: range, **settings: Any) -> DQN:
    generators = [torch.Generator().manual_seed(seed) for seed in agents]
    chosen = {"hidden": (12, 12), "precision": "float32", "learning_rate": 1e-2, "n_step": 1, **settings}
    return DQN(DQNSettings(**chosen), OBSERVATION, ACTION, generators, CPU)


def batch_and_noise(agents: int, step: int, bins: int = 3) -> tuple[Batch, Noise]:
    g = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(agents, BATCH, *shape, generator=g)

    ended = (torch.rand(agents, BATCH, generator=g) < 0.2).float()
    action = torch.randint(0, bins, (agents, BATCH, ACTION), generator=g) * 2 / (bins - 1) - 1
    fields = normal(1, OBSERVATION), action, normal() * 3, ended, normal(OBSERVATION)
    nothing = torch.zeros(agents, BATCH, 0)
    return Batch(*fields, following=fields[-1]), Noise(nothing, nothing, normal())


class NaiveDQN:
    """One agent, transition by transition, with the actions of the grid in a list; shares no line with `rl.dqn`."""

    def __init__(self, network: nn.Sequential, target: nn.Sequential, head: str, bins: int, lr: float) -> None:
        self.network, self.target, self.head, self.bins = network, target, head, bins
        self.levels = [2 * i / (bins - 1) - 1 for i in range(bins)]
        # the first dimension changes fastest
        self.grid = [actions[::-1] for actions in itertools.product(self.levels, repeat=ACTION)]
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)

    def q(self, network: nn.Sequential, state: Tensor, action: tuple[float, ...]) -> Tensor:
        outputs: Tensor = network(state)
        if self.head == "joint":
            return outputs[self.grid.index(action)]
        bins = [self.levels.index(a) for a in action]
        return torch.stack([outputs[j * self.bins + b] for j, b in enumerate(bins)]).mean()

    def greedy(self, state: Tensor) -> tuple[float, ...]:
        """Over the whole grid, also for the decoupled head: its maximum is that of each dimension."""
        return max(self.grid, key=lambda action: float(self.q(self.network, state, action).detach()))

    def update(self, s: Tensor, a: Tensor, r: Tensor, d: Tensor, s2: Tensor, discount: float) -> None:
        losses = []
        for i in range(len(s)):
            with torch.no_grad():
                y = r[i] if d[i] else r[i] + discount * self.q(self.target, s2[i], self.greedy(s2[i]))
            error = (self.q(self.network, s[i], tuple(a[i].tolist())) - y).abs()
            losses.append(0.5 * error**2 if error <= 1 else error - 0.5)
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        self.optimizer.step()


@pytest.mark.parametrize("head", HEADS)
def test_six_updates_as_the_naive_agent_takes_them(head: str) -> None:
    agents = dqn(range(2), head=head, target_period=3)
    naive = [
        NaiveDQN(
            perceptron(agents.q_network.network, k),
            *(perceptron(agents.target_network.network, k), head, 3, agents.settings.learning_rate),
        )
        for k in range(2)
    ]
    for step in range(1, 7):
        batch, noise = batch_and_noise(2, step)
        agents.update(batch, noise)
        for k, agent in enumerate(naive):
            agent.update(
                *(batch.observation[k], batch.action[k], batch.reward[k], batch.terminated[k]),
                *(batch.next_observation[k], agents.settings.discount),
            )
        if step % 3 == 0:
            agents.update_target()
            for agent in naive:
                agent.target.load_state_dict(agent.network.state_dict())
    for k, agent in enumerate(naive):
        for stack, plain in ((agents.q_network, agent.network), (agents.target_network, agent.target)):
            for ours, theirs in zip(perceptron(stack.network, k).parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    state = torch.randn(2, OBSERVATION)
    expected = [agent.greedy(state[k]) for k, agent in enumerate(naive)]
    assert agents.q_network.deterministic(state).tolist() == [list(action) for action in expected]


@pytest.mark.parametrize("settings", [{"head": "joint"}, {"head": "decoupled", "icm": "single", "bins": 2}])
def test_an_agent_among_three_is_the_agent_alone(settings: dict[str, Any]) -> None:
    settings = {**settings, "feature_size": 6, "icm_width": 10}
    together, alone = dqn(range(3), **settings), dqn(range(1, 2), **settings)
    for step in range(10):
        batch, noise = batch_and_noise(3, step, together.settings.bins)
        together.update(batch, noise)
        alone.update(Batch(*(t[1:2] for t in batch)), Noise(*(t[1:2] for t in noise)))
        if step == 5:
            together.update_target()
            alone.update_target()
    own = alone.state_dict()
    for name, tensor in together.state_dict().items():
        per_agent = tensor if tensor.ndim == 0 else tensor[1:2]
        torch.testing.assert_close(per_agent, own[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_network_that_acts_chooses_and_the_target_network_values() -> None:
    """By hand, two heads: the choices are 1 and 0, worth 10 and 3 to the target network."""
    chosen_by = torch.tensor([[[[0.0, 5.0], [2.0, 1.0]]]])
    valued_by = torch.tensor([[[[99.0, 10.0], [3.0, 99.0]]]])
    for ended, expected in ((0.0, 1 + 0.5 * 6.5), (1.0, 1.0)):
        target = double_q_target(torch.tensor([[1.0]]), torch.tensor([[ended]]), chosen_by, valued_by, 0.5)
        assert target.tolist() == [[expected]]
    assert value_of(chosen_by, torch.tensor([[[1, 1]]])).tolist() == [[3.0]]
    loss = huber_loss(torch.tensor([[0.5, -4.0]]), torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([(0.125 + 3.5) / 2]))


@pytest.mark.parametrize(("head", "bins", "dimensions"), [("joint", 3, 3), ("joint", 4, 2), ("decoupled", 5, 3)])
def test_choices_name_the_actions_of_the_grid(head: Any, bins: int, dimensions: int) -> None:
    grid = ActionGrid(dimensions, bins, head)
    actions = torch.tensor(list(itertools.product(np.linspace(-1, 1, bins), repeat=dimensions)), dtype=torch.float32)
    choice = grid.choice(actions)
    assert choice.shape == (len(actions), grid.heads)
    assert len(choice.unique(dim=0)) == len(actions)
    torch.testing.assert_close(grid.actions(choice), actions)
    assert grid.heads * grid.choices == (bins**dimensions if head == "joint" else bins * dimensions)


def test_epsilon_falls_linearly_after_the_random_steps() -> None:
    settings = DQNSettings(random_steps=2, epsilon=0.2, epsilon_steps=4, env_steps=10)
    assert [epsilon_at(step, settings) for step in range(1, 9)] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert epsilon_at(3, DQNSettings(random_steps=2, epsilon=0.2, epsilon_steps=0)) == 0.2


@pytest.mark.parametrize("head", HEADS)
def test_a_share_epsilon_of_the_choices_is_random_and_uniform(head: str) -> None:
    network, draws = dqn(range(200), head=head, hidden=(2,)).q_network, 4000
    observation = torch.zeros(200, OBSERVATION)
    greedy = network.deterministic(observation)
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(20, 200, 2 * network.grid.heads, generator=g)
    assert torch.equal(network.act(observation, drawn[0], 0.0), greedy)
    acted = torch.stack([network.act(observation, noise, 0.3) for noise in drawn])
    assert set(acted.unique().tolist()) == {-1.0, 0.0, 1.0}
    other = (network.grid.choice(acted) != network.grid.choice(greedy)).float().mean((0, 1))
    choices = network.grid.choices
    torch.testing.assert_close(other, torch.full_like(other, 0.3 * (choices - 1) / choices), rtol=0, atol=0.03)
    everything = network.grid.choice(torch.cat([network.act(observation, noise, 1.0) for noise in drawn]))
    counts = torch.bincount(everything[:, 0], minlength=choices) / draws
    torch.testing.assert_close(counts, torch.full((choices,), 1 / choices), rtol=0, atol=0.03)


def test_streams_without_numbers_for_a_policy() -> None:
    """An agent's numbers depend on its seed alone, and there are none that nobody uses."""
    together, alone = (RandomStreams(seeds, 4, 0, CPU, exploration=6) for seeds in (range(3), range(1, 2)))
    exploration, noise = together.noise()
    assert exploration.shape == (3, 6)
    assert noise.action.numel() == noise.next_action.numel() == 0
    ours, own = alone.noise()
    assert torch.equal(ours[0], exploration[1])
    assert torch.equal(own.shuffle[0], noise.shuffle[1])
    assert not torch.equal(exploration[0], exploration[1])
