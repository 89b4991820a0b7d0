"""What the training loop of every kind of agent does around its updates: step, store, log, evaluate, save.

A script's loop says how its agents act and learn; `Training` does the rest of each step, always in the same order.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from common import stats
from common.experiment import Run
from rl.agents import Agents
from rl.checkpoint import Checkpoint, path_in
from rl.envs import Environments, Step
from rl.evaluate import Evaluator
from rl.failures import TASK, Failures
from rl.groups import Groups
from rl.meter import Meter
from rl.replay import Replay
from rl.selection import Best
from rl.settings import AgentSettings
from rl.streams import RandomStreams
from rl.visits import Coverage


class Training:
    """The state of one training beside the agents themselves, and its records in the run's folder."""

    def __init__(
        self,
        run: Run,
        settings: AgentSettings,
        agents: Agents,
        environments: Environments,
        replay: Replay,
        streams: RandomStreams,
    ) -> None:
        self.run, self.settings, self.agents = run, settings, agents
        self.environments, self.replay = environments, replay
        self.groups = Groups(agents, settings.num_seeds)
        self.evaluator = Evaluator(
            settings.env_id, settings.reward, settings.num_seeds, settings.eval_episodes, settings.task_arguments
        )
        self.meter = Meter(settings.num_seeds, run.device)
        self.coverage = Coverage(settings.num_seeds, environments.obs_dim)
        self.failures = Failures(settings.seeds, agents, environments, path_in(run))
        self.best = Best(settings.seeds, agents.policy)
        self.checkpoint = Checkpoint(
            *(run, agents, environments, replay, streams, self.meter, self.coverage, self.failures, self.best)
        )
        self._stepped: Step | None = None

    @contextlib.contextmanager
    def steps(self) -> Iterator[range]:
        """Goes on from the run's last checkpoint: the numbers of the steps to take, with a progress bar.

        Raises:
            RunError: the checkpoint is damaged, or of every agent the first observation is not a number.
        """
        self.checkpoint.load()
        done, total = self.replay.steps, self.settings.env_steps
        self.run.rewind("train", done)
        self.run.rewind("eval", done)
        first = self.environments.observation
        self.failures.check_environment(done, first, first, torch.zeros(self.settings.num_seeds))
        with self.groups.threads(), self.meter.progress(done, total):
            yield range(done + 1, total + 1)

    def step_and_store(self, step: int, observation: Tensor, action: Tensor) -> None:
        """Takes one step of all environments and adds the transitions to the replay.

        Args:
            step: its number, from 1 on.
            observation: `(agents, obs)`, on the run's device.
            action: `(agents, action)` in [−1, 1], on the run's device; those of failed agents become 0.

        Raises:
            RunError: of the last agent the action, the observation or the reward is not a number.
        """
        acted = action.cpu()
        self.failures.check_action(step, acted)
        self.failures.silence(action, acted)
        next_observation, reward, terminated, ended = self._stepped = self.environments.step(acted)
        self.failures.check_environment(step, self.environments.observation, next_observation, reward)
        self.replay.add(observation, next_observation, action, reward, terminated, ended)

    def updates(self, step: int) -> range:
        """Returns the numbers of the updates of a step, counted over the training; none while the replay fills."""
        return self.settings.updates_of(step) if self.replay.added > self.settings.random_steps else range(0)

    def record(self, step: int) -> None:
        """Counts the step, and where it is time, logs, evaluates and saves.

        Raises:
            RunError: of the last agent a loss, a return or a weight is not a number.
        """
        settings, last = self.settings, step == self.settings.env_steps
        assert self._stepped is not None
        self.meter.step(self._stepped.reward, self._stepped.ended)
        if step == settings.random_steps:
            self.coverage.update(self.replay)  # fixes the grid
        if self.meter.updates and (step % settings.log_every == 0 or last):
            with self.meter.paused(), self.groups.up_to_date():
                self._log(step)
        if step % settings.eval_every == 0 or last:
            with self.meter.paused(), self.groups.up_to_date():
                self._evaluate(step)
        if (last and settings.keep_state) or (step % settings.checkpoint_every == 0 and not last):
            with self.meter.paused(), self.groups.up_to_date():
                self.checkpoint.save()

    def _log(self, step: int) -> None:
        averages, rate = self.meter.row()
        diagnostics = self.agents.diagnostics(self.replay.sample(self.replay.newest(1000), self.settings.window))
        # An extension that lacks the replay does not know where the finished run has been.
        visited = {"coverage": self.coverage.update(self.replay)} if self.replay.begun == 0 else {}
        values = averages | {name: value.tolist() for name, value in diagnostics.items()} | visited
        self.failures.check_values(step, values)
        row = by_seed(values, self.settings.seeds, self.failures.living)
        self.run.log("train", step, row | {"agent_steps_per_second": rate})

    def _evaluate(self, step: int) -> None:
        self.failures.check_weights(step)
        living = self.failures.living
        played = self.evaluator.play(self.agents.policy, living)
        returns, *others = (figure.mean(1).tolist() for figure in played)
        self.failures.check_values(step, {"the evaluated return": returns}, TASK)
        self.best.update(step, returns)
        living = self.failures.living
        iqm = stats.interquartile_mean([returns[k] for k in living])
        summary = {"return_iqm": iqm.estimate, "return_iqm/low": iqm.low, "return_iqm/high": iqm.high}
        named = {"return": returns} | dict(zip(("length", "distance"), others, strict=True))
        if math.isnan(named["distance"][living[0]]):
            del named["distance"]  # nothing walks there
        self.run.log("eval", step, by_seed(named, self.settings.seeds, living) | summary)

    def finished(self) -> dict[str, Tensor]:
        """Returns the weights of all agents after the last step, and keeps what the run says of the training.

        Raises:
            RunError: no agent is left whose weights are numbers.
        """
        self.failures.check_weights(self.settings.env_steps)
        self.run.remembered("failed", self.failures.record)
        if self.settings.select == "best":
            self.best.write(self.run)
        return self.agents.state_dict()


def by_seed(values: Mapping[str, Sequence[float]], seeds: Sequence[int], living: Sequence[int]) -> dict[str, float]:
    """Returns the mean over `living` agents of each quantity under its name, each agent's as `<name>/seed<seed>`.

    The value of an agent that failed is NaN.
    """
    row = {name: statistics.fmean(column[k] for k in living) for name, column in values.items()}
    for name, column in values.items():
        row |= {f"{name}/seed{seed}": column[k] if k in living else math.nan for k, seed in enumerate(seeds)}
    return row
