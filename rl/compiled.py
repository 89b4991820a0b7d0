"""The perceptron of `rl/networks.py` in one thread of a CPU: matrix products, and the loops of `rl/kernels.py` between.

The same value and the same gradient as the plain formula; `rl/fast.py` chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.fast.loops import array
from rl import kernels

FEW = 8  # outputs of a last layer that a loop computes faster than a matrix product


def forward(x: Tensor, hidden_dtype: torch.dtype, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the outputs and what the backward pass needs: the input of each layer, then its weights as multiplied.

    Where a last layer has `FEW` outputs, its input is never written: in its place is the product it is made of.
    """
    last = len(parameters) // 2 - 1
    inputs, weights = [], []
    for layer in range(last):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        if layer > 0:
            weight = weight.to(hidden_dtype)
        inputs.append(x)
        weights.append(weight)
        product = torch.bmm(x, weight)
        if layer == last - 1 and parameters[2 * last].shape[2] <= FEW:
            rows = parameters[2 * last].detach().transpose(1, 2).contiguous()
            outputs = bias.new_empty((*product.shape[:2], rows.shape[1]))
            kernels.read_out(*map(array, (product, bias, rows, parameters[2 * last + 1], outputs)))
            return outputs, [*inputs, product, *weights, rows]
        x = torch.empty_like(product, dtype=torch.float32 if layer == last - 1 else hidden_dtype)
        kernels.activate(*map(array, (product, bias, x)))
    weight, bias = parameters[2 * last :]
    return torch.baddbmm(bias, x, weight), [*inputs, x, *weights, weight]


class Perceptron(torch.autograd.Function):
    """The perceptron in one thread: matrix products, and between them one pass over memory each (`rl.kernels`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden_dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        outputs, kept = forward(x, hidden_dtype, parameters)
        ctx.save_for_backward(*kept, *parameters[1::2])
        ctx.hidden_dtype = hidden_dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 3
        last = layers - 1
        inputs, weights, biases = (ctx.saved_tensors[n * layers : (n + 1) * layers] for n in range(3))
        learning = ctx.needs_input_grad[2]
        needed: list[Tensor | None] = [None] * (2 * layers)
        if learning:
            needed[2 * last + 1] = gradient.sum(1, keepdim=True)
        for layer in reversed(range(layers)):
            x, weight = inputs[layer], weights[layer]
            few = layer == last > 0 and biases[last].shape[2] <= FEW  # x is a product, and the weights are rows
            if learning and not few:
                needed[2 * layer] = torch.bmm(x.transpose(1, 2), gradient).float()
            if layer == 0:
                break
            bias = biases[layer - 1]  # of the layer before, whose product gets its gradient
            into = torch.empty_like(x, dtype=ctx.hidden_dtype if layer > 1 else torch.float32)
            for_bias = torch.empty_like(bias)
            if few:
                for_rows, given = torch.empty_like(weight), gradient.contiguous()
                kernels.read_out_back(*map(array, (x, bias, weight, given, into, for_rows, for_bias)), learning)
                needed[2 * layer] = for_rows.transpose(1, 2).contiguous() if learning else None
            else:
                back = torch.bmm(gradient, weight.transpose(1, 2))
                kernels.through_relu(*map(array, (back, x, into, for_bias)), learning)
            needed[2 * layer - 1] = for_bias if learning else None
            gradient = into
        into_input = torch.bmm(gradient, weights[0].transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return into_input, None, *needed
