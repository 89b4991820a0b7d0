"""Double DQN (van Hasselt et al. 2016) on a grid of actions, joint or decoupled (Seyde et al. 2023), for all agents.

A decoupled network has a head for each dimension of the action, and Q(s, a) = 1/M Σⱼ Qⱼ(s, aⱼ) over the M dimensions
(the linear decomposition of Seyde et al. 2023). A joint one is the same with one head, whose choices are all actions of
the grid: M = 1. One formula says both. Targets, losses and choices are functions of tensors; `DQN` has the networks.

What the authors of decoupled Q-networks have beside it, and this does not: prioritised replay, layer normalisation,
clipped gradients. So the comparison with SAC is one of action spaces and targets, on the same replay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from common.fast.adam import Adam
from rl.agents import Agents
from rl.dqn_settings import DQNSettings, Head
from rl.networks import ActingNetwork, StackedMLP
from rl.replay import Batch, Trajectories
from rl.returns import whole
from rl.streams import Noise

MOST_OUTPUTS = 10_000  # of a joint grid: a layer of 256 units on them has 2.6 million weights an agent


def epsilon_at(step: int, settings: DQNSettings) -> float:
    """Returns the share of random choices in environment step `step`, counted from 1.

    1 in the random steps, then falling linearly to `--epsilon`, which it reaches `--epsilon-steps` steps later.
    """
    since = step - settings.random_steps
    if since <= 0:
        return 1.0
    left = max(0.0, 1 - since / settings.epsilon_steps) if settings.epsilon_steps else 0.0
    return settings.epsilon + left * (1 - settings.epsilon)


def value_of(values: Tensor, choice: Tensor) -> Tensor:
    """Returns Q(s, a) = 1/M Σⱼ Qⱼ(s, aⱼ), `(agents, batch)` (Seyde et al. 2023).

    `values` are `(agents, batch, heads, choices)`, `choice` is `(agents, batch, heads)`.
    """
    return values.gather(-1, choice[..., None])[..., 0].mean(-1)


def double_q_target(
    reward: Tensor, terminated: Tensor, next_values: Tensor, next_target_values: Tensor, discount: float | Tensor
) -> Tensor:
    """Returns r + γ(1 − d) Q̄(s′, argmax Q(s′, ·)), `(agents, batch)` (Double DQN, van Hasselt et al. 2016).

    The Q-network chooses, in each head on its own, and the target network values: `next_values` and
    `next_target_values` are `(agents, batch, heads, choices)`. After m rewards `discount` is γᵐ, `(agents, batch)`.
    """
    return reward + discount * (1 - terminated) * value_of(next_target_values, next_values.argmax(-1))


def huber_loss(values: Tensor, td_target: Tensor) -> Tensor:
    """Returns the mean over the batch of ½e² for |e| ≤ 1 and of |e| − ½ beyond, e = Q − y, `(agents,)`.

    Its gradient is that of ½e² with errors clipped to ±1, as in Mnih et al. 2015 and in Seyde et al. 2023.
    """
    return F.huber_loss(values, td_target, reduction="none").mean(-1)


class ActionGrid(nn.Module):
    """The actions of a grid: `bins` values a dimension, evenly spaced from −1 to 1, and the choices that name them.

    A choice is a number for each head: of a decoupled grid the bin of each dimension, of a joint one the bins as the
    digits of one number, those of the first dimension last.
    """

    levels: Tensor  # (bins,)
    places: Tensor  # (action,), what a bin of each dimension counts in its head's number

    def __init__(self, action_dim: int, bins: int, head: Head) -> None:
        """
        Raises:
            UsageError: a joint grid has more than `MOST_OUTPUTS` actions.
        """
        super().__init__()
        joint = head == "joint"
        self.bins, self.heads = bins, 1 if joint else action_dim
        self.choices = bins**action_dim if joint else bins
        if joint and self.choices > MOST_OUTPUTS:
            raise UsageError(
                f"--head joint with --bins {bins}: a grid of {bins}^{action_dim} = {self.choices:,} actions; at most "
                f"{MOST_OUTPUTS:,}, so take fewer bins or --head decoupled ({bins * action_dim:,} outputs)"
            )
        places = [bins**j if joint else 1 for j in range(action_dim)]
        self.register_buffer("levels", torch.linspace(-1, 1, bins), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, outputs: Tensor) -> Tensor:
        """Returns the greedy actions `(…, action)` for the values `(…, heads·choices)` of a network."""
        return self.actions(self.of_heads(outputs).argmax(-1))

    def of_heads(self, outputs: Tensor) -> Tensor:
        """Returns a network's outputs `(…, heads·choices)` as `(…, heads, choices)`."""
        values: Tensor = outputs.unflatten(-1, (self.heads, self.choices))
        return values

    def actions(self, choice: Tensor) -> Tensor:
        """Returns the actions `(…, action)` in [−1, 1] of choices `(…, heads)`."""
        action: Tensor = self.levels[choice // self.places % self.bins]
        return action

    def choice(self, action: Tensor) -> Tensor:
        """Returns the choices `(…, heads)` that name actions `(…, action)` of the grid."""
        bin_of = ((action + 1) / 2 * (self.bins - 1)).round().long()
        return bin_of if self.heads > 1 else (bin_of * self.places).sum(-1, keepdim=True)


class QNetwork(ActingNetwork):
    """The values of the grid's actions, for each agent; without exploration it acts greedily."""

    grid: ActionGrid

    def __init__(
        self, obs_dim: int, hidden: Sequence[int], grid: ActionGrid, generators: Sequence[torch.Generator]
    ) -> None:
        outputs = grid.heads * grid.choices
        network = StackedMLP([obs_dim, *hidden, outputs], generators)
        super().__init__(network, outputs, len(grid.places), grid)
        self.grid = grid

    def forward(self, observation: Tensor, hidden_dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns values `(agents, batch, heads, choices)` of observations `(agents, batch, obs)`."""
        return self.grid.of_heads(self.network(observation, hidden_dtype=hidden_dtype))

    @torch.no_grad()
    def act(self, observation: Tensor, exploration: Tensor, epsilon: float) -> Tensor:
        """Returns ε-greedy actions `(agents, action)` for observations `(agents, obs)`.

        Each head chooses at random with probability `epsilon`, on its own. `exploration` `(agents, 2·heads)` is
        standard normal: a coin and a random choice for each head.
        """
        coin, drawn = torch.special.ndtr(exploration).chunk(2, dim=-1)  # the normal distribution function: uniform
        at_random = (drawn * self.grid.choices).long().clamp(max=self.grid.choices - 1)
        greedy = self(observation[:, None])[:, 0].argmax(-1)
        return self.grid.actions(torch.where(coin < epsilon, at_random, greedy))


class DQN(Agents):
    """All agents: Q-networks, target networks, curiosity, their optimiser, and the update."""

    settings: DQNSettings

    def __init__(
        self,
        settings: DQNSettings,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        """Draws each agent's weights with its own generator.

        Raises:
            UsageError: the joint grid has too many actions.
        """
        super().__init__(settings, obs_dim, device)
        grid = ActionGrid(action_dim, settings.bins, settings.head)
        self.q_network = QNetwork(obs_dim, settings.hidden, grid, generators)
        self.target_network = QNetwork(obs_dim, settings.hidden, grid, generators).requires_grad_(False)
        self.update_target()
        self.begin_curiosity(action_dim, generators)
        self.to(device)
        self.optimizer = Adam((self.q_network.parameters(), settings.learning_rate), *self.curiosity_group())
        self.optimizers = (self.optimizer,)

    @property
    def policy(self) -> QNetwork:
        """The network that acts."""
        return self.q_network

    def act(self, observation: Tensor, exploration: Tensor, epsilon: float) -> Tensor:
        """Returns ε-greedy actions `(agents, action)`, see `QNetwork.act`."""
        return self.q_network.act(observation, exploration, epsilon)

    def update(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of Q-networks and curiosity; returns what it measured, name → `(agents,)`."""
        dtype, grid = self.hidden_dtype, self.q_network.grid
        rewards = self.rewards(batch, noise.shuffle)
        transition, reward, discount = whole(batch, self.total_reward(rewards), self.settings.discount)
        with torch.no_grad():
            next_values = self.q_network(transition.following, dtype)
            next_target_values = self.target_network(transition.following, dtype)
            td_target = double_q_target(reward, transition.terminated, next_values, next_target_values, discount)
        values = value_of(self.q_network(transition.observation, dtype), grid.choice(transition.action))
        q_loss = huber_loss(values, td_target)
        self.optimizer.descend((q_loss + rewards.curiosity_loss).sum())
        measured = rewards.measured | {"q_loss": q_loss, "value": values.mean(1)}
        return {name: value.detach() for name, value in measured.items()}

    @torch.no_grad()
    def update_target(self) -> None:
        """Copies the Q-networks to the target networks; to be done after every `--target-period` updates."""
        self.target_network.load_state_dict(self.q_network.state_dict())
