"""The fast twin of `rl.crossq.renormalised_perceptron`: its normalisation is folded into the weights.

norm(x) = x·s + t with s = γr/σ_B and t = β + γd − μ_B·s, so that norm(x)·W + b = x·(sᵀW) + (tW + b): no pass over the
batch for it. The gradient, by hand, goes through μ_B and σ_B too. In one thread of a CPU the loops of `rl/kernels.py`
stand between the matrix products, elsewhere torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.fast.loops import array
from rl import fast, kernels
from rl.compiled import FEW

if TYPE_CHECKING:
    from rl.crossq import Norm

PER_LAYER = 4  # parameters: W, b, γ and β


def perceptron(
    x: Tensor, layers: fast.Layers, norms: Sequence[Norm], hidden_dtype: torch.dtype
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Returns what `rl.crossq.renormalised_perceptron` returns."""
    parameters = [tensor for layer, norm in zip(layers, norms, strict=True) for tensor in (*layer, *norm[:2])]
    statistics: list[tuple[Tensor, Tensor]] = []
    function = _Compiled if fast.loops_are_faster(x, hidden_dtype) else _Perceptron
    outputs: Tensor = function.apply(x, hidden_dtype, norms, statistics, *parameters)
    return outputs, statistics


class Folded(NamedTuple):
    """A layer whose normalisation is in its weights, and, each `(networks, 1, inputs)`, what its gradient needs."""

    weight: Tensor  # sᵀW, (networks, inputs, outputs)
    bias: Tensor  # tW + b, (networks, 1, outputs)
    mean: Tensor  # μ_B
    deviation: Tensor  # σ_B
    gain: Tensor  # r/σ_B
    factor: Tensor  # s
    offset: Tensor  # t
    d: Tensor


def fold(weight: Tensor, bias: Tensor, norm: Norm, mean: Tensor, variance: Tensor) -> Folded:
    """Returns the layer for the batch's statistics `(networks, 1, inputs)`."""
    deviation = norm.deviation(variance)
    r, d = norm.corrections(mean, deviation)
    gain = r / deviation
    factor = norm.scale * gain
    offset = norm.shift + norm.scale * d - mean * factor
    folded = factor.transpose(1, 2) * weight
    return Folded(folded, torch.baddbmm(bias, offset, weight), mean, deviation, gain, factor, offset, d)


