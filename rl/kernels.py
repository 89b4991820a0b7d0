"""What stands between the matrix products of a perceptron, each in one pass over memory: loops that numba compiles.

torch takes one pass for each of conversion, bias, ReLU, product with few outputs, sum, and the gradient of each. In the
small networks of this task these passes take longer than the products. Arrays are `(networks, batch, units)`; those of
type uint16 hold the bits of bfloat16 numbers. Sums are in float32. `rl/compiled.py` calls these.
"""

from __future__ import annotations

import numpy as np

from common.fast.loops import Array, Loop, read, stored


@Loop
def activate(product: Array, bias: Array, out: Array) -> None:
    """Sets `out` to ReLU(product + bias)."""
    zero = np.float32(0)
    for network in range(product.shape[0]):
        offset = bias[network, 0]
        for example in range(product.shape[1]):
            source, row = product[network, example], out[network, example]
            for unit in range(product.shape[2]):
                value = read(source, unit) + offset[unit]
                row[unit] = stored(row, zero if value <= 0 else value)


@Loop
def read_out(product: Array, bias: Array, weight: Array, last_bias: Array, out: Array) -> None:
    """Sets `out` `(networks, batch, outputs)` to h·W + b with h = ReLU(product + bias), for few outputs.

    `weight` is `(networks, outputs, units)`, so that each output's weights are one row.
    """
    zero = np.float32(0)
    units = product.shape[2]
    hidden = np.empty(units, np.float32)
    for network in range(product.shape[0]):
        offset = bias[network, 0]
        for example in range(product.shape[1]):
            source = product[network, example]
            for unit in range(units):
                value = read(source, unit) + offset[unit]
                hidden[unit] = zero if value <= 0 else value
            for output in range(weight.shape[1]):
                row, total = weight[network, output], zero
                for unit in range(units):
                    total += hidden[unit] * row[unit]
                out[network, example, output] = total + last_bias[network, 0, output]


@Loop
def read_out_back(
    product: Array,
    bias: Array,
    weight: Array,
    gradient: Array,
    into: Array,
    for_weight: Array,
    for_bias: Array,
    learning: bool,
) -> None:
    """Sets the gradients of `read_out` for `gradient` `(networks, batch, outputs)` of its outputs.

    `into` is that of the product; `for_weight` and `for_bias`, only if `learning`, are those of `weight` and `bias`.
    """
    zero = np.float32(0)
    units, outputs = product.shape[2], weight.shape[1]
    hidden, back = np.empty(units, np.float32), np.empty(units, np.float32)
    if learning:
        for_weight[:] = 0
        for_bias[:] = 0
    for network in range(product.shape[0]):
        offset, sums = bias[network, 0], for_bias[network, 0]
        for example in range(product.shape[1]):
            source, target = product[network, example], into[network, example]
            back[:] = 0
            for output in range(outputs):
                row, share = weight[network, output], gradient[network, example, output]
                for unit in range(units):
                    back[unit] += share * row[unit]
            for unit in range(units):
                value = read(source, unit) + offset[unit]
                closed = value <= 0
                hidden[unit] = zero if closed else value
                passed = zero if closed else back[unit]
                back[unit] = passed
                target[unit] = stored(target, passed)
            if learning:
                for unit in range(units):
                    sums[unit] += back[unit]
                for output in range(outputs):
                    row, share = for_weight[network, output], gradient[network, example, output]
                    for unit in range(units):
                        row[unit] += share * hidden[unit]


@Loop
def through_relu(gradient: Array, activation: Array, out: Array, for_bias: Array, learning: bool) -> None:
    """Sets `out` to the gradient where the activation is open, and `for_bias`, if `learning`, to its sum."""
    zero = np.float32(0)
    if learning:
        for_bias[:] = 0
    for network in range(gradient.shape[0]):
        sums = for_bias[network, 0]
        for example in range(gradient.shape[1]):
            source, state, row = gradient[network, example], activation[network, example], out[network, example]
            for unit in range(gradient.shape[2]):
                passed = zero if state[unit] == 0 else read(source, unit)
                row[unit] = stored(row, passed)
                if learning:
                    sums[unit] += passed


