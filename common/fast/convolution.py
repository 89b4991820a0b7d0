"""Convolutions of wide layers on small maps as one matrix product each, where this is faster: on a CPU.

Equal to `nn.Conv2d` and `nn.ConvTranspose2d` in value and in all gradients, to rounding. A convolution is `patches` of
the input times a matrix; a transposed one is a matrix product whose overlapping results `overlap_add` sums, with few
threads in a compiled loop. The two are each other's transposes, so each is the other's gradient. torch's kernels for a
CPU handle such shapes badly, a large matrix product they handle well: on 2 cores and in bfloat16 this takes two fifths
off the time of Pythae's layers from 7×7 pixels down, and a third off a whole training step of VGG11, where it computes
the four layers of 512 channels on 4×4 and 2×2 maps. With 64 channels, on larger maps, or for a single image with a
stride of 1, torch's kernels are faster.

On a GPU, and with `TRILAB_PLAIN=1`, both classes run torch's own kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common import fast
from common.fast.loops import Array, Loop, array, faster, read, stored

Geometry = tuple[int, int, int]  # kernel size, stride, padding; all layers here are square


def patches(maps: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Returns the `(B, *size, k·k·C)` inputs of a convolution's outputs, for maps `(B, H, W, C)`."""
    kernel, stride, padding = geometry
    batch, channels = maps.shape[0], maps.shape[3]
    padded = F.pad(maps, (0, 0, padding, padding, padding, padding)).contiguous()
    down = padded.stride()
    windows = padded.as_strided(
        (batch, *size, kernel, kernel, channels), (down[0], stride * down[1], stride * down[2], down[1], down[2], 1)
    )
    return windows.reshape(batch, *size, kernel * kernel * channels)


def overlap_add(taps: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Returns maps `(B, *size, C)`: the taps `(B, h, w, k·k·C)` of each input position, added where the kernel lies.

    The result has no gradient; in float32 and bfloat16, with few threads, a loop adds in float32 and rounds once.
    """
    kernel, stride, padding = geometry
    batch, rows, columns, width = taps.shape
    channels = width // kernel**2
    if faster(taps):
        added = taps.new_empty((batch, *size, channels))
        add_taps(array(taps), kernel, stride, padding, array(added))
        return added
    height, breadth = (
        max(s + 2 * padding, (n - 1) * stride + kernel) for s, n in zip(size, (rows, columns), strict=True)
    )
    maps = taps.new_zeros((batch, height, breadth, channels))
    for tap in range(kernel**2):
        down, right = divmod(tap, kernel)
        target = maps[:, down : down + stride * rows : stride, right : right + stride * columns : stride]
        target += taps[..., tap * channels : (tap + 1) * channels]
    return maps[:, padding : padding + size[0], padding : padding + size[1]]


@Loop
def add_taps(taps: Array, kernel: int, stride: int, padding: int, maps: Array) -> None:
    """Sets `maps` as `overlap_add` does, in one pass over `taps`; the sums are kept in float32 until they are whole."""
    rows, columns = taps.shape[1:3]
    batch, height, width, channels = maps.shape
    total = np.empty(channels, np.float32)
    for example in range(batch):
        for y in range(height):
            for x in range(width):
                total[:] = 0
                for down in range(kernel):
                    row = y + padding - down
                    for right in range(kernel):
                        column = x + padding - right
                        inside = 0 <= row < stride * rows and 0 <= column < stride * columns
                        if inside and row % stride == 0 and column % stride == 0:
                            tap = (down * kernel + right) * channels
                            source = taps[example, row // stride, column // stride, tap : tap + channels]
                            for channel in range(channels):
                                total[channel] += read(source, channel)
                target = maps[example, y, x]
                for channel in range(channels):
                    target[channel] = stored(target, total[channel])


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a kernel `(A, B, k, k)` as the matrix `(A, k·k·B)`; of a channels-last kernel only the cast is a copy."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(dtype)


def _kernel(matrix: Tensor, weight: Tensor) -> Tensor:
    """Returns a gradient `(A, k·k·B)` in the shape and number format of `weight` (A, B, k, k)."""
    shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
    return matrix.to(weight.dtype).view(shape).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: Geometry,
        size: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        columns = patches(maps.to(dtype).permute(0, 2, 3, 1), geometry, size).flatten(0, 2)
        matrix = _matrix(weight, dtype)
        ctx.save_for_backward(columns, matrix, weight)
        ctx.geometry, ctx.size, ctx.input_size, ctx.input_dtype = geometry, size, tuple(maps.shape[2:]), maps.dtype
        return torch.addmm(bias.to(dtype), columns, matrix.T).view(len(maps), *size, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, matrix, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).reshape(len(columns), -1)
        for_maps = None
        if ctx.needs_input_grad[0]:
            taps = (rows @ matrix).view(len(gradient), *ctx.size, -1)
            for_maps = overlap_add(taps, ctx.geometry, ctx.input_size).permute(0, 3, 1, 2).to(ctx.input_dtype)
        for_weight = _kernel(rows.T.contiguous() @ columns, weight)  # a transposed factor is slow in bfloat16
        return for_maps, for_weight, rows.sum(0, dtype=weight.dtype), None, None, None


class _TransposedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: Geometry,
        size: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        rows = maps.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)
        matrix = _matrix(weight, dtype)
        ctx.save_for_backward(rows, matrix, weight)
        ctx.geometry, ctx.input_shape, ctx.input_dtype = geometry, maps.shape, maps.dtype
        taps = (rows @ matrix).view(len(maps), *maps.shape[2:], -1)
        return (overlap_add(taps, geometry, size) + bias.to(dtype)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, matrix, weight = ctx.saved_tensors
        batch, channels, *size = ctx.input_shape
        last = gradient.permute(0, 2, 3, 1)
        columns = patches(last, ctx.geometry, tuple(size)).flatten(0, 2)
        for_maps = None
        if ctx.needs_input_grad[0]:
            for_maps = (columns @ matrix.T).view(batch, *size, channels).permute(0, 3, 1, 2).to(ctx.input_dtype)
        return for_maps, _kernel(rows.T @ columns, weight), last.sum((0, 1, 2), dtype=weight.dtype), None, None, None


def _dtype(maps: Tensor) -> torch.dtype:
    """Returns the number format of the product: autocast's, or that of the input."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype


class MatrixConv2d(nn.Conv2d):
    """`nn.Conv2d` with a square kernel and equal stride and padding both ways; on a CPU as one matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `(B, out, H′, W′)` for `(B, in, H, W)`."""
        alone = len(input) == 1 and self.stride[0] == 1  # of one image torch's kernel is faster: so few rows
        if fast.PLAIN or input.device.type != "cpu" or alone:
            return super().forward(input)
        assert self.bias is not None
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        size = tuple((n + 2 * padding - kernel) // stride + 1 for n in input.shape[2:])
        geometry = (kernel, stride, padding)
        output: Tensor = _Convolution.apply(input, self.weight, self.bias, geometry, size, _dtype(input))
        return output


class MatrixConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a square kernel and equal stride and padding both ways; on a CPU a matrix product."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Returns `(B, out, H′, W′)` for `(B, in, H, W)`."""
        if fast.PLAIN or input.device.type != "cpu":
            return super().forward(input, output_size)
        assert self.bias is not None
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        extra = self.output_padding[0]
        size = tuple((n - 1) * stride - 2 * padding + kernel + extra for n in input.shape[2:])
        geometry = (kernel, stride, padding)
        output: Tensor = _TransposedConvolution.apply(input, self.weight, self.bias, geometry, size, _dtype(input))
        return output
