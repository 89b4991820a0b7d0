"""The replay buffer: the last transitions of each agent, their windows of past states, and its files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import DamagedError
from common.files import load_state, save_state


class Batch(NamedTuple):
    """Sampled transitions."""

    window: (
        Tensor  # (agents, batch, stack, obs), the last states of the episode, oldest first; ends with the observation
    )
    action: Tensor  # (agents, batch, action), in [−1, 1]
    reward: Tensor  # (agents, batch)
    terminated: Tensor  # (agents, batch), 1 where the episode ended for good; a time limit does not count
    next_observation: Tensor  # (agents, batch, obs), the last state of the episode where it ended
    following: Tensor  # (agents, batch, obs), the state to bootstrap from: that one unless `sample` is told otherwise

    @property
    def observation(self) -> Tensor:
        """The state acted in, `(agents, batch, obs)`."""
        return self.window[:, :, -1]

    @property
    def first(self) -> Batch:
        """The transitions sampled, as `Trajectories.first`."""
        return self

    def seeing(self, dimensions: int) -> Batch:
        """Returns the batch with the first `dimensions` numbers of each observation alone."""
        if dimensions == self.window.shape[-1]:
            return self
        window, next_observation, following = (
            states[..., :dimensions] for states in (self.window, self.next_observation, self.following)
        )
        return self._replace(window=window, next_observation=next_observation, following=following)


class Trajectories(NamedTuple):
    """Sampled transitions, each with the n − 1 that follow it in its episode; the last of an episode is repeated."""

    window: Tensor  # (agents, batch, n, stack, obs)
    action: Tensor  # (agents, batch, n, action)
    reward: Tensor  # (agents, batch, n)
    terminated: Tensor  # (agents, batch, n)
    next_observation: Tensor  # (agents, batch, n, obs)
    steps: Tensor  # (agents, batch), how many of the n there are before the episode, or the buffer, ends

    @property
    def first(self) -> Batch:
        """The transitions sampled."""
        return self._batch([field[:, :, 0] for field in self[:-1]])

    @property
    def later(self) -> Batch:
        """The n − 1 after each of them as one batch of batch·(n − 1), those of one trajectory side by side."""
        return self._batch([field[:, :, 1:].flatten(1, 2) for field in self[:-1]])

    @staticmethod
    def _batch(fields: Sequence[Tensor]) -> Batch:
        window, action, reward, terminated, next_observation = fields
        return Batch(window, action, reward, terminated, next_observation, next_observation)


class Replay:
    """A ring buffer of transitions for each agent; all agents write at the same position.

    A row is one transition: observation, next observation, action, reward, terminated, and the number of the step in
    its episode, which is how far back a window may reach.
    """

    def __init__(self, agents: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device) -> None:
        self.capacity, self.widths = capacity, (obs_dim, obs_dim, action_dim, 1, 1, 1)
        # Not filled: the system provides the memory only as rows are written.
        self.rows = torch.empty(agents, capacity, sum(self.widths), device=device)
        self.steps = 0  # transitions ever added to each agent's ring
        self.begun = 0  # of them those that came before an empty ring, in a run that extends one without its replay
        self._age = torch.zeros(agents, device=device)
        self._first_row = torch.arange(agents, device=device)[:, None] * capacity

    @property
    def size(self) -> int:
        """Transitions that each agent has."""
        return min(self.added, self.capacity)

    @property
    def added(self) -> int:
        """Transitions that this run added to each agent's ring, or was given with it."""
        return self.steps - self.begun

    def add(
        self,
        observation: Tensor,
        next_observation: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        ended: Tensor,
    ) -> None:
        """Adds one transition of each agent.

        Args:
            observation: `(agents, obs)`, as `next_observation`.
            action: `(agents, action)`.
            reward: `(agents,)`.
            terminated: `(agents,)`, 1 where the episode ended for good.
            ended: `(agents,)`, true where the episode ended, for good or by the time limit.
        """
        columns = (observation, next_observation, action, reward[:, None], terminated[:, None], self._age[:, None])
        row = [column.to(self.rows.device, non_blocking=True) for column in columns]
        torch.cat(row, dim=1, out=self.rows[:, self.added % self.capacity])
        self._age = torch.where(ended.to(self.rows.device, non_blocking=True), 0.0, self._age + 1)
        self.steps += 1

    def sample(self, indices: Tensor, stack: int = 1, upcoming: Tensor | None = None) -> Batch:
        """Returns the transitions at `indices` `(agents, batch)`, positions from 0 to size − 1.

        A window never reaches into another episode, or past the oldest transition in the ring: where too few states
        are left, it repeats the first of them.

        With `upcoming` `(agents, obs)`, the states to act on next, `following` is the first state of the agent's next
        episode where a transition terminated its own. What the agent sees after a fall is a new start; from the fallen
        state itself no transition ever begins, so that nothing would teach a value there.
        """
        flat, (agents, batch) = self.rows.view(-1, self.rows.shape[-1]), indices.shape
        rows = flat.index_select(0, (indices + self._first_row).view(-1)).view(agents, batch, -1)
        observation, next_observation, action, reward, terminated, age = rows.split(self.widths, dim=-1)
        window = observation[:, :, None]
        if stack > 1:
            oldest = self.added % self.capacity if self.added > self.capacity else 0
            held = torch.minimum(age[..., 0].long(), (indices - oldest) % self.capacity)
            back = torch.arange(stack - 1, 0, -1, device=indices.device)
            earlier = (indices[..., None] - torch.minimum(back, held[..., None])) % self.capacity
            past = flat.index_select(0, (earlier + self._first_row[..., None]).view(-1))[:, : self.widths[0]]
            window = torch.cat([past.view(agents, batch, stack - 1, -1), window], dim=2)
        following = next_observation
        if upcoming is not None:
            after = flat.index_select(0, ((indices + 1) % self.capacity + self._first_row).view(-1))
            first = after[:, : self.widths[0]].view(agents, batch, -1)
            newest = (indices == (self.added - 1) % self.capacity)[..., None]  # its next row is not written yet
            first = torch.where(newest, upcoming[:, None].to(first, non_blocking=True), first)
            following = torch.where(terminated > 0, first, next_observation)
        return Batch(window, action, reward[..., 0], terminated[..., 0], next_observation, following)

    def sample_trajectories(self, indices: Tensor, stack: int, length: int) -> Trajectories:
        """Returns the transitions at `indices` `(agents, batch)` and up to `length` − 1 after each in its episode."""
        ahead = torch.arange(length, device=indices.device)
        positions = (indices[..., None] + ahead) % self.capacity  # (agents, batch, length)
        age = self.rows[..., -1].gather(1, positions.flatten(1)).view_as(positions)
        held = ahead <= ((self.added - 1 - indices) % self.capacity)[..., None]  # the ring ends with the newest
        steps = (held & (age == age[..., :1] + ahead)).cumprod(2).sum(2)
        kept = torch.minimum(ahead, steps[..., None] - 1)
        flat = self.sample(((indices[..., None] + kept) % self.capacity).flatten(1), stack)
        window, action, reward, terminated, reached = (field.unflatten(1, positions.shape[1:]) for field in flat[:5])
        return Trajectories(window, action, reward, terminated, reached, steps)

    def begin_after(self, steps: int) -> None:
        """Goes on, empty, after so many steps."""
        self.steps = self.begun = steps

    def begin_episodes(self) -> None:
        """The next transition of each agent is the first of an episode: no window reaches back beyond it."""
        self._age.zero_()

    def newest(self, count: int) -> Tensor:
        """Returns the positions of each agent's newest `count` transitions, or of all it has, `(agents, ≤ count)`."""
        first = self.added - min(count, self.size)
        positions = torch.arange(first, self.added, device=self.rows.device) % self.capacity
        return positions.expand(len(self.rows), -1)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save_segment(self, folder: Path, since: int) -> None:
        """Writes the transitions from number `since` on as one file.

        Earlier ones are in the files of earlier calls: the cost of a checkpoint does not grow with the buffer.
        """
        since = max(since, self.begun, self.steps - self.capacity)
        positions = torch.arange(since - self.begun, self.added, device=self.rows.device) % self.capacity
        segment = {"rows": self.rows[:, positions], "age": self._age, "since": torch.tensor(since)}
        folder.mkdir(exist_ok=True)
        save_state(folder / f"{self.steps:012d}.pt", segment)

    def forget_segments(self, folder: Path, needed_at: int) -> None:
        """Deletes files whose transitions the ring did not hold any more at step `needed_at`, of the older checkpoint.

        Call it after the new checkpoint is written: until then the last checkpoint needs them.
        """
        for file in _segments(folder):
            if int(file.stem) <= needed_at - self.capacity:
                file.unlink()

    def load_segments(self, folder: Path, steps: int, begun: int = 0) -> None:
        """Reads the files in `folder` and fills the ring, first written to after step `begun`, as it was after `steps`.

        Raises:
            DamagedError: a file is missing or damaged.
        """
        expected = max(begun, steps - self.capacity)
        for file in (file for file in _segments(folder) if expected < int(file.stem) <= steps):
            segment, stop = load_state(file), int(file.stem)
            if not segment.keys() >= {"rows", "age", "since"} or int(segment["since"]) > expected:
                break
            positions = torch.arange(int(segment["since"]) - begun, stop - begun, device=self.rows.device)
            positions %= self.capacity
            if segment["rows"].shape != (len(self.rows), len(positions), self.rows.shape[-1]):
                break
            self.rows[:, positions] = segment["rows"].to(self.rows)
            self._age, expected = segment["age"].to(self._age), stop
        if expected != steps:
            raise DamagedError(f"{folder}: the transitions of steps {expected} to {steps} are missing or damaged")
        self.steps, self.begun = steps, begun


def _segments(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.pt") if file.stem.isdigit())