@Loop
def measure(product: Array, bias: Array, mean: Array, variance: Array) -> None:
    """Sets `mean` and `variance` `(networks, 1, units)` to those of ReLU(product + bias) over the batch."""
    zero = np.float32(0)
    examples, units = product.shape[1], product.shape[2]
    squares = np.empty(units, np.float32)
    for network in range(product.shape[0]):
        offset, sums = bias[network, 0], mean[network, 0]
        sums[:] = 0
        squares[:] = 0
        for example in range(examples):
            source = product[network, example]
            for unit in range(units):
                value = read(source, unit) + offset[unit]
                value = zero if value <= 0 else value
                sums[unit] += value
                squares[unit] += value * value
        for unit in range(units):
            sums[unit] /= np.float32(examples)
            spread = squares[unit] / np.float32(examples) - sums[unit] * sums[unit]
            variance[network, 0, unit] = zero if spread < 0 else spread


@Loop
def read_out_weight(product: Array, bias: Array, gradient: Array, for_weight: Array) -> None:
    """Sets `for_weight` `(networks, outputs, units)` to hᵀ·gradient with h = ReLU(product + bias)."""
    zero = np.float32(0)
    units = product.shape[2]
    hidden = np.empty(units, np.float32)
    for_weight[:] = 0
    for network in range(product.shape[0]):
        offset = bias[network, 0]
        for example in range(product.shape[1]):
            source = product[network, example]
            for unit in range(units):
                value = read(source, unit) + offset[unit]
                hidden[unit] = zero if value <= 0 else value
            for output in range(for_weight.shape[1]):
                row, share = for_weight[network, output], gradient[network, example, output]
                for unit in range(units):
                    row[unit] += share * hidden[unit]


@Loop
def read_out_through_norm(
    product: Array,
    bias: Array,
    weight: Array,
    gradient: Array,
    slope: Array,
    shift: Array,
    into: Array,
    for_bias: Array,
) -> None:
    """Sets `into` to the gradient of `product`, and `for_bias` to its sum, if the batch's statistics are in `weight`.

    With h = ReLU(product + bias) it is gradient·weight + h·slope − shift where h is open (see `rl/renormalised.py`).
    """
    zero = np.float32(0)
    units = product.shape[2]
    back = np.empty(units, np.float32)
    for_bias[:] = 0
    for network in range(product.shape[0]):
        offset, steep, down, sums = bias[network, 0], slope[network, 0], shift[network, 0], for_bias[network, 0]
        for example in range(product.shape[1]):
            source, target = product[network, example], into[network, example]
            back[:] = 0
            for output in range(weight.shape[1]):
                row, share = weight[network, output], gradient[network, example, output]
                for unit in range(units):
                    back[unit] += share * row[unit]
            for unit in range(units):
                value = read(source, unit) + offset[unit]
                passed = zero if value <= 0 else back[unit] + value * steep[unit] - down[unit]
                sums[unit] += passed
                target[unit] = stored(target, passed)


@Loop
def through_norm(gradient: Array, activation: Array, slope: Array, shift: Array, out: Array, for_bias: Array) -> None:
    """Sets `out` to gradient + activation·slope − shift where the activation is open, and `for_bias` to its sum."""
    zero = np.float32(0)
    for_bias[:] = 0
    for network in range(gradient.shape[0]):
        steep, down, sums = slope[network, 0], shift[network, 0], for_bias[network, 0]
        for example in range(gradient.shape[1]):
            source, state, row = gradient[network, example], activation[network, example], out[network, example]
            for unit in range(gradient.shape[2]):
                value = read(state, unit)
                passed = zero if value == 0 else read(source, unit) + value * steep[unit] - down[unit]
                sums[unit] += passed
                row[unit] = stored(row, passed)
