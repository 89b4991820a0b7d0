"""The fast twin of batch normalisation, ReLU and pooling: the same numbers in fewer passes over memory.

With one or two threads of a CPU the loops of `pruning/kernels.py` do all three at once. `TRILAB_PLAIN=1` in the
environment runs torch's modules one by one. So do more threads, a GPU, the tracing of a network for export, and modules
with hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common import fast
from common.fast.loops import array, faster
from pruning import kernels

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of any nn.Module


class Layers(nn.Sequential):
    """An `nn.Sequential` in which a batch normalisation runs together with its ReLU and its pooling."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the last maps `(B, C′, H′, W′)` for maps `(B, C, H, W)`."""
        maps, rest = input, list(self)
        while rest:
            module, size = rest[0], pooled_by(rest)
            if size and isinstance(module, nn.BatchNorm2d) and loops_are_faster(rest[:3], module, maps, size):
                maps = normalised(module, maps, size)
                rest = rest[3 if size > 1 else 2 :]
            else:
                maps = module(maps)
                rest = rest[1:]
        return maps


def pooled_by(modules: Sequence[nn.Module]) -> int:
    """Returns the side of the pooling's windows if a ReLU follows the first module, 1 if nothing pools; else 0."""
    if len(modules) < 2 or not isinstance(modules[1], nn.ReLU):
        return 0
    pool = modules[2] if len(modules) > 2 else None
    if not isinstance(pool, nn.MaxPool2d):
        return 1
    usual = pool.stride == pool.kernel_size and pool.padding == 0 and pool.dilation == 1 and not pool.return_indices
    return pool.kernel_size if usual and isinstance(pool.kernel_size, int) else 0


def loops_are_faster(modules: Sequence[nn.Module], norm: nn.BatchNorm2d, maps: Tensor, size: int) -> bool:
    """Returns whether the loops fit these modules, the maps and the size of the windows, and are faster there."""
    if fast.PLAIN or not faster(maps, torch.channels_last):
        return False
    if any(getattr(module, hooks) for module in modules for hooks in HOOKS):
        return False
    known = norm.affine and norm.track_running_stats and norm.weight.dtype == torch.float32
    whole = maps.shape[2] % size == 0 and maps.shape[3] % size == 0
    # Without training the gradient is another one, and of a single value torch refuses the variance.
    fits = maps.numel() > maps.shape[1] if norm.training else not torch.is_grad_enabled()
    return known and whole and fits


def normalised(norm: nn.BatchNorm2d, maps: Tensor, size: int) -> Tensor:
    """Returns the maps `(B, C, H/size, W/size)` after normalisation, ReLU and pooling, for maps `(B, C, H, W)`.

    In training the running statistics move as torch moves them.
    """
    stored_mean, stored_variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert stored_mean is not None
    assert stored_variance is not None
    assert seen is not None
    mean, variance = stored_mean, stored_variance
    with torch.no_grad():
        if norm.training:
            rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
            mean, variance = torch.empty_like(stored_mean), torch.empty_like(stored_variance)
            kernels.moments(array(rows), array(mean), array(variance))
            seen += 1
            share = 1 / int(seen) if norm.momentum is None else norm.momentum
            stored_mean.lerp_(mean, share)
            stored_variance.lerp_(variance * (len(rows) / (len(rows) - 1)), share)
        deviation_inverse = (variance + norm.eps).rsqrt()
    result: Tensor = _NormaliseAndPool.apply(maps, norm.weight, norm.bias, mean, deviation_inverse, size)
    return result


class _NormaliseAndPool(torch.autograd.Function):
    """y = max over windows of ReLU(γ (x − μ)/σ + β), where μ and σ are those of the batch itself."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation_inverse: Tensor, size: int
    ) -> Tensor:
        last = maps.permute(0, 2, 3, 1)
        scale = weight * deviation_inverse
        shift = bias - mean * scale
        batch, height, width, channels = last.shape
        out = last.new_empty((batch, height // size, width // size, channels))
        kernels.normalise(array(last), array(scale), array(shift), size, array(out))
        ctx.save_for_backward(last, scale, shift, mean, deviation_inverse)
        ctx.size = size
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        last, scale, shift, mean, deviation_inverse = ctx.saved_tensors
        given = gradient.permute(0, 2, 3, 1).contiguous()
        count = last.numel() // len(mean)
        sums, products = torch.empty_like(mean), torch.empty_like(mean)
        arrays = [array(tensor) for tensor in (last, given, mean, scale, shift)]
        kernels.gradient_sums(*arrays, ctx.size, array(sums), array(products))
        for_maps = None
        if ctx.needs_input_grad[0]:
            # ∂x = γ/σ (g − mean of g − (x − μ)/σ² · mean of g (x − μ)), Ioffe & Szegedy 2015, section 3
            slope = -scale * deviation_inverse**2 * products / count
            offset = -scale * sums / count - slope * mean
            into = torch.empty_like(last)
            vectors = [array(tensor) for tensor in (scale, shift, slope, offset)]
            kernels.gradient_maps(array(last), array(given), *vectors, ctx.size, array(into))
            for_maps = into.permute(0, 3, 1, 2)
        return for_maps, products * deviation_inverse, sums, None, None, None
