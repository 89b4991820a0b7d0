"""Networks of many agents at once: weights have a leading agent axis, every layer is one batched matrix product.

All of them are made of `StackedMLP`. Agents share no weight, and no product mixes them: the gradient of a sum of losses
over agents holds each agent's own gradient. The two formulas here have faster twins of the same value in `rl/fast.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.fast import replaced_by
from rl import fast


@replaced_by(fast.perceptron)
def perceptron(x: Tensor, layers: fast.Layers, hidden_dtype: torch.dtype) -> Tensor:
    """Returns the outputs `(agents, batch, out)` of layers x ← ReLU(x·W + b), the last one without ReLU.

    `layers` are pairs of weight `(agents, inputs, outputs)` and bias `(agents, 1, outputs)`, `x` is
    `(agents, batch, in)`. Products between hidden layers are made in `hidden_dtype`; those of the first and the last
    layer, which see observations and give values, stay in float32.
    """
    last = len(layers) - 1
    for number, (weight, bias) in enumerate(layers):
        if 0 < number < last:
            x, weight = x.to(hidden_dtype), weight.to(hidden_dtype)
        x = torch.matmul(x, weight).float() + bias
        if number < last:
            x = x.relu()
    return x


@replaced_by(fast.squashed_gaussian)
def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns actions a = tanh(u), u = mean + std·noise, `(agents, batch, action)`, and log π(a), `(agents, batch)`.

    log π(a) = Σᵢ log N(uᵢ; meanᵢ, stdᵢ²) − log(1 − tanh²uᵢ)   (Eq. 21, Haarnoja et al. 2018b)

    The second term is computed as 2(log 2 − u − softplus(−2u)): equal, and finite also where tanh u rounds to 1.
    """
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 − tanh²u) = log ∂a/∂u
    return u.tanh(), (log_normal - log_slope).sum(-1)


class StackedMLP(nn.Module):
    """A multilayer perceptron with ReLU for each of `agents` agents, each with its own weights."""

    def __init__(self, sizes: Sequence[int], generators: Sequence[torch.Generator], copies: int = 1) -> None:
        """Draws weights and biases as `torch.nn.Linear` does, uniform in ±1/√inputs, agent by agent.

        Args:
            sizes: widths from the input to the output.
            generators: one for each agent, so that its weights do not depend on the number of agents.
            copies: independent networks for each agent (twin critics); copy c of agent k is network c·agents + k.
        """
        super().__init__()
        weights, biases = [], []
        for inputs, outputs in pairwise(sizes):
            bound = 1 / math.sqrt(inputs)
            drawn = torch.empty(len(generators), copies, inputs + 1, outputs)
            for k, generator in enumerate(generators):
                drawn[k].uniform_(-bound, bound, generator=generator)
            stacked = drawn.transpose(0, 1).reshape(copies * len(generators), inputs + 1, outputs)
            weights.append(nn.Parameter(stacked[:, :-1].contiguous()))  # (agents, inputs, outputs)
            biases.append(nn.Parameter(stacked[:, -1:].contiguous()))  # (agents, 1, outputs)
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)
        self._layers = list(zip(weights, biases, strict=True))  # a ParameterList looks up each tensor by its name

    def forward(self, x: Tensor, *, hidden_dtype: torch.dtype = torch.float32, frozen: bool = False) -> Tensor:
        """Returns the outputs `(agents, batch, out)` for inputs `(agents, batch, in)`, see `perceptron`.

        With `frozen` the input alone gets a gradient, the weights get none.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            layers = self.layers()
        if frozen:
            layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
        return perceptron(x, layers, hidden_dtype)

    def layers(self) -> fast.Layers:
        """Returns weight `(agents, inputs, outputs)` and bias `(agents, 1, outputs)` of each layer."""
        return self._layers

    def learn(self, x: Tensor, hidden_dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns what `forward` returns, on a batch to learn from; networks that normalise use its statistics."""
        return self(x, hidden_dtype=hidden_dtype)  # type: ignore[no-any-return]


MLP = Callable[..., StackedMLP]  # of sizes, generators and copies, as `StackedMLP` itself


