"""The whole state of a training on disk: a resumed run ends with the numbers of a run that never stopped."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import RunError, UsageError
from common.experiment import Run, say
from common.files import last_whole, read_metrics, save_state
from rl.agents import Agents
from rl.envs import Environments
from rl.failures import Failures
from rl.meter import Meter
from rl.replay import Replay
from rl.selection import Best
from rl.settings import AgentSettings
from rl.streams import RandomStreams
from rl.visits import Coverage


@dataclasses.dataclass
class Checkpoint:
    """Everything that the rest of a training depends on, and the files in the run folder that hold it."""

    run: Run
    agents: Agents
    environments: Environments
    replay: Replay
    streams: RandomStreams
    meter: Meter
    coverage: Coverage
    failures: Failures
    best: Best
    saved_steps: int = 0  # the transitions of so many steps are on disk

    @property
    def path(self) -> Path:
        """The file; the transitions lie in a folder beside it, see `Replay.save_segment`."""
        return path_in(self.run)

    def save(self) -> None:
        """Writes the state; of the transitions only those that are new since the last call.

        Raises:
            RunError: no agent is left whose weights are numbers; nothing is written.
        """
        self.failures.check_weights(self.replay.steps)  # a training that diverged must not overwrite its last good one
        self.replay.save_segment(_replay_folder(self.run), self.saved_steps)
        state: dict[str, Any] = {
            "step": self.replay.steps,
            "sac": self.agents.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.agents.optimizers],
            "generators": self.streams.state(),
            "environments": self.environments.state(),
            "observation": self.environments.observation,
            "failures": self.failures.state(),
            "coverage": self.coverage.state(),
            "best": self.best.state(),
            "begun": self.replay.begun,
            **self.meter.state(),
        }
        save_state(self.path, state, keep_older=True)
        self.replay.forget_segments(_replay_folder(self.run), self.saved_steps)
        self.saved_steps = self.replay.steps

    def load(self) -> None:
        """Puts everything back to the run's last whole checkpoint; changes nothing where the run has none.

        Raises:
            RunError: the checkpoint is damaged or belongs to other agents, and so is the one before it.
        """
        if not last_whole(self.path, self._restore):
            start = self.run.start_weights("agents")
            if start is not None:
                self._begin_from(start)
            elif self.run.settings.resume is not None:
                say(f"    {self.path} does not exist: training starts at step 0")
            return
        self.saved_steps = self.replay.steps
        if not self.environments.exact:
            self.replay.begin_episodes()
            self.meter.running_return[:] = self.meter.running_length[:] = 0
            say(
                f"    the state of {self.agents.settings.env_id} cannot be saved exactly: each agent starts a fresh "
                f"episode at step {self.replay.steps}, so that the numbers are not those of a run that never stopped"
            )

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            # First: the files of the transitions may be damaged.
            self.replay.load_segments(_replay_folder(self.run), state["step"], state.get("begun", 0))
            self.agents.load_state_dict(state["sac"])
            for optimizer, saved in zip(self.agents.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.streams.restore(state["generators"])
            self.failures.restore(state.get("failures", []))
            self.environments.restore(state["environments"], state["observation"], state["step"])
            self.meter.restore(state)
            if "coverage" in state:  # an earlier version did not count the cells
                self.coverage.restore(state["coverage"])
            if "best" in state:  # nor keep the best policies
                self.best.restore(state["best"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]  # torch's messages have many lines
            raise RunError(f"{self.path}: not a checkpoint of these agents ({reason})") from None

    def _begin_from(self, weights: dict[str, Tensor]) -> None:
        """Goes on from the weights of a finished run that kept nothing else: fresh episodes, an empty replay."""
        step, finished = self.run.extended_at() or 0, self.run.settings.extended_from
        assert finished is not None
        metrics = read_metrics(finished) or {}
        try:
            self.agents.load_state_dict(weights)
            failed = [(agent["seed"], agent["step"], agent["cause"]) for agent in metrics.get("failed", [])]
            self.failures.restore([(self.failures.seeds.index(seed), *when) for seed, *when in failed])
            if (best := self.run.start_weights("best")) is not None:
                self.best.take_over(metrics["best"], best)
        except (KeyError, ValueError, TypeError, RuntimeError):
            raise RunError(f"{finished}: not the weights of these agents") from None
        trained = self.run.history("train")
        for agent, seed in enumerate(self.failures.seeds):
            self.meter.paid[agent] = trained.get(f"steps_paid/seed{seed}", [0.0])[-1]
        self.environments.begin_episodes(step)
        self.streams.begin_after(step)
        self.replay.begin_after(step)
        self.coverage.steps = self.saved_steps = step


def require_room(settings: AgentSettings) -> None:
    """Raises UsageError for an extension that would only fill its replay, since the finished run has kept none."""
    base = settings.extended_from
    if base is None or settings.resume is not None or (base / "checkpoints" / "agents.state.pt").exists():
        return
    steps = int((read_metrics(base) or {})["env_steps"]) + settings.random_steps
    if settings.env_steps <= steps:
        raise UsageError(
            f"--env-steps {settings.env_steps} with --extend {base}: the replay was not kept (--keep-state), and to "
            f"fill a new one takes --random-steps {settings.random_steps}; give more than {steps}"
        )


def path_in(run: Run) -> Path:
    """Returns the file of the run's checkpoint."""
    return run.checkpoints / "agents.state.pt"


def _replay_folder(run: Run) -> Path:
    return run.checkpoints / "replay"


def forget_replay(run: Run) -> None:
    """Deletes the saved transitions: after the training only an extension needs them."""
    shutil.rmtree(_replay_folder(run), ignore_errors=True)
