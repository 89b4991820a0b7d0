"""Loops over arrays that numba compiles: for what torch does in many passes over memory, and a CPU could in one.

Where a task's own loops are, its file says so (`rl/kernels.py`, `pruning/kernels.py`). Arrays of type uint16 hold the
bits of bfloat16 numbers; `read` and `stored` go between them and float32. numba keeps what it compiled beside the
source of the loop, and looks at that source alone: after a change here delete the `__pycache__` folders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
# Sums may be reordered, so that they use vector instructions; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
MOST_THREADS = 2  # of torch; measured on a step of VGG11: its operations share out their work, and a loop does not


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


def read(row: Array, unit: int) -> Any:
    """Returns row[unit] as float32."""


@overload(read, inline="always", strict=False)
def _read_typed(row: Any, unit: Any) -> Any:
    if row.dtype == types.uint16:
        return lambda row, unit: _as_float(np.uint32(row[unit]) << np.uint32(16))
    return lambda row, unit: row[unit]


def stored(row: Array, value: Any) -> Any:
    """Returns a float32 value as `row` holds it, rounded to nearest, ties to even; NaN stays NaN."""


@overload(stored, inline="always", strict=False)
def _stored_typed(row: Any, value: Any) -> Any:
    if row.dtype == types.uint16:

        def rounded(row: Any, value: Any) -> Any:
            bits = _as_bits(value)
            if value != value:
                return np.uint16(0x7FC0)
            return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

        return rounded
    return lambda row, value: value


def faster(tensor: Tensor, memory: torch.memory_format = torch.contiguous_format) -> bool:
    """Returns whether a `Loop` over maps, in one thread, is faster than torch's operations, and can take the tensor.

    It takes float32 and bfloat16, in that order of memory, on a CPU, where no tracer of torch looks on.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or tensor.device.type != "cpu" or torch.get_num_threads() > MOST_THREADS:
        return False
    return tensor.dtype in (torch.float32, torch.bfloat16) and tensor.is_contiguous(memory_format=memory)


def array(tensor: Tensor) -> Array:
    """Returns the memory of a tensor on a CPU as an array for a `Loop`; bfloat16 as its bits."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
