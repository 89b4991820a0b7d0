"""The fast twins of the formulas in `rl/networks.py`, and the update as a CUDA graph: the same numbers in less time.

The networks are small, so that a training step spends much of its time on the operations around the matrix products.
Each twin has the value and the gradient of its plain function (tests/rl/test_fast.py) and is chosen with
`common.fast.replaced_by`; `TRILAB_PLAIN=1` in the environment runs the plain functions instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import common.fast
from rl import compiled
from rl.replay import Batch, Trajectories
from rl.streams import Noise

Layers = Sequence[tuple[Tensor, Tensor]]  # weight (agents, inputs, outputs) and bias (agents, 1, outputs) of each layer
Update = Callable[[Any, Noise], dict[str, Tensor]]  # of a Batch or of Trajectories


def perceptron(x: Tensor, layers: Layers, hidden_dtype: torch.dtype) -> Tensor:
    """Returns what `rl.networks.perceptron` returns: with the gradient by hand, or without keeping anything for it."""
    parameters = [tensor for layer in layers for tensor in layer]
    loops = loops_are_faster(x, hidden_dtype)
    if not torch.is_grad_enabled():
        return (compiled.forward if loops else _forward)(x, hidden_dtype, parameters)[0]
    outputs: Tensor = (compiled.Perceptron if loops else _Perceptron).apply(x, hidden_dtype, *parameters)
    return outputs


def loops_are_faster(x: Tensor, hidden_dtype: torch.dtype) -> bool:
    """On a CPU, where torch's operations do not share out their work, those of `rl.kernels` are."""
    known = x.dtype == torch.float32 and hidden_dtype in (torch.float32, torch.bfloat16)
    return known and x.device.type == "cpu" and torch.get_num_threads() == 1


def _forward(
    x: Tensor, hidden_dtype: torch.dtype, parameters: Sequence[Tensor], keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Returns the outputs and, to `keep` for the backward pass, the factors of each product: inputs, then weights.

    Bias and ReLU work in place, and what is not kept is freed: the next layer writes to memory that is in the cache.
    """
    layers = len(parameters) // 2
    inputs, weights = [], []
    for layer in range(layers):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        if 0 < layer < layers - 1:
            weight, x = weight.to(hidden_dtype), x.to(hidden_dtype)
        if keep:
            inputs.append(x)
            weights.append(weight)
        x = product(x, weight).float().add_(bias)  # float32: a CPU is slow at elementwise operations in bfloat16
        if layer < layers - 1:
            x.relu_()
    return x, inputs + weights


class _Perceptron(torch.autograd.Function):
    """The perceptron with its gradient by hand: a third of the operations that autograd records for the same layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden_dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        outputs, kept = _forward(x, hidden_dtype, parameters, keep=True)
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
                needed[2 * layer] = product(x.transpose(1, 2), gradient).float()
            if layer > 0:
                # With one output the product is an outer product: one multiplication an element, no sum.
                back = torch.mul if weight.shape[2] == 1 else torch.bmm
                gradient = back(gradient, weight.transpose(1, 2))
                # The ReLU's gradient, in place: where x is 0, the ReLU was closed.
                torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)
                gradient = gradient.float()
        into_input = torch.bmm(gradient, weights[0].transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return into_input, None, *needed


def product(x: Tensor, y: Tensor) -> Tensor:
    """Returns each agent's matrix product; that with one column, as of a critic, as a sum: libraries are slow at it."""
    return (x * y.transpose(1, 2)).sum(-1, keepdim=True) if y.shape[2] == 1 else torch.bmm(x, y)


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `rl.networks.squashed_gaussian` returns, with the gradient by hand."""
    action, log_probability = _SquashedGaussian.apply(mean, log_std, noise)
    return action, log_probability


class _SquashedGaussian(torch.autograd.Function):
    """Action and log-probability with their gradient by hand: a third of the operations that autograd records.

    With u = m + σε and a = tanh u: ∂a/∂u = 1 − a², ∂log π/∂u = 2a, ∂u/∂log σ = σε; log σ itself enters log π with −1.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        step = log_std.exp().mul_(noise)
        u = mean + step
        action = u.tanh()
        # log N(u) − log(1 − tanh²u) without the constants
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


def captured(update: Update, device: torch.device) -> Update:
    """Returns `update` as a CUDA graph on a GPU; elsewhere, and with TRILAB_PLAIN=1, `update` itself."""
    return CapturedUpdate(update) if device.type == "cuda" and not common.fast.PLAIN else update


class CapturedUpdate:
    """An update as a CUDA graph: some 300 kernel launches become one. The same numbers, for a GPU only."""

    WARM_UP = 3  # real updates on a side stream before the capture, as PyTorch's documentation asks for

    def __init__(self, update: Update) -> None:
        self.update, self.calls = update, 0
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step; the next call overwrites the tensors it returns."""
        self.calls += 1
        if self.calls <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                outputs = self.update(batch, noise)
            torch.cuda.current_stream().wait_stream(side)
            return outputs
        if not self.inputs:
            self.inputs = tuple(tensor.clone() for tensor in (*batch, *noise))
            size = len(batch)
            with torch.cuda.graph(self.graph):
                self.outputs = self.update(type(batch)(*self.inputs[:size]), Noise(*self.inputs[size:]))
        for static, tensor in zip(self.inputs, (*batch, *noise), strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return self.outputs
