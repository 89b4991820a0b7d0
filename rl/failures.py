"""An agent that fails does not stop the others: it is named with step and cause, and its slice of everything silenced.

Agents share no number, so that the others go on as if it were still there. Its environment is not stepped any more; its
observations, rewards and actions are zeros, and so are its weights whenever they are saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import RunError
from common.experiment import say
from rl.agents import Agents
from rl.envs import Environments

MILDER = "Start a new run with a lower learning rate, or milder settings."
TASK = "It came so from the environment: look at the task, not at the learning rate."


class Failures:
    """The agents that failed; the checks raise RunError when none is left."""

    def __init__(self, seeds: Sequence[int], agents: Agents, environments: Environments, checkpoint: Path) -> None:
        self.seeds, self.agents, self.environments, self.checkpoint = seeds, agents, environments, checkpoint
        self.failed: dict[int, tuple[int, str]] = {}  # agent → step and cause

    @property
    def living(self) -> list[int]:
        """The agents that go on."""
        return [k for k in range(len(self.seeds)) if k not in self.failed]

    def record(self) -> list[dict[str, Any]]:
        """Returns seed, step and cause of each agent that failed, for metrics.json."""
        return [{"seed": self.seeds[k], "step": step, "cause": cause} for k, (step, cause) in self.failed.items()]

    def check_action(self, step: int, action: Tensor) -> None:
        """Ends every agent whose action, of `(agents, action)` on the CPU, is NaN or infinite."""
        if not math.isfinite(float(action.sum())):
            self._check(step, {"an action": action}, MILDER)

    def check_environment(self, step: int, observation: Tensor, next_observation: Tensor, reward: Tensor) -> None:
        """Ends every agent whose environment gave NaN or infinite numbers, which become 0.

        `observation`, to act on next, and `next_observation` are `(agents, obs)`, `reward` is `(agents,)`, on the CPU.
        """
        if not math.isfinite(float(observation.sum() + next_observation.sum() + reward.sum())):
            given = {"an observation": next_observation, "a first observation": observation, "a reward": reward}
            self._check(step, given, TASK)
            self.silence(observation, next_observation, reward)

    def check_values(self, step: int, values: Mapping[str, Sequence[float]], advice: str = MILDER) -> None:
        """Ends every agent one of whose values, name → one for each agent, is NaN or infinite."""
        self._check(step, {name: torch.tensor(column) for name, column in values.items()}, advice)

    def check_weights(self, step: int) -> None:
        """Ends every agent with a weight or running moment that is NaN or infinite; those of failed ones become 0."""
        state = {name: tensor for name, tensor in self.agents.state_dict().items() if tensor.ndim}
        self.silence(*state.values(), *self._optimizer_tensors())
        self._check(step, {f"the largest of {name}": tensor for name, tensor in state.items()}, MILDER)

    def silence(self, *tensors: Tensor) -> None:
        """Sets the failed agents' slices of tensors `(copies·agents, …)` to 0, in place."""
        with torch.no_grad():
            for k in self.failed:
                for tensor in tensors:
                    tensor[k :: len(self.seeds)] = 0  # twin critics: networks k and agents + k

    def _check(self, step: int, given: Mapping[str, Tensor], advice: str) -> None:
        bad: dict[int, str] = {}
        for what, tensor in given.items():
            largest = tensor.detach().abs().reshape(-1, len(self.seeds), math.prod(tensor.shape[1:])).amax((0, 2))
            for k, value in enumerate(largest.tolist()):
                if k not in self.failed and not math.isfinite(value):
                    bad.setdefault(k, f"{what} of seed {self.seeds[k]} is {value}")
        for k, cause in bad.items():
            self.failed[k] = step, cause
            if not self.living:
                known = self.checkpoint.exists()
                last = f"the last good checkpoint is {self.checkpoint}" if known else "no checkpoint yet"
                agents = f"all {len(self.seeds)} agents failed, the last at " if len(self.seeds) > 1 else ""
                raise RunError(f"{agents}step {step}: {cause}; {last}. {advice}")
            say(f"    seed {self.seeds[k]} ends at step {step}: {cause}. {advice} The others go on.")
            self._bury(k)

    def _bury(self, agent: int) -> None:
        self.environments.silence(agent)
        self.silence(*(t for t in self.agents.state_dict().values() if t.ndim), *self._optimizer_tensors())

    def _optimizer_tensors(self) -> list[Tensor]:
        states = [optimizer.state_dict() for optimizer in self.agents.optimizers]
        return [tensor for state in states for tensor in (*state["means"], *state["squares"])]

    def state(self) -> list[tuple[int, int, str]]:
        """Returns what a checkpoint needs."""
        return [(k, step, cause) for k, (step, cause) in self.failed.items()]

    def restore(self, state: Sequence[tuple[int, int, str]]) -> None:
        """Puts back what `state` returned; call it before the environments are put back."""
        self.failed = {k: (step, cause) for k, step, cause in state}
        for k in self.failed:
            self.environments.silence(k)
