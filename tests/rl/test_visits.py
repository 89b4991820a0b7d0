"""Cells visited, against a naive set of tuples."""

import numpy as np
import torch

from rl.replay import Replay
from rl.visits import CELLS, Coverage


def fill(replay: Replay, states: torch.Tensor) -> None:
    for state in states.unbind(1):
        agents = len(state)
        nothing = torch.zeros(agents)
        replay.add(torch.zeros_like(state), state, torch.zeros(agents, 1), nothing, nothing, nothing.bool())


def test_counts_cells_as_a_set_does_and_goes_on_after_a_restart() -> None:
    states = 3 * torch.randn(2, 300, 5, generator=torch.Generator().manual_seed(0))
    replay, coverage = Replay(2, 1000, 5, 1, torch.device("cpu")), Coverage(2, 5)
    counts = []
    for part in (states[:, :50], states[:, 50:51], states[:, 51:]):
        fill(replay, part)
        counts.append(coverage.update(replay))
        again = Coverage(2, 5)
        again.restore(coverage.state())
        coverage = again
    for k in range(2):
        first = states[k, :50, :4].double().numpy()
        along = (states[k, :, :4].double().numpy() - first.mean(0)) / first.std(0) + CELLS / 2
        cells = [tuple(row) for row in np.clip(np.floor(along), 0, CELLS - 1).astype(int)]
        assert [count[k] for count in counts] == [len(set(cells[:n])) for n in (50, 51, 300)]
    assert coverage.update(replay) == counts[-1]  # nothing new
