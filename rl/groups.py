"""The agents of a run in groups, one for each CPU thread: they never exchange anything, so that nothing changes.

A group is a copy of some of the agents. While the training runs, the groups learn, and all agents together are brought
up to date only where somebody reads them: for a row of the history, an evaluation, a checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from common.fast.parallel import Parts, in_parts
from rl.agents import Agents
from rl.fast import captured

Measured = dict[str, Tensor]
LEAST = 3  # agents in a group: with fewer, torch's threads inside each operation are as fast


class Groups:
    """All agents, and the groups that learn in their place where there are several threads for several agents."""

    def __init__(self, agents: Agents, count: int) -> None:
        self.agents, self.count = agents, count
        self.device = next(agents.parameters()).device
        self.rows = [range(count)]
        self.groups = [agents]
        self.parts = Parts()

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """While this is open, each thread has its group; at the end all agents are up to date."""
        groups = min(torch.get_num_threads(), max(1, self.count // LEAST)) if self.device.type == "cpu" else 1
        with in_parts(groups) as self.parts:
            if groups > 1:
                bounds = [self.count * number // groups for number in range(groups + 1)]
                self.rows = [range(*ends) for ends in itertools.pairwise(bounds)]
                self.groups = [self._copy(rows) for rows in self.rows]
            yield
            self.gather()
        self.rows, self.groups = [range(self.count)], [self.agents]

    def update(self, method: Callable[..., Measured]) -> Callable[..., Measured]:
        """Returns what takes a step with a method of the agents, such as `SAC.update`: inputs → name → `(agents,)`.

        Its inputs are named tuples of tensors with a leading axis of agents. On a GPU it is a CUDA graph.
        """
        alone = captured(method.__get__(self.agents), self.device)

        def together(*given: Any) -> Measured:
            if len(self.groups) == 1:
                return alone(*given)

            def step(number: int) -> Measured:
                rows = self.rows[number]
                return method(self.groups[number], *(_of(values, rows) for values in given))

            parts = self.parts.map(step, len(self.groups))
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

        return together

    def act(self, *given: Any) -> Tensor:
        """Returns the actions of all agents, `(agents, …)`, for inputs with a leading axis of agents."""
        actions = []
        for group, rows in zip(self.groups, self.rows, strict=True):
            own = [value[rows.start : rows.stop] if isinstance(value, Tensor) else value for value in given]
            actions.append(group.act(*own))
        return torch.cat(actions) if len(actions) > 1 else actions[0]

    def each(self, method: Callable[..., None], *given: Any) -> None:
        """Calls a method of the agents, such as `Agents.weigh_bonus`, on every group."""
        for group in self.groups:
            method(group, *given)

    @contextlib.contextmanager
    def up_to_date(self) -> Iterator[None]:
        """All agents are up to date while this is open, and what is changed in them then reaches the groups."""
        self.gather()
        yield
        self._scatter()

    def gather(self) -> None:
        """Brings all agents up to date."""
        self._copied(into_groups=False)

    def _scatter(self) -> None:
        self._copied(into_groups=True)

    @torch.no_grad()
    def _copied(self, *, into_groups: bool) -> None:
        if len(self.groups) == 1:
            return
        for group, rows in zip(self.groups, self.rows, strict=True):
            for whole, part in zip(_tensors(self.agents), _tensors(group), strict=True):
                target, source = (part, self._slice(whole, rows)) if into_groups else (self._slice(whole, rows), part)
                target.copy_(source.reshape(target.shape))

    def _slice(self, whole: Tensor, rows: range) -> Tensor:
        """Returns a view of the rows: `(copies, rows, …)` of `(copies·agents, …)`; of a number itself."""
        return whole.unflatten(0, (-1, self.count))[:, rows.start : rows.stop] if whole.ndim else whole

    def _copy(self, rows: range) -> Agents:
        """Returns a copy of some of the agents, with the state of their optimisers."""
        group = copy.deepcopy(self.agents)
        for tensor in _tensors(group):
            if tensor.ndim:
                tensor.data = self._slice(tensor.data, rows).flatten(0, 1).clone()
        return group


def _tensors(agents: Agents) -> list[Tensor]:
    """Returns everything that learning changes, in the same order for all agents and for a group of them."""
    states = [optimizer.state_dict() for optimizer in agents.optimizers]
    moments = [tensor for state in states for tensor in (*state["means"], *state["squares"], state["steps"])]
    return [*agents.state_dict(keep_vars=True).values(), *moments]


def _of(values: Any, rows: range) -> Any:
    """Returns the rows of each tensor of a named tuple."""
    return type(values)(*(tensor[rows.start : rows.stop] for tensor in values))
