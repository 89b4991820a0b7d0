"""What is faster than the plain version and equal to it, and the one place that chooses between the two.

The files that a reader learns the method from (`rl/networks.py`, `vae/objective.py`) hold the formulas as the papers
write them. A formula that takes much of a training step's time has a twin in a file called `fast`: the same value and
the same gradient from fewer operations. `TRILAB_PLAIN=1` in the environment runs the plain formulas everywhere; the
results are the same to rounding.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PLAIN = os.environ.get("TRILAB_PLAIN", "0") not in ("", "0")


def replaced_by(twin: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator for a plain function: calls go to `twin` instead, unless TRILAB_PLAIN is set.

    The plain function stays at `__wrapped__`, where tests compare the two.
    """

    def choose(plain: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(plain)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return (plain if PLAIN else twin)(*args, **kwargs)

        return call

    return choose