class ActingNetwork(nn.Module):
    """A network that acts, for each agent: what it does without noise follows from its first `outputs` outputs."""

    def __init__(self, network: StackedMLP, outputs: int, action_dim: int, decision: nn.Module) -> None:
        """`decision`, without weights, maps outputs `(…, outputs)` to actions in [−1, 1] `(…, action)`."""
        super().__init__()
        self.network, self.outputs, self.action_dim, self.decision = network, outputs, action_dim, decision

    @torch.no_grad()
    def deterministic(self, observation: Tensor) -> Tensor:
        """Returns the actions without noise, `(agents, action)` in [−1, 1], for observations `(agents, obs)`."""
        action: Tensor = self.decision(self.network(observation[:, None])[..., : self.outputs])
        return action[:, 0]


class Actor(ActingNetwork):
    """A Gaussian policy squashed by tanh (Haarnoja et al. 2018b, appendix C), its deviation a function of the state.

    Without noise it acts with tanh of the mean.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        log_std_range: tuple[float, float],
        generators: Sequence[torch.Generator],
        mlp: MLP = StackedMLP,
    ) -> None:
        network = mlp([obs_dim, *hidden, 2 * action_dim], generators)
        super().__init__(network, action_dim, action_dim, nn.Tanh())
        self.log_std_range = log_std_range

    def forward(
        self, observation: Tensor, noise: Tensor, hidden_dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Returns actions in [−1, 1] `(agents, batch, action)` and their log-probabilities `(agents, batch)`.

        `observation` is `(agents, batch, obs)`, `noise` `(agents, batch, action)` is standard normal.
        """
        return squashed_gaussian(*self._split(self.network(observation, hidden_dtype=hidden_dtype)), noise)

    def learn(
        self, observation: Tensor, noise: Tensor, hidden_dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Returns what `forward` returns, on a batch to learn from (see `StackedMLP.learn`)."""
        return squashed_gaussian(*self._split(self.network.learn(observation, hidden_dtype)), noise)

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Returns actions `(agents, action)` for observations `(agents, obs)` and normal `noise` `(agents, action)`."""
        mean, log_std = self._split(self.network(observation[:, None]))
        return (mean + log_std.exp() * noise[:, None]).tanh()[:, 0]

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*self.log_std_range)


class TwinCritic(nn.Module):
    """Two independent action values for each agent (Fujimoto et al. 2018): networks 0…n−1 and n…2n−1 of one stack.

    Each network has a head for each of `heads` rewards; they share its hidden layers (Burda et al. 2018, section 2.3).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        heads: int = 1,
        mlp: MLP = StackedMLP,
    ) -> None:
        super().__init__()
        self.network = mlp([obs_dim + action_dim, *hidden, heads], generators, copies=2)

    def forward(
        self, observation: Tensor, action: Tensor, hidden_dtype: torch.dtype = torch.float32, frozen: bool = False
    ) -> tuple[Tensor, ...]:
        """Returns both values of each head, each `(2, agents, batch)`; with `frozen` the weights get no gradient."""
        x = torch.cat([observation, action], dim=-1)
        values: Tensor = self.network(torch.cat([x, x]), hidden_dtype=hidden_dtype, frozen=frozen)
        return tuple(values.view(2, *x.shape[:2], -1).unbind(-1))

    def learn_jointly(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        next_action: Tensor,
        hidden_dtype: torch.dtype = torch.float32,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns the values of (s, a) and of (s′, a′) out of one pass over both (Bhatt et al. 2024, section 3.2).

        Each as `forward` returns them; those of (s′, a′) are for a target and carry no gradient.
        """
        x = torch.cat([torch.cat([observation, next_observation], 1), torch.cat([action, next_action], 1)], dim=-1)
        both = self.network.learn(torch.cat([x, x]), hidden_dtype).view(2, *x.shape[:2], -1)  # (2, agents, 2·batch, …)
        values, next_values = both.chunk(2, dim=2)
        return tuple(values.unbind(-1)), tuple(next_values.detach().unbind(-1))