def gradients(
    layer: Folded, weight: Tensor, for_weight: Tensor, for_bias: Tensor, batch: int
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Returns the gradients of W, b, γ and β from those of the folded weight and bias, and two terms of that of x.

    The latter, `(networks, 1, inputs)`, say what reaches x through σ_B and μ_B: x·slope − shift.
    """
    for_offset = torch.bmm(for_bias, weight.transpose(1, 2))
    for_own = torch.baddbmm(layer.factor.transpose(1, 2) * for_weight, layer.offset.transpose(1, 2), for_bias)
    for_factor = (for_weight * weight).sum(2)[:, None] - for_offset * layer.mean
    for_scale = for_offset * layer.d + for_factor * layer.gain
    # Through σ_B: ∂s/∂σ² = −s/2σ²; through μ_B: t has −μ_B·s.
    for_variance = -0.5 * for_factor * layer.factor / layer.deviation.square()
    shift = (for_offset * layer.factor + 2 * layer.mean * for_variance) / batch
    return [for_own, for_bias, for_scale, for_offset], for_variance * (2 / batch), shift


class _Perceptron(torch.autograd.Function):
    """Layers x ← ReLU(norm(x)·W + b) by torch's operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden_dtype: torch.dtype,
        norms: Sequence[Norm],
        statistics: list[tuple[Tensor, Tensor]],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.kept, last = [], len(norms) - 1
        for number, norm in enumerate(norms):
            weight, bias = parameters[PER_LAYER * number : PER_LAYER * number + 2]
            if number == 0:
                variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            else:  # after a ReLU the mean is not large beside the deviation, so that nothing cancels
                mean = x.mean(1, keepdim=True)
                variance = (x.square().mean(1, keepdim=True) - mean.square()).clamp_(min=0)
            statistics.append((mean, variance))
            layer = fold(weight, bias, norm, mean, variance)
            hidden = 0 < number < last
            used, seen = (layer.weight.to(hidden_dtype), x.to(hidden_dtype)) if hidden else (layer.weight, x)
            ctx.kept.append((x, seen, layer._replace(weight=used)))
            x = fast.product(seen, used).float().add_(layer.bias)
            if number < last:
                x.relu_()
        ctx.save_for_backward(*parameters)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed: list[Tensor | None] = []
        for number, (x, seen, layer) in reversed(list(enumerate(ctx.kept))):
            weight = ctx.saved_tensors[PER_LAYER * number]
            for_bias = gradient.sum(1, keepdim=True)
            gradient = gradient.to(layer.weight.dtype)
            for_weight = fast.product(seen.transpose(1, 2), gradient).float()
            own, slope, shift = gradients(layer, weight, for_weight, for_bias, x.shape[1])
            needed = [*own, *needed]
            if number == 0 and not ctx.needs_input_grad[0]:
                break
            back = torch.mul if weight.shape[2] == 1 else torch.bmm
            into = back(gradient, layer.weight.transpose(1, 2)).float().addcmul_(x, slope).sub_(shift)
            if number > 0:
                torch.ops.aten.threshold_backward.grad_input(into, x, 0, grad_input=into)
            gradient = into
        return (gradient if ctx.needs_input_grad[0] else None), None, None, None, *needed


class _Compiled(torch.autograd.Function):
    """The same in one thread: matrix products, and between them the loops of `rl.kernels`.

    Where a last layer has `FEW` outputs, its input is never written: in its place is the product it is made of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden_dtype: torch.dtype,
        norms: Sequence[Norm],
        statistics: list[tuple[Tensor, Tensor]],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.inputs, ctx.layers, last = [], [], len(norms) - 1
        ctx.few = last > 0 and parameters[PER_LAYER * last].shape[2] <= FEW
        product = x
        for number, norm in enumerate(norms):
            weight, bias = parameters[PER_LAYER * number : PER_LAYER * number + 2]
            if number == 0:
                variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            else:
                mean, variance = torch.empty_like(norm.mean), torch.empty_like(norm.variance)
                kernels.measure(*map(array, (product, ctx.layers[-1].bias, mean, variance)))
            statistics.append((mean, variance))
            layer = fold(weight, bias, norm, mean, variance)
            if number == last and ctx.few:
                layer = layer._replace(weight=layer.weight.transpose(1, 2).contiguous())  # a row for each output
                ctx.inputs.append(product)
                outputs = torch.empty((*product.shape[:2], layer.weight.shape[1]))
                kernels.read_out(*map(array, (product, ctx.layers[-1].bias, layer.weight, layer.bias, outputs)))
            else:
                if number > 0:
                    dtype = torch.float32 if number == last else hidden_dtype
                    x = torch.empty_like(product, dtype=dtype)
                    kernels.activate(*map(array, (product, ctx.layers[-1].bias, x)))
                    layer = layer._replace(weight=layer.weight.to(dtype))
                ctx.inputs.append(x)
                outputs = product = torch.bmm(x, layer.weight)
            ctx.layers.append(layer)
        ctx.save_for_backward(*parameters)
        ctx.hidden_dtype = hidden_dtype
        return outputs if ctx.few else outputs + layer.bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        last, for_bias = len(ctx.layers) - 1, gradient.sum(1, keepdim=True)
        needed: list[Tensor | None] = []
        for number in reversed(range(last + 1)):
            x, layer = ctx.inputs[number], ctx.layers[number]
            weight = ctx.saved_tensors[PER_LAYER * number]
            few = number == last and ctx.few  # x is a product, and the folded weights are rows
            if few:
                before, given, for_rows = ctx.layers[-2].bias, gradient.contiguous(), torch.empty_like(layer.weight)
                kernels.read_out_weight(*map(array, (x, before, given, for_rows)))
                for_weight = for_rows.transpose(1, 2)
            else:
                for_weight = torch.bmm(x.transpose(1, 2), gradient).float()
            own, slope, shift = gradients(layer, weight, for_weight, for_bias, x.shape[1])
            needed = [*own, *needed]
            if number == 0:
                break
            into = torch.empty_like(x, dtype=ctx.hidden_dtype if number > 1 else torch.float32)
            for_bias = torch.empty_like(layer.mean)
            if few:
                rest = layer.weight, given, slope, shift, into, for_bias
                kernels.read_out_through_norm(*map(array, (x, before, *rest)))
            else:
                back = torch.bmm(gradient, layer.weight.transpose(1, 2))
                kernels.through_norm(*map(array, (back, x, slope, shift, into, for_bias)))
            gradient = into
        into_input = None
        if ctx.needs_input_grad[0]:
            into_input = torch.bmm(gradient, layer.weight.transpose(1, 2)).addcmul_(x, slope).sub_(shift)
        return into_input, None, None, None, *needed
