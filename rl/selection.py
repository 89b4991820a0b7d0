"""`--select best`: the policy of each agent at its best evaluation, kept beside the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.experiment import Run
from common.files import save_weights
from rl.networks import ActingNetwork

PREFIX = "actor."  # as in agents.safetensors, where the actor is one network of several


class Best:
    """Each agent's best evaluated policy so far; the first one of equal ones.

    It is chosen on the evaluations during training, and so is its return: a maximum over noisy evaluations is
    optimistic. An agent that failed keeps the policy that was its best before.
    """

    def __init__(self, seeds: Sequence[int], actor: ActingNetwork) -> None:
        self.seeds, self.actor = seeds, actor
        self.returns = torch.full((len(seeds),), -torch.inf, dtype=torch.float64)
        self.steps = torch.zeros(len(seeds), dtype=torch.int64)
        self.weights = {name: tensor.clone() for name, tensor in actor.state_dict().items()}  # (agents, …)

    def update(self, step: int, returns: Sequence[float]) -> None:
        """Keeps the weights of each agent whose return, the mean of its evaluation after `step`, is its highest."""
        now = torch.tensor(returns, dtype=torch.float64)
        better = now > self.returns  # never where the return is NaN
        self.returns[better], self.steps[better] = now[better], step
        for name, tensor in self.actor.state_dict().items():
            chosen = better.to(tensor.device)
            self.weights[name][chosen] = tensor[chosen]

    def record(self) -> list[dict[str, Any]]:
        """Returns seed, step and return of each agent that was evaluated, for metrics.json."""
        rows = zip(self.seeds, self.steps.tolist(), self.returns.tolist(), strict=True)
        return [{"seed": seed, "step": step, "return": value} for seed, step, value in rows if step]

    def write(self, run: Run) -> None:
        """Writes checkpoints/best.safetensors, `actor.<name>` → `(agents, …)`, and remembers the record."""
        save_weights(run.checkpoints / "best.safetensors", {PREFIX + name: t for name, t in self.weights.items()})
        run.remembered("best", self.record)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs."""
        return {"returns": self.returns, "steps": self.steps, "weights": self.weights}

    def take_over(self, record: Sequence[dict[str, Any]], written: dict[str, Tensor]) -> None:
        """Starts from what `record` and `write` kept of a finished run."""
        for agent in record:
            k = self.seeds.index(agent["seed"])
            self.steps[k], self.returns[k] = agent["step"], agent["return"]
        for name, tensor in self.weights.items():
            tensor.copy_(written[PREFIX + name])

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` returned."""
        self.returns, self.steps = state["returns"], state["steps"]
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])
