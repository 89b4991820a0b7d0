"""Threads of our own, which take whole parts of a step, in place of torch's inside each of its operations.

torch's threads meet after every operation. Where a step has hundreds of small ones, two threads gain little over one;
parts that do not depend on each other need not meet until the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Parts:
    """The threads that take a step's parts; without helpers the parts follow each other."""

    def __init__(self, helpers: ThreadPoolExecutor | None = None) -> None:
        self.helpers = helpers

    def map(self, work: Callable[[int], Result], parts: int) -> list[Result]:
        """Returns `work` of 0 … parts − 1, each in a thread of its own; raises what one of them raises."""
        if self.helpers is None:
            return [work(number) for number in range(parts)]
        later = [self.helpers.submit(work, number) for number in range(1, parts)]
        try:
            first = work(0)
        finally:
            results = [future.result() for future in later]
        return [first, *results]


@contextlib.contextmanager
def in_parts(parts: int) -> Iterator[Parts]:
    """While this is open, so many parts have a thread each, and torch's operations run in the thread that calls them.

    With one part nothing changes: torch's operations take its threads.
    """
    if parts == 1:
        yield Parts()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # before the helpers begin: they take it over
    try:
        with ThreadPoolExecutor(parts - 1, "part") as helpers:
            yield Parts(helpers)
    finally:
        torch.set_num_threads(threads)
