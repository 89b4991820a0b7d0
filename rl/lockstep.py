"""All agents in training: what they act in, remember, learn with and draw their random numbers from."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.device import random_stream
from common.errors import RunError
from common.experiment import Run, require_finite, say
from common.files import load_state, save_state
from rl.envs import Environments
from rl.replay import Batch, Replay
from rl.sac import SAC, CapturedUpdate, Noise
from rl.settings import Settings

RECENT = 10  # finished episodes the training return is the mean of


class Lockstep:
    """The agents of one run, one environment step and one update at a time.

    Each agent has its own streams of random numbers, which depend on its seed alone: the agent of seed 7 draws the same
    whether it runs alone or beside others.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device, agents = settings, device, settings.num_seeds
        self.environments = Environments(settings.env_id, settings.reward, settings.seeds)
        self.observation, self.action = self.environments.observation_size, self.environments.action_size
        weights = [random_stream(seed, "sac weights") for seed in settings.seeds]
        self.sac = SAC(settings, self.observation, self.action, weights, device)
        self.update = CapturedUpdate(self.sac) if device.type == "cuda" else self.sac.update
        capacity = min(settings.buffer_size, settings.env_steps)
        self.replay = Replay(agents, capacity, self.observation, self.action, device)
        self.generators = [random_stream(seed, "sac steps") for seed in settings.seeds]
        self.running_return = np.zeros(agents)
        self.recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(agents)]
        self.sums: dict[str, Tensor] = {}  # measured since `averages` was last called, `(agents,)`
        self.summed = 0
        self.checkpoint: Path | None = None  # where the run's last good state lies, to tell when something is not

    @property
    def step(self) -> int:
        """Environment steps that each agent has taken."""
        return self.replay.steps

    def advance(self) -> None:
        """Every agent acts once and, after the random steps, learns once.

        Raises:
            RunError: an agent's actions are no longer numbers.
        """
        batch, width = self.settings.batch_size, self.settings.batch_size * self.action
        normal = torch.empty(len(self.generators), 2 * width + batch + self.action)
        for row, generator in zip(normal, self.generators, strict=True):
            row.normal_(generator=generator)
        exploration, *noise = normal.to(self.device, non_blocking=True).split([self.action, width, width, batch], dim=1)
        self._act(exploration)
        if self.step > self.settings.random_steps:
            following, now = (part.unflatten(1, (batch, self.action)) for part in noise[:2])
            self._add(self.update(self.sample(), Noise(following, now, noise[2])))

    @torch.no_grad()
    def _act(self, noise: Tensor) -> None:
        observation = torch.from_numpy(self.environments.observation).to(self.device)
        if self.step < self.settings.random_steps:
            action = torch.special.ndtr(noise) * 2 - 1  # uniform in [−1, 1]
        else:
            action = self.sac.actor.act(observation[:, None], noise[:, None])[:, 0]
        acted = action.cpu().numpy()
        if not np.isfinite(acted).all():
            bad = int(np.flatnonzero(~np.isfinite(acted).all(1))[0])
            name = f"step {self.step}: an action of seed {self.settings.seeds[bad]}"
            require_finite(float(acted[bad].sum()), name, self.checkpoint)
        taken = self.environments.step(acted)
        self.running_return += taken.reward
        for k in np.flatnonzero(taken.ended):
            self.recent[k].append(float(self.running_return[k]))
            self.running_return[k] = 0
        columns = (taken.next_observation, taken.reward, taken.terminated, taken.ended)
        following, reward, terminated, ended = (torch.from_numpy(column).to(self.device) for column in columns)
        self.replay.add(observation, following, action, reward, terminated, ended)

    def sample(self) -> Batch:
        """Returns a batch drawn with each agent's own generator."""
        indices = torch.empty(len(self.generators), self.settings.batch_size, dtype=torch.int64)
        for row, generator in zip(indices, self.generators, strict=True):
            row.random_(0, self.replay.size, generator=generator)
        return self.replay.sample(indices.to(self.device, non_blocking=True), self.settings.window)

    def _add(self, measured: dict[str, Tensor]) -> None:
        if not self.sums:
            self.sums = {name: torch.zeros_like(value) for name, value in measured.items()}
        torch._foreach_add_(list(self.sums.values()), list(measured.values()))
        self.summed += 1

    def averages(self) -> dict[str, list[float]]:
        """Returns what was measured since the last call, averaged, and diagnostics: name → a value for each agent."""
        rows = {name: (value / self.summed).tolist() for name, value in self.sums.items()}
        self.sums, self.summed = {}, 0
        diagnostics = getattr(self.sac.curiosity, "diagnostics", None)  # a module need not have any
        if diagnostics is not None:
            measured = diagnostics(self.replay.sample(self._newest(), self.settings.window))
            rows |= {name: value.tolist() for name, value in measured.items()}
        recent = [
            float(np.mean(r)) if r else float(now) for r, now in zip(self.recent, self.running_return, strict=True)
        ]
        return {"return": recent, **rows}

    def _newest(self) -> Tensor:
        """Returns the positions of each agent's newest 1,000 transitions, for diagnostics without random numbers."""
        count = min(1000, self.replay.size)
        newest = torch.arange(self.step - count, self.step, device=self.device) % self.replay.capacity
        return newest.expand(len(self.generators), count)

    def require_finite_weights(self) -> None:
        """Raises RunError when a weight or a running moment is not finite: it must not be saved."""
        for name, tensor in self.sac.state_dict().items():
            require_finite(float(tensor.abs().amax()), f"step {self.step}: the largest of {name}", self.checkpoint)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, run: Run, since: int) -> None:
        """Writes all that the rest of the training depends on; of the replay, what was added after step `since`.

        Raises:
            RunError: a weight is not a number; nothing is written.
        """
        self.require_finite_weights()
        self.replay.save_segment(_replay_folder(run), since)
        state: dict[str, Any] = {
            "step": self.step,
            "sac": self.sac.state_dict(),
            "optimizers": [o.state_dict() for o in self.sac.optimizers],
            "generators": [generator.get_state() for generator in self.generators],
            "environments": self.environments.state(),
            "observation": torch.from_numpy(self.environments.observation),
            "running_return": self.running_return.tolist(),
            "recent": [list(episodes) for episodes in self.recent],
            "sums": self.sums,
            "summed": self.summed,
        }
        save_state(checkpoint(run), state)
        self.replay.forget_segments(_replay_folder(run))

    def load(self, run: Run) -> None:
        """Puts everything back to the run's last checkpoint, if it has one.

        Raises:
            RunError: the checkpoint is damaged or not one of these agents.
        """
        path = self.checkpoint = checkpoint(run)
        if not path.exists():
            if run.settings.resume is not None:
                say(f"    {path} is not there: training starts at step 0")
            return
        state = load_state(path)
        try:
            self.sac.load_state_dict(state["sac"])
            for optimizer, saved in zip(self.sac.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            for generator, saved in zip(self.generators, state["generators"], strict=True):
                generator.set_state(saved)
            self.environments.restore(state["environments"], state["observation"].numpy())
            self.running_return[:] = state["running_return"]
            self.recent = [deque(episodes, maxlen=RECENT) for episodes in state["recent"]]
            self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
            self.summed = state["summed"]
            self.replay.load_segments(_replay_folder(run), state["step"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]  # torch's runs over many lines
            raise RunError(f"{path}: not a checkpoint of these agents ({reason})") from None


def checkpoint(run: Run) -> Path:
    """Returns where the run's last checkpoint lies."""
    return run.checkpoints / "agents.state.pt"


def _replay_folder(run: Run) -> Path:
    return run.checkpoints / "replay"


def forget_replay(run: Run) -> None:
    """Deletes the saved transitions: the training is over."""
    shutil.rmtree(_replay_folder(run), ignore_errors=True)
