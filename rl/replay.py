"""Replay: the last transitions of each agent, their windows of past states, and segments of it on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import RunError
from common.files import load_state, save_state


class Batch(NamedTuple):
    """Sampled transitions; `window` ends with the observation itself, `(agents, batch, stack, obs)`, oldest first."""

    window: Tensor
    action: Tensor  # (agents, batch, action), in [−1, 1]
    reward: Tensor  # (agents, batch)
    terminated: Tensor  # (agents, batch), 1 where the episode ended for good; a time limit does not count
    next_observation: Tensor  # (agents, batch, obs), the last state of the episode where it ended

    @property
    def observation(self) -> Tensor:
        """The state acted in, `(agents, batch, obs)`."""
        return self.window[:, :, -1]


class Replay:
    """A ring of transitions for each agent, all of them at the same position, one packed row a transition.

    A row holds observation, next observation, action, reward, terminated, and the step's number in its episode, which
    is how far back a window may reach.
    """

    def __init__(self, agents: int, capacity: int, observation: int, action: int, device: torch.device) -> None:
        self.capacity, self.widths = capacity, (observation, observation, action, 1, 1, 1)
        # Not filled: the system hands out memory as rows are written.
        self.rows = torch.empty(agents, capacity, sum(self.widths), device=device)
        self.steps = 0  # transitions ever added to each agent's ring
        self._age = torch.zeros(agents, device=device)
        self._first_row = torch.arange(agents, device=device)[:, None] * capacity

    @property
    def size(self) -> int:
        """Transitions that each agent has."""
        return min(self.steps, self.capacity)

    def add(
        self,
        observation: Tensor,
        next_observation: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        ended: Tensor,
    ) -> None:
        """Adds one transition an agent; `ended` `(agents,)` is true where an episode ended, for whatever reason."""
        columns = (observation, next_observation, action, reward[:, None], terminated[:, None], self._age[:, None])
        torch.cat(columns, dim=1, out=self.rows[:, self.steps % self.capacity])
        self._age = torch.where(ended, 0.0, self._age + 1)
        self.steps += 1

    def sample(self, indices: Tensor, stack: int = 1) -> Batch:
        """Returns the transitions at `indices` `(agents, batch)`, positions from 0 to size − 1.

        A window that would reach back past the start of its episode, or past what the ring still holds, repeats the
        first state there is.
        """
        flat, (agents, batch) = self.rows.view(-1, self.rows.shape[-1]), indices.shape
        rows = flat.index_select(0, (indices + self._first_row).view(-1)).view(agents, batch, -1)
        observation, next_observation, action, reward, terminated, age = rows.split(self.widths, dim=-1)
        window = observation[:, :, None]
        if stack > 1:
            oldest = self.steps % self.capacity if self.steps > self.capacity else 0
            held = torch.minimum(age[..., 0].long(), (indices - oldest) % self.capacity)
            back = torch.arange(stack - 1, 0, -1, device=indices.device)
            earlier = (indices[..., None] - torch.minimum(back, held[..., None])) % self.capacity
            past = flat.index_select(0, (earlier + self._first_row[..., None]).view(-1))[:, : self.widths[0]]
            window = torch.cat([past.view(agents, batch, stack - 1, -1), window], dim=2)
        return Batch(window, action, reward[..., 0], terminated[..., 0], next_observation)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save_segment(self, folder: Path, since: int) -> None:
        """Writes the transitions from number `since` on as one file.

        What was saved before is not written again: a checkpoint costs what was collected since the last one.
        """
        since = max(since, self.steps - self.capacity)
        positions = torch.arange(since, self.steps, device=self.rows.device) % self.capacity
        segment = {"rows": self.rows[:, positions], "age": self._age, "since": torch.tensor(since)}
        save_state(folder / f"{self.steps:012d}.pt", segment)

    def forget_segments(self, folder: Path) -> None:
        """Deletes files that the ring has outlived: not before the checkpoint that no longer needs them is written."""
        for file in _segments(folder):
            if int(file.stem) <= self.steps - self.capacity:
                file.unlink()

    def load_segments(self, folder: Path, steps: int) -> None:
        """Fills the ring as it was after `steps` transitions from the files in `folder`.

        Raises:
            RunError: a file is missing or damaged.
        """
        expected = max(0, steps - self.capacity)
        for file in (file for file in _segments(folder) if int(file.stem) <= steps):
            segment, stop = load_state(file), int(file.stem)
            if not segment.keys() >= {"rows", "age", "since"} or int(segment["since"]) > expected:
                break
            positions = torch.arange(int(segment["since"]), stop, device=self.rows.device) % self.capacity
            if segment["rows"].shape != (len(self.rows), len(positions), self.rows.shape[-1]):
                break
            self.rows[:, positions] = segment["rows"].to(self.rows)
            self._age, expected = segment["age"].to(self._age), stop
        if expected != steps:
            raise RunError(f"{folder}: the transitions of steps {expected} to {steps} are missing or damaged")
        self.steps = steps


def _segments(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.pt") if file.stem.isdigit())
