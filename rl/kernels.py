"""What stands between the matrix products of a perceptron, each in one pass over memory: loops that numba compiles.

torch takes one pass for each of conversion, bias, ReLU, product with few outputs, sum, and the gradient of each. In the
small networks of this task these passes take longer than the products. Arrays are `(networks, batch, units)`; those of
type uint16 hold the bits of bfloat16 numbers. Sums are in float32. `rl/fast.py` calls these, in one thread of a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

Array = NDArray[Any]
# Sums may be reordered, so that they use vector instructions; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}


class Loop:
    """A function compiled at its first call. It is kept in a cache folder, unless that cannot be written or read."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        try:
            self._compile(cached=True)
        except RuntimeError:  # no folder is writable
            self._compile(cached=False)

    def _compile(self, *, cached: bool) -> None:
        self.cached, self.loop = cached, njit(fastmath=FAST, nogil=True, cache=cached)(self.function)

    def __call__(self, *arrays: Any) -> None:
        """Runs it on arrays; what it computes is in those that it sets."""
        try:
            self.loop(*arrays)
        except Exception:  # numba's own of a full disk, a damaged file and others
            if not self.cached:
                raise
            self._compile(cached=False)
            self.loop(*arrays)


def _bits_to_float(context: Any, bits: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.float32))

    return types.float32(types.uint32), code


def _float_to_bits(context: Any, value: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.uint32))

    return types.uint32(types.float32), code


_as_float: Any = intrinsic(_bits_to_float)
_as_bits: Any = intrinsic(_float_to_bits)


def _read(row: Array, unit: int) -> Any:
    """Returns row[unit] as float32."""


@overload(_read, inline="always", strict=False)
def _read_typed(row: Any, unit: Any) -> Any:
    if row.dtype == types.uint16:
        return lambda row, unit: _as_float(np.uint32(row[unit]) << np.uint32(16))
    return lambda row, unit: row[unit]


def _stored(row: Array, value: Any) -> Any:
    """Returns a float32 value as `row` holds it, rounded to nearest, ties to even; NaN stays NaN."""


@overload(_stored, inline="always", strict=False)
def _stored_typed(row: Any, value: Any) -> Any:
    if row.dtype == types.uint16:

        def rounded(row: Any, value: Any) -> Any:
            bits = _as_bits(value)
            if value != value:
                return np.uint16(0x7FC0)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return rounded
    return lambda row, value: value


@Loop
def activate(product: Array, bias: Array, out: Array) -> None:
    """Sets `out` to ReLU(product + bias)."""
    zero = np.float32(0)
    for network in range(product.shape[0]):
        offset = bias[network, 0]
        for example in range(product.shape[1]):
            source, row = product[network, example], out[network, example]
            for unit in range(product.shape[2]):
                value = _read(source, unit) + offset[unit]
                row[unit] = _stored(row, zero if value <= 0 else value)


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
                value = _read(source, unit) + offset[unit]
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
                value = _read(source, unit) + offset[unit]
                closed = value <= 0
                hidden[unit] = zero if closed else value
                passed = zero if closed else back[unit]
                back[unit] = passed
                target[unit] = _stored(target, passed)
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
                passed = zero if state[unit] == 0 else _read(source, unit)
                row[unit] = _stored(row, passed)
                if learning:
                    sums[unit] += passed
