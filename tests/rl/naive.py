"""SAC for one agent, written from the paper with torch.nn and autograd: what the fast one must agree with."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rl.networks import StackedMLP


def perceptron(stacked: StackedMLP, network: int) -> nn.Sequential:
    """Returns network `network` of a stack as plain layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(stacked.weights, stacked.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[2])
        layer.weight.data, layer.bias.data = weight[network].detach().T.clone(), bias[network, 0].detach().clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class NaiveSAC:
    """One agent; the algorithm box of Haarnoja et al. 2018b, line by line."""

    def __init__(self, actor: nn.Module, critics: list[nn.Module], discount: float, rate: float, lr: float) -> None:
        self.actor, self.critics, self.targets = actor, critics, copy.deepcopy(critics)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.discount, self.rate = discount, rate
        self.critic_optimizer = torch.optim.Adam([p for c in critics for p in c.parameters()], lr=lr)
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), lr=lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=lr)

    def policy(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(state).chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        distribution = TransformedDistribution(Normal(mean, std), [TanhTransform(cache_size=1)])
        action = distribution.transforms[0](mean + std * noise)
        return action, Independent(distribution, 1).log_prob(action)

    def update(self, s: Tensor, a: Tensor, r: Tensor, d: Tensor, s2: Tensor, noise2: Tensor, noise: Tensor) -> None:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            a2, log2 = self.policy(s2, noise2)
            q2 = torch.min(*(target(torch.cat([s2, a2], 1))[:, 0] for target in self.targets))
            y = r + self.discount * (1 - d) * (q2 - alpha * log2)
        loss: Tensor | float = sum(
            (0.5 * (critic(torch.cat([s, a], 1))[:, 0] - y) ** 2).mean() for critic in self.critics
        )
        self._step(self.critic_optimizer, loss)
        action, log_probability = self.policy(s, noise)
        q = torch.min(*(critic(torch.cat([s, action], 1))[:, 0] for critic in self.critics))
        self._step(self.actor_optimizer, (alpha * log_probability - q).mean())
        entropy_gap = log_probability.detach() - a.shape[1]
        self._step(self.alpha_optimizer, (-self.log_alpha * entropy_gap).mean())
        for target, critic in zip(self.targets, self.critics, strict=True):
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.data = (1 - self.rate) * old.data + self.rate * new.data

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: Tensor | float) -> None:
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def log_probability(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """log π of tanh(u) in double precision, from the densities themselves."""
    mean, log_std, u = mean.double(), log_std.double(), u.double()
    gaussian = torch.exp(-0.5 * ((u - mean) / log_std.exp()) ** 2) / (log_std.exp() * math.sqrt(2 * math.pi))
    return (gaussian.log() - torch.log(1 - u.tanh() ** 2)).sum(-1)
