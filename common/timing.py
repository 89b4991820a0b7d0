"""How long works take: measured in turn, so that a slow minute of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from common.device import synchronize


def in_turn(works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Returns the seconds that each work took on `device`, in turn for so many seconds and three rounds at least."""

    def time_of(work: Callable[[], object]) -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    for work in works.values():
        work()  # torch chooses its kernels in the first pass
    start, rounds = time.perf_counter(), list[dict[str, float]]()
    while len(rounds) < 3 or time.perf_counter() - start < seconds:
        rounds.append({name: time_of(work) for name, work in works.items()})
    return {name: [times[name] for times in rounds] for name in works}


def quartiles(values: list[float]) -> list[float]:
    """Returns the first and the third quartile."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
