"""What is counted while training: returns of training episodes, averages of the losses, the rate, a progress bar."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from common.device import synchronize
from common.training import progress_bar

RECENT = 10  # the training return is the mean of so many finished episodes


class Meter:
    """Called at every update and every step; a row of history.csv is what it measured since the row before."""

    def __init__(self, agents: int, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}  # of what the updates since the last row measured, each `(agents,)`
        self.counts: dict[str, int] = {}  # of those updates; a delayed policy has fewer
        self.running_return = np.zeros(agents)  # of the episodes that are not finished
        self.recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(agents)]
        self.running_length = np.zeros(agents)  # steps of the episodes that are not finished
        self.recent_lengths: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(agents)]
        self.paid = np.zeros(agents)  # steps with a reward above 0, of the whole training
        self._seconds, self._since, self._timed = 0.0, time.perf_counter(), 0
        self._updated = False  # since the last step
        self._bar: tqdm[Any] | None = None

    @property
    def updates(self) -> int:
        """Updates since the last row."""
        return max(self.counts.values(), default=0)

    @contextlib.contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        """Shows a progress bar while the block runs, and starts the clock."""
        with progress_bar("training", done, total) as self._bar:
            self._restart_clock()
            yield

    def update(self, measured: Mapping[str, Tensor]) -> None:
        """Adds what an update measured, name → `(agents,)`."""
        for name, value in measured.items():
            if name not in self.sums:
                self.sums[name], self.counts[name] = torch.zeros_like(value), 0
            self.counts[name] += 1
        torch._foreach_add_([self.sums[name] for name in measured], list(measured.values()))
        self._updated = True

    def step(self, reward: Tensor, ended: Tensor) -> None:
        """Counts one step of all agents, after its updates.

        Args:
            reward: `(agents,)`, on the CPU.
            ended: `(agents,)`, on the CPU, true where an episode ended.
        """
        if self._bar is not None:
            self._bar.update()
        self.running_return += reward.numpy()
        self.running_length += 1
        self.paid += reward.numpy() > 0
        for k in np.flatnonzero(ended.numpy()):
            self.recent[k].append(float(self.running_return[k]))
            self.recent_lengths[k].append(float(self.running_length[k]))
            self.running_return[k] = self.running_length[k] = 0
        if self._updated:
            self._timed += 1
        else:
            self._restart_clock()  # the rate is that of steps with an update
        self._updated = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the block runs: evaluation and files are no part of the rate."""
        synchronize(self.device)
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def row(self) -> tuple[dict[str, list[float]], float]:
        """Returns what was measured since the last row, and begins the next one; called while `paused`.

        The first part is name → a value for each agent: return and length of training episodes, the steps paid so far,
        then the averages over all updates. The second is the rate, in steps of one agent a second.
        """
        values = {
            "return": _recent_means(self.recent, self.running_return),
            "episode_length": _recent_means(self.recent_lengths, self.running_length),
            "steps_paid": self.paid.tolist(),
        }
        values |= {name: (total / self.counts[name]).tolist() for name, total in self.sums.items()}
        rate = len(self.recent) * self._timed / self._seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"return={np.mean(values['return']):.0f}, {rate:.0f} agent steps/s")
        self.sums, self.counts = {}, {}
        self._restart_clock()
        return values, rate

    def _restart_clock(self) -> None:
        self._seconds, self._since, self._timed = 0.0, time.perf_counter(), 0

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs; a resumed training measures the rate anew."""
        return {
            "running_return": self.running_return.tolist(),
            "recent": [list(episodes) for episodes in self.recent],
            "running_length": self.running_length.tolist(),
            "recent_lengths": [list(episodes) for episodes in self.recent_lengths],
            "paid": self.paid.tolist(),
            "sums": self.sums,
            "summed": self.counts,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        self.running_return[:] = state["running_return"]
        self.recent = [deque(episodes, maxlen=RECENT) for episodes in state["recent"]]
        if "paid" in state:  # an earlier version counted neither
            self.running_length[:], self.paid[:] = state["running_length"], state["paid"]
            self.recent_lengths = [deque(episodes, maxlen=RECENT) for episodes in state["recent_lengths"]]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        summed = state["summed"]  # in earlier checkpoints one number for all
        self.counts = dict.fromkeys(self.sums, summed) if isinstance(summed, int) else dict(summed)


def _recent_means(recent: Sequence[deque[float]], running: NDArray[np.float64]) -> list[float]:
    """Returns the mean over each agent's recent episodes, or what its first one has so far."""
    return [float(np.mean(of) if of else now) for of, now in zip(recent, running, strict=True)]
