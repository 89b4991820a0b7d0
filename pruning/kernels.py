"""A batch normalisation with the ReLU and the pooling behind it, in two passes over memory: loops that numba compiles.

Their gradient takes two more. One by one they are a quarter of a training step of VGG11 in one thread of a CPU.
Maps are `(B, H, W, C)`, float32 or the bits of bfloat16. `size` is the side of the pooling's windows, 1 where there is
none. Vectors have a float32 for each channel; sums are kept in float64. `pruning/fast.py` calls these.
"""

from __future__ import annotations

import numpy as np

from common.fast.loops import Array, Loop, read, stored

BLOCK = 256  # rows that are added in float32 before they go to float64


@Loop
def moments(maps: Array, mean: Array, variance: Array) -> None:
    """Sets the mean and the biased variance of each channel, for maps as rows `(B·H·W, C)`."""
    rows, channels = maps.shape
    origin, sums, squares = np.zeros((3, channels), np.float32)
    total, total_squares = np.zeros(channels), np.zeros(channels)
    for channel in range(channels):  # differences from the first row: no cancellation where the mean is large
        origin[channel] = read(maps[0], channel)
    for start in range(0, rows, BLOCK):
        sums[:] = 0
        squares[:] = 0
        for row in range(start, min(start + BLOCK, rows)):
            source = maps[row]
            for channel in range(channels):
                value = read(source, channel) - origin[channel]
                sums[channel] += value
                squares[channel] += value * value
        for channel in range(channels):
            total[channel] += sums[channel]
            total_squares[channel] += squares[channel]
    for channel in range(channels):
        offset = total[channel] / rows
        mean[channel] = origin[channel] + offset
        variance[channel] = max(total_squares[channel] / rows - offset * offset, 0.0)


@Loop
def normalise(maps: Array, scale: Array, shift: Array, size: int, out: Array) -> None:
    """Sets `out` `(B, H/size, W/size, C)` to the largest of each window of ReLU(scale·x + shift), NaN above all."""
    channels = maps.shape[3]
    largest = np.empty(channels, np.float32)
    for example in range(out.shape[0]):
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                largest[:] = 0
                for place in range(size * size):
                    source = maps[example, size * row + place // size, size * column + place % size]
                    for channel in range(channels):
                        value = read(source, channel) * scale[channel] + shift[channel]
                        keeps = (value <= largest[channel]) | (largest[channel] != largest[channel])
                        largest[channel] = largest[channel] if keeps else value
                target = out[example, row, column]
                for channel in range(channels):
                    target[channel] = stored(target, largest[channel])


@Loop
def gradient_sums(
    maps: Array, gradient: Array, mean: Array, scale: Array, shift: Array, size: int, sums: Array, products: Array
) -> None:
    """Sets the sums of g and of g·(x − mean) for each channel, where g is the gradient after the normalisation.

    `gradient` `(B, H/size, W/size, C)` is that of the output: in each window it goes to the first of the largest
    values, if that is above zero.
    """
    zero = np.float32(0)
    channels = maps.shape[3]
    largest, winner = np.empty(channels, np.float32), np.empty(channels, np.float32)
    partial, partial_products = np.empty(channels, np.float32), np.empty(channels, np.float32)
    total, total_products = np.zeros(channels), np.zeros(channels)
    for example in range(gradient.shape[0]):
        for row in range(gradient.shape[1]):
            partial[:] = 0
            partial_products[:] = 0
            for column in range(gradient.shape[2]):
                largest[:] = 0
                winner[:] = 0
                for place in range(size * size):
                    source = maps[example, size * row + place // size, size * column + place % size]
                    for channel in range(channels):
                        found = read(source, channel)
                        value = found * scale[channel] + shift[channel]
                        keeps = (value <= largest[channel]) | (largest[channel] != largest[channel])
                        largest[channel] = largest[channel] if keeps else value
                        winner[channel] = winner[channel] if keeps else found
                given = gradient[example, row, column]
                for channel in range(channels):
                    share = zero if largest[channel] == 0 else read(given, channel)
                    partial[channel] += share
                    partial_products[channel] += share * (winner[channel] - mean[channel])
            for channel in range(channels):
                total[channel] += partial[channel]
                total_products[channel] += partial_products[channel]
    sums[:] = total
    products[:] = total_products


@Loop
def gradient_maps(
    maps: Array,
    gradient: Array,
    scale: Array,
    shift: Array,
    slope: Array,
    offset: Array,
    size: int,
    into: Array,
) -> None:
    """Sets `into` `(B, H, W, C)` to scale·g + slope·x + offset, where g is the gradient after the normalisation."""
    zero = np.float32(0)
    channels = maps.shape[3]
    largest, winner = np.empty(channels, np.float32), np.empty(channels, np.int32)
    for example in range(gradient.shape[0]):
        for row in range(gradient.shape[1]):
            for column in range(gradient.shape[2]):
                largest[:] = 0
                winner[:] = -1
                for place in range(size * size):
                    source = maps[example, size * row + place // size, size * column + place % size]
                    for channel in range(channels):
                        value = read(source, channel) * scale[channel] + shift[channel]
                        keeps = (value <= largest[channel]) | (largest[channel] != largest[channel])
                        largest[channel] = largest[channel] if keeps else value
                        winner[channel] = winner[channel] if keeps else np.int32(place)
                given = gradient[example, row, column]
                for place in range(size * size):
                    source = maps[example, size * row + place // size, size * column + place % size]
                    target = into[example, size * row + place // size, size * column + place % size]
                    for channel in range(channels):
                        share = read(given, channel) if winner[channel] == place else zero
                        value = scale[channel] * share + slope[channel] * read(source, channel) + offset[channel]
                        target[channel] = stored(target, value)
