"""Visited-state coverage: how many cells of a coarse, fixed grid over the observations an agent has been to."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.replay import Replay

DIMENSIONS = 4  # the first so many numbers of the observation span the grid
CELLS = 12  # along each of them, one deviation wide; the outermost take everything beyond


class Coverage:
    """The cells that each agent has visited.

    The grid is fixed by the mean and deviation of the observations at the first call, after the random steps: arms that
    share a seed share their random steps, and so the grid.
    """

    def __init__(self, agents: int, obs_dim: int) -> None:
        self.dimensions = min(DIMENSIONS, obs_dim)
        self.visited = torch.zeros(agents, CELLS**self.dimensions, dtype=torch.bool)
        self.mean = torch.zeros(agents, 1, self.dimensions)
        self.deviation = torch.zeros(agents, 1, self.dimensions)  # 0: not fixed yet
        self.steps = 0  # transitions seen

    def update(self, replay: Replay) -> list[int]:
        """Adds the states that came since the last call, as far as the ring holds them; returns cells an agent."""
        if replay.steps == self.steps:
            return self.visited.sum(1).tolist()
        new = replay.sample(replay.newest(replay.steps - self.steps), 1).next_observation
        states = new[..., : self.dimensions].cpu()
        if not self.deviation.any():
            self.mean = states.mean(1, keepdim=True)
            self.deviation = states.std(1, keepdim=True, correction=0).clamp(min=1e-4)
        self.visited.scatter_(1, self.cells(states), True)
        self.steps = replay.steps
        return self.visited.sum(1).tolist()

    def cells(self, states: Tensor) -> Tensor:
        """Returns the cell's number, `(agents, n)`, of states `(agents, n, dimensions)`."""
        along = ((states - self.mean) / self.deviation + CELLS / 2).floor().clamp(0, CELLS - 1).long()
        place = CELLS ** torch.arange(self.dimensions)
        return (along * place).sum(-1)

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint needs."""
        return {
            "visited": self.visited,
            "mean": self.mean,
            "deviation": self.deviation,
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` returned."""
        self.visited, self.mean, self.deviation = state["visited"], state["mean"], state["deviation"]
        self.steps = int(state["steps"])
