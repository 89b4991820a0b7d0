"""Networks of many agents at once: weights carry a leading agent axis, every layer is one batched matrix product.

`StackedMLP` is what all of them are made of. Agents share no weight, and no product mixes them: the gradient of a sum
of losses over agents holds each agent's own gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class StackedMLP(nn.Module):
    """A multilayer perceptron with ReLU for each of `agents` agents, each with its own weights."""

    def __init__(self, sizes: Sequence[int], generators: Sequence[torch.Generator], copies: int = 1) -> None:
        """Draws weights and biases as `torch.nn.Linear` does, uniform in ±1/√inputs, agent by agent.

        Args:
            sizes: widths from the input to the output.
            generators: one for each agent, so that its weights do not depend on how many others there are.
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
        self._in_order = [p for pair in zip(weights, biases, strict=True) for p in pair]

    def forward(self, x: Tensor, *, hidden_dtype: torch.dtype = torch.float32, frozen: bool = False) -> Tensor:
        """Returns the outputs `(agents, batch, out)` for inputs `(agents, batch, in)`.

        Products between hidden layers are made in `hidden_dtype`; the first and the last layer, which see observations
        and give values, stay in float32. `frozen` gives gradients to the input alone.
        """
        parameters = [p.detach() for p in self._in_order] if frozen else self._in_order
        if not torch.is_grad_enabled():
            return _layers(x, hidden_dtype, parameters)[0]
        outputs: Tensor = _MLPFunction.apply(x, hidden_dtype, *parameters)
        return outputs


def _layers(
    x: Tensor, hidden_dtype: torch.dtype, parameters: Sequence[Tensor], keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Returns the outputs and, to `keep` for the backward pass, what each layer multiplied: inputs, then weights."""
    layers = len(parameters) // 2
    inputs, weights = [], []
    for layer in range(layers):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        if 0 < layer < layers - 1:
            weight, x = weight.to(hidden_dtype), x.to(hidden_dtype)
        if keep:  # else its memory goes to the next layer, while it is still in the processor's cache
            inputs.append(x)
            weights.append(weight)
        x = _product(x, weight).float().add_(bias)  # in float32: elementwise operations are slow in bfloat16
        if layer < layers - 1:
            x.relu_()
    return x, inputs + weights


class _MLPFunction(torch.autograd.Function):
    """The perceptron with its gradient by hand: a third of the operations that autograd records for the same layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden_dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        outputs, kept = _layers(x, hidden_dtype, parameters, keep=True)
        ctx.save_for_backward(*kept)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        needed: list[Tensor | None] = [None] * (2 * layers)
        for layer in reversed(range(layers)):
            x, weight = inputs[layer], weights[layer]
            if ctx.needs_input_grad[3 + 2 * layer]:
                needed[2 * layer + 1] = gradient.sum(1, keepdim=True)
            if gradient.dtype != x.dtype:
                gradient = gradient.to(x.dtype)
            if ctx.needs_input_grad[2 + 2 * layer]:
                needed[2 * layer] = _product(x.transpose(1, 2), gradient).float()
            if layer > 0:
                # An outer product is a product element by element.
                back = torch.mul if weight.shape[2] == 1 else torch.bmm
                gradient = back(gradient, weight.transpose(1, 2))
                # Of the ReLU, in place: x is 0 where it was closed.
                torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
                gradient = gradient.float()
        into_input = torch.bmm(gradient, weights[0].transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return into_input, None, *needed


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Returns the matrix product of each agent, with one column (a value) as a sum: the libraries are slow at that."""
    return (x * y.transpose(1, 2)).sum(-1, keepdim=True) if y.shape[2] == 1 else torch.bmm(x, y)


class Sample(NamedTuple):
    """Actions in [−1, 1] `(agents, batch, action)` and their log-probabilities `(agents, batch)`."""

    action: Tensor
    log_probability: Tensor


class Actor(nn.Module):
    """A Gaussian policy squashed by tanh (Haarnoja et al. 2018b, appendix C), its deviation a function of the state."""

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int],
        log_std_range: tuple[float, float],
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.network = StackedMLP([observation, *hidden, 2 * action], generators)
        self.log_std_range = log_std_range

    def forward(self, observation: Tensor, noise: Tensor, hidden_dtype: torch.dtype = torch.float32) -> Sample:
        """Returns actions for `observation` `(agents, batch, obs)` from normal `noise` `(agents, batch, action)`."""
        mean, log_std = self.network(observation, hidden_dtype=hidden_dtype).chunk(2, dim=-1)
        return squashed_gaussian(mean, log_std.clamp(*self.log_std_range), noise)

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Returns the actions of `forward` alone, `(agents, batch, action)`: no gradient, nothing rounded."""
        with torch.no_grad():
            mean, log_std = self.network(observation).chunk(2, dim=-1)
            actions: Tensor = log_std.clamp(*self.log_std_range).exp_().mul_(noise).add_(mean).tanh_()
        return actions

    def deterministic(self, observation: Tensor) -> Tensor:
        """Returns the tanh of the mean, `(agents, batch, action)`: the policy without its noise."""
        mean: Tensor = self.network(observation).chunk(2, dim=-1)[0]
        return mean.tanh()


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> Sample:
    """Returns tanh(u) for u = mean + std·noise, and its exact log-probability.

    log π(a) = Σᵢ log N(uᵢ; mean, std²) − log(1 − tanh²uᵢ)   (Eq. 21, Haarnoja et al. 2018b), where
    log(1 − tanh²u) = 2(log 2 − u − softplus(−2u)) holds also where tanh is 1. Arguments `(agents, batch, action)`.
    """
    return Sample(*_SquashedGaussian.apply(mean, log_std, noise))


class _SquashedGaussian(torch.autograd.Function):
    """The sample with its gradient by hand, a third of the operations of autograd's.

    With u = m + σε and a = tanh u: ∂a/∂u = 1 − a², ∂log π/∂u = 2a, ∂u/∂log σ = σε, and log π has −1 of log σ itself.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        step = log_std.exp().mul_(noise)
        u = mean + step
        action = u.tanh()
        # log N(u) − log(1 − tanh²u), less what is constant
        terms = torch.add(u, F.softplus(-2 * u)).mul_(2).sub_(log_std).sub_(noise.square().mul_(0.5))
        constant = mean.shape[-1] * (2 * math.log(2) + 0.5 * math.log(2 * math.pi))
        ctx.save_for_backward(action, step)
        return action, terms.sum(-1).sub_(constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_action: Tensor, for_log_probability: Tensor) -> tuple[Tensor | None, ...]:
        action, step = ctx.saved_tensors
        for_log_probability = for_log_probability[..., None]
        for_mean = for_action * (1 - action * action) + 2 * for_log_probability * action
        return for_mean, for_mean * step - for_log_probability, None


class TwinCritic(nn.Module):
    """Two independent action values for each agent (Fujimoto et al. 2018): networks 0…n−1 and n…2n−1 of one stack."""

    def __init__(
        self, observation: int, action: int, hidden: Sequence[int], generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.network = StackedMLP([observation + action, *hidden, 1], generators, copies=2)

    def forward(
        self, observation: Tensor, action: Tensor, hidden_dtype: torch.dtype = torch.float32, frozen: bool = False
    ) -> Tensor:
        """Returns both values, `(2, agents, batch)`."""
        x = torch.cat([observation, action], dim=-1)
        values: Tensor = self.network(torch.cat([x, x]), hidden_dtype=hidden_dtype, frozen=frozen)
        return values.view(2, x.shape[0], x.shape[1])
