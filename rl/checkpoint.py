"""The whole state of a training on disk: a resumed run ends with the numbers of a run that never stopped."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import RunError
from common.experiment import Run, require_finite, say
from common.files import load_state, save_state
from rl.envs import Environments
from rl.meter import Meter
from rl.replay import Replay
from rl.sac import SAC
from rl.streams import RandomStreams


@dataclasses.dataclass
class Checkpoint:
    """Everything that the rest of a training depends on, and the files in the run folder that hold it."""

    run: Run
    sac: SAC
    environments: Environments
    replay: Replay
    streams: RandomStreams
    meter: Meter
    saved_steps: int = 0  # the transitions of so many steps are on disk

    @property
    def path(self) -> Path:
        """The file; the transitions lie in a folder beside it, see `Replay.save_segment`."""
        return self.run.checkpoints / "agents.state.pt"

    def save(self) -> None:
        """Writes the state; of the transitions only those that are new since the last call.

        Raises:
            RunError: a weight is not a number; nothing is written.
        """
        self.require_finite_weights()
        self.replay.save_segment(_replay_folder(self.run), self.saved_steps)
        state: dict[str, Any] = {
            "step": self.replay.steps,
            "sac": self.sac.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.sac.optimizers],
            "generators": self.streams.state(),
            "environments": self.environments.state(),
            "observation": self.environments.observation,
            **self.meter.state(),
        }
        save_state(self.path, state)
        self.replay.forget_segments(_replay_folder(self.run))
        self.saved_steps = self.replay.steps

    def load(self) -> None:
        """Puts everything back to the run's last checkpoint; changes nothing where the run has none.

        Raises:
            RunError: the checkpoint is damaged or belongs to other agents.
        """
        if not self.path.exists():
            if self.run.settings.resume is not None:
                say(f"    {self.path} does not exist: training starts at step 0")
            return
        state = load_state(self.path)
        try:
            self.sac.load_state_dict(state["sac"])
            for optimizer, saved in zip(self.sac.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.streams.restore(state["generators"])
            self.environments.restore(state["environments"], state["observation"])
            self.meter.restore(state)
            self.replay.load_segments(_replay_folder(self.run), state["step"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]  # torch's messages have many lines
            raise RunError(f"{self.path}: not a checkpoint of these agents ({reason})") from None
        self.saved_steps = self.replay.steps

    # -- a training that diverged must not overwrite its last good checkpoint ------------------------------------------

    def require_finite(self, value: float, quantity: str) -> None:
        """Raises RunError, which names the step and the last good checkpoint, when `value` is NaN or infinite."""
        require_finite(value, f"step {self.replay.steps}: {quantity}", self.path)

    def require_finite_action(self, action: Tensor) -> None:
        """Raises RunError when an agent's action `(agents, action)`, on the CPU, has NaN or infinite parts."""
        if not torch.isfinite(action).all():
            for seed, row in zip(self.sac.settings.seeds, action, strict=True):
                self.require_finite(float(row.sum()), f"an action of seed {seed}")

    def require_finite_weights(self) -> None:
        """Raises RunError when a weight or a running moment is NaN or infinite."""
        for name, tensor in self.sac.state_dict().items():
            self.require_finite(float(tensor.abs().amax()), f"the largest of {name}")


def _replay_folder(run: Run) -> Path:
    return run.checkpoints / "replay"


def forget_replay(run: Run) -> None:
    """Deletes the saved transitions: after the training nothing needs them."""
    shutil.rmtree(_replay_folder(run), ignore_errors=True)
