"""CrossQ's networks (Bhatt et al. 2024): batch renormalisation (Ioffe 2017) before every layer of critics and actor.

With it, SAC needs no target critics: Q(s, a) and Q(s′, a′) come out of one pass of the same critic over both batches,
so that the statistics that normalise them are those of the mixture (Bhatt et al. 2024, section 3.2 and figure 2). While
learning, a layer sees its input normalised with the batch's own statistics; everywhere else (acting, a′, the critic in
the actor's loss) with running ones, which makes the network a plain perceptron with other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.fast import replaced_by
from rl import fast, renormalised
from rl.networks import StackedMLP

# The authors' code: sbx/sac/policies.py and train.py of github.com/adityab/CrossQ
MOMENTUM = 0.99  # of the running mean and variance
EPSILON = 1e-3  # beside the variance
R_MAX, D_MAX = 3.0, 5.0  # bounds of the corrections (Ioffe 2017, section 4)


class Norm(NamedTuple):
    """What renormalises the inputs of one layer; each tensor is `(networks, 1, inputs)`."""

    scale: Tensor  # γ, learned
    shift: Tensor  # β, learned
    mean: Tensor  # μ, running
    variance: Tensor  # σ² without ε, running
    warm: Tensor  # (networks, 1, 1), true where the running statistics are old enough to correct with

    @staticmethod
    def deviation(variance: Tensor) -> Tensor:
        """Returns σ = √(σ² + ε)."""
        return (variance + EPSILON).sqrt()

    def corrections(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((μ_B − μ)/σ, ±d_max), constants without gradient.

        They map the batch's statistics `mean` and `deviation` `(networks, 1, inputs)` to the running ones (section 3,
        Ioffe 2017). Before the running statistics are warm, r = 1 and d = 0: plain batch normalisation.
        """
        with torch.no_grad():
            running = self.deviation(self.variance)
            r = (deviation / running).clamp(1 / R_MAX, R_MAX)
            d = ((mean - self.mean) / running).clamp(-D_MAX, D_MAX)
            return torch.where(self.warm, r, 1.0), torch.where(self.warm, d, 0.0)


def batch_renorm(x: Tensor, mean: Tensor, variance: Tensor, norm: Norm) -> Tensor:
    """Returns γ·x̂ + β with x̂ = (x − μ_B)/σ_B · r + d for `x` `(networks, batch, inputs)` (Algorithm 1, Ioffe 2017).

    `mean` and `variance` are the batch's, `(networks, 1, inputs)`; the gradient goes through both.
    """
    deviation = norm.deviation(variance)
    r, d = norm.corrections(mean, deviation)
    return norm.scale * ((x - mean) / deviation * r + d) + norm.shift


@replaced_by(renormalised.perceptron)
def renormalised_perceptron(
    x: Tensor, layers: fast.Layers, norms: Sequence[Norm], hidden_dtype: torch.dtype
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Returns the outputs `(networks, batch, out)` of layers x ← ReLU(norm(x)·W + b), and each batch mean and variance.

    As `rl.networks.perceptron`, with `batch_renorm` before each layer; the last one is without ReLU.
    """
    last, statistics = len(layers) - 1, []
    for number, ((weight, bias), norm) in enumerate(zip(layers, norms, strict=True)):
        mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        statistics.append((mean.detach(), variance.detach()))
        x = batch_renorm(x, mean, variance, norm)
        if 0 < number < last:
            x, weight = x.to(hidden_dtype), weight.to(hidden_dtype)
        x = torch.matmul(x, weight).float() + bias
        if number < last:
            x = x.relu()
    return x, statistics


class RenormalisedMLP(StackedMLP):
    """A perceptron with batch renormalisation before every layer, for each of `agents` agents (see `StackedMLP`)."""

    ages: Tensor  # (networks, 1, 1), batches that the running statistics have seen

    def __init__(
        self, sizes: Sequence[int], generators: Sequence[torch.Generator], copies: int = 1, warm_up: int = 100_000
    ) -> None:
        """`warm_up` batches pass before the corrections r and d begin (the authors' code: 100,000)."""
        super().__init__(sizes, generators, copies)
        self.warm_up, networks = warm_up, copies * len(generators)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(networks, 1, inputs)) for inputs in sizes[:-1]])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(networks, 1, inputs)) for inputs in sizes[:-1]])
        for number, inputs in enumerate(sizes[:-1]):
            self.register_buffer(f"mean{number}", torch.zeros(networks, 1, inputs))
            self.register_buffer(f"variance{number}", torch.ones(networks, 1, inputs))
        self.register_buffer("ages", torch.zeros(networks, 1, 1))

    def norms(self) -> list[Norm]:
        """Returns what normalises the inputs of each layer."""
        warm = self.ages >= self.warm_up
        running = [(self.get_buffer(f"mean{n}"), self.get_buffer(f"variance{n}")) for n in range(len(self.scales))]
        return [
            Norm(scale, shift, mean, variance, warm)
            for scale, shift, (mean, variance) in zip(self.scales, self.shifts, running, strict=True)
        ]

    def layers(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Returns weights and biases of the plain perceptron that this network is with its running statistics.

        (x − μ)/σ·γ + β, then ·W + b, is x·W′ + b′ with W′ = γ/σ·W and b′ = b + (β − μγ/σ)·W.
        """
        plain = []
        for (weight, bias), norm in zip(super().layers(), self.norms(), strict=True):
            factor = norm.scale / norm.deviation(norm.variance)
            moved = torch.baddbmm(bias, norm.shift - norm.mean * factor, weight)
            plain.append((factor.transpose(1, 2) * weight, moved))
        return plain

    def learn(self, x: Tensor, hidden_dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the outputs with the batch's own statistics, and moves the running ones towards them."""
        outputs, statistics = renormalised_perceptron(x, super().layers(), self.norms(), hidden_dtype)
        with torch.no_grad():
            for norm, (mean, variance) in zip(self.norms(), statistics, strict=True):
                norm.mean.lerp_(mean, 1 - MOMENTUM)
                norm.variance.lerp_(variance, 1 - MOMENTUM)
            self.ages += 1
        return outputs
