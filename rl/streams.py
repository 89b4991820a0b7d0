"""The random numbers of the training: one stream for each agent, which depends on the agent's seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.device import random_stream


class Noise(NamedTuple):
    """The standard normal numbers of one update."""

    next_action: Tensor  # (agents, batch, action)
    action: Tensor  # (agents, batch, action)
    shuffle: Tensor  # (agents, batch), whose ranks give the order of the rewards of `--icm random`


class RandomStreams:
    """A generator for each seed: the agent of seed 7 draws the same numbers alone and beside other agents.

    A training step calls `noise` once, then, if it has an update, `indices` once; both again for each further update.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        batch_size: int,
        action_dim: int,
        device: torch.device,
        exploration: int | None = None,
    ) -> None:
        """`action_dim` numbers an action of an update; `exploration` numbers to act with, as many if None."""
        self.batch_size, self.action_dim, self.device = batch_size, action_dim, device
        self.exploration = action_dim if exploration is None else exploration
        self.seeds, self.generators = seeds, [random_stream(seed, "sac steps") for seed in seeds]

    def begin_after(self, steps: int) -> None:
        """Draws other numbers than those of the first `steps` steps, whose streams are not known any more."""
        self.generators = [random_stream(seed, f"sac steps after {steps}") for seed in self.seeds]

    def noise(self) -> tuple[Tensor, Noise]:
        """Returns standard normal numbers: `(agents, exploration)` to act with, and those of the update."""
        batch, width = self.batch_size, self.batch_size * self.action_dim
        normal = self._empty(self.exploration + 2 * width + batch)  # one copy to the device
        for row, generator in zip(normal, self.generators, strict=True):
            row.normal_(generator=generator)
        parts = normal.to(self.device, non_blocking=True).split([self.exploration, width, width, batch], dim=1)
        exploration, next_action, action, shuffle = parts
        shape = (batch, self.action_dim)
        return exploration, Noise(next_action.unflatten(1, shape), action.unflatten(1, shape), shuffle)

    def indices(self, size: int) -> Tensor:
        """Returns uniform integers from 0 to `size` − 1, `(agents, batch)`: which transitions the update sees."""
        indices = self._empty(self.batch_size, dtype=torch.int64)
        for row, generator in zip(indices, self.generators, strict=True):
            row.random_(0, size, generator=generator)
        return indices.to(self.device, non_blocking=True)

    def _empty(self, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns memory for numbers of all agents; for a GPU pinned, so that their copy waits for no update."""
        return torch.empty(len(self.generators), width, dtype=dtype, pin_memory=self.device.type == "cuda")

    def state(self) -> list[Tensor]:
        """Returns the generators' states, one tensor of bytes for each agent."""
        return [generator.get_state() for generator in self.generators]

    def restore(self, states: Sequence[Tensor]) -> None:
        """Puts the generators back to where `state` was called."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
