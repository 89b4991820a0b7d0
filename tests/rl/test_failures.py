"""Tasks that break or cannot be saved: an agent fails alone, a resumed run says that it starts a fresh episode."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv

from common import cli
from common.device import stream_seed
from common.files import load_weights
from rl.checkpoint import Checkpoint
from rl.replay import Replay
from rl.settings import Settings
from rl.train_sac_icm import main
from tests.rl.runs import QUICK, metrics_of, rows_of

Refused = Callable[..., tuple[int, str]]


class Broken(HopperEnv):
    """Hopper whose environment of seed 1, and of `also`, gives NaN and the reward `worth` from step `after` on."""

    after, also, worth, given = 30, (), 1.0, np.nan
    steps = 0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self.steps += 1
        if self.np_random_seed in [stream_seed(s, "environment") for s in (1, *self.also)] and self.steps >= self.after:
            observation[2], reward = self.given, self.worth
        return observation, reward, *rest


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Broken]]:
    gym.register("Broken-v0", Broken, max_episode_steps=100)
    monkeypatch.setattr("common.experiment.Run.figure", lambda *_: None)
    yield Broken
    del gym.registry["Broken-v0"]


BROKEN = [*QUICK, "--env-id", "Broken-v0", "--num-seeds", "3", "--hidden", "8", "8", "--batch-size", "8"]
BROKEN += ["--env-steps", "60", "--random-steps", "20", "--eval-every", "20", "--log-every", "20"]


@pytest.mark.parametrize("stops", [False, True])
def test_a_seed_that_fails_does_not_stop_the_others(
    stops: bool, broken: type[Broken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, capsys: Any
) -> None:
    """To the last bit as beside a seed that does not fail; also if the run is resumed after the failure."""
    arguments = [*BROKEN, "--icm", "single", "--checkpoint-every", "40", "--results-dir", str(tmp_path)]
    monkeypatch.setattr(broken, "after", 1000)
    cli.run(main, Settings, [*arguments, "--run-name", "whole"])
    monkeypatch.setattr(broken, "after", 30)
    dead = tmp_path / "rl" / "dead"
    if stops:
        monkeypatch.setattr("rl.envs.saves_exactly", lambda _: True)
        with monkeypatch.context() as patch:
            patch.setattr("rl.checkpoint.forget_replay", lambda *_: None)
            patch.setattr(Replay, "forget_segments", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert refused(main, Settings, [*arguments, "--run-name", "dead"])[0] == 130
        cli.run(main, Settings, ["--resume", str(dead)])
    else:
        cli.run(main, Settings, [*arguments, "--run-name", "dead"])
    told = capsys.readouterr().err
    assert "missing: seed 1, which ended at step 30: an observation of seed 1 is nan" in told
    if not stops:
        assert "seed 1 ends at step 30: an observation of seed 1 is nan. It came so from the environment" in told
    metrics, other = metrics_of(dead), metrics_of(tmp_path / "rl" / "whole")
    assert metrics["failed"] == [{"seed": 1, "step": 30, "cause": "an observation of seed 1 is nan"}]
    assert (metrics["seeds"], other["seeds"], other["failed"]) == ([0, 2], [0, 1, 2], [])
    assert metrics["eval_returns"] == [other["eval_returns"][k] for k in (0, 2)]
    assert metrics["eval_return_mean"] == pytest.approx(sum(metrics["eval_returns"]) / 2)
    ours, whole = (load_weights(r / "checkpoints" / "agents.safetensors") for r in (dead, tmp_path / "rl" / "whole"))
    for name, tensor in ours.items():
        for k in (0, 2) if tensor.ndim else ():
            assert torch.equal(tensor[k::3], whole[name][k::3]), name
        if tensor.ndim:
            assert not tensor[1::3].any()
    for mine, theirs in zip(rows_of(dead, "train"), rows_of(tmp_path / "rl" / "whole", "train"), strict=True):
        assert all(mine[name] == theirs[name] for name in mine if name.endswith(("seed0", "seed2")))
        assert mine["critic_loss/seed1"] == "nan"
        assert float(mine["critic_loss"]) == pytest.approx(
            (float(mine["critic_loss/seed0"]) + float(mine["critic_loss/seed2"])) / 2
        )


def test_a_seed_that_diverges_is_blamed_on_the_settings(
    broken: type[Broken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewards of 1e30 are finite; the loss's square of them is not, nor are the weights after it."""
    monkeypatch.setattr(broken, "given", 0.0)
    monkeypatch.setattr(broken, "worth", 1e30)
    cli.run(main, Settings, [*BROKEN, "--results-dir", str(tmp_path), "--run-name", "diverged"])
    (failed,) = metrics_of(tmp_path / "rl" / "diverged")["failed"]
    assert failed["seed"] == 1
    assert 30 < failed["step"] <= 40
    assert "lower learning rate" in capsys.readouterr().err
    weights = load_weights(tmp_path / "rl" / "diverged" / "checkpoints" / "agents.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_run_whose_agents_all_fail_ends_with_one_line(
    broken: type[Broken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(broken, "also", (0, 2))
    status, line = refused(main, Settings, [*BROKEN, "--results-dir", str(tmp_path)])
    assert status == 1
    assert "all 3 agents failed, the last at step 30: an observation of seed 2 is nan" in line
    assert "not at the learning rate" in line
    status, line = refused(main, Settings, [*BROKEN, "--num-seeds", "1", "--seed", "1", "--results-dir", str(tmp_path)])
    assert status == 1
    assert line.startswith("error: step 30: an observation of seed 1 is nan; no checkpoint yet. It came so")


class WithGoal(HopperEnv):
    """Hopper that draws a goal in `reset`, which no checkpoint holds."""

    goal = 0.0

    def reset_model(self) -> Any:
        self.goal = self.np_random.uniform(0, 5)
        return super().reset_model()

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward - abs(self.goal - self.data.qpos[0]), *rest


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["WithGoal-v0", "Pendulum-v1"])
def test_a_resumed_run_of_a_task_that_cannot_be_saved_starts_a_fresh_episode_and_says_so(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, capsys: Any
) -> None:
    gym.register("WithGoal-v0", WithGoal, max_episode_steps=1000)
    monkeypatch.setattr("common.experiment.Run.figure", lambda *_: None)
    arguments = [*BROKEN, "--env-id", env_id, "--checkpoint-every", "25", "--icm", "stacked", "--num-seeds", "2"]
    ages: list[Any] = []
    load = Checkpoint.load

    def look(checkpoint: Checkpoint) -> None:
        load(checkpoint)
        ages.append((checkpoint.replay._age.tolist(), checkpoint.meter.running_return.tolist()))

    monkeypatch.setattr(Checkpoint, "load", look)
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "forget_segments", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert refused(main, Settings, [*arguments, "--results-dir", str(tmp_path), "--run-name", "a"])[0] == 130
    shutil.copytree(tmp_path / "rl" / "a", tmp_path / "rl" / "b")
    for name in "ab":
        cli.run(main, Settings, ["--resume", str(tmp_path / "rl" / name)])
        told = capsys.readouterr().err
        assert f"the state of {env_id} cannot be saved exactly: each agent starts a fresh episode at step 25" in told
    assert ages[1:] == [([0, 0], [0, 0])] * 2
    ours, again = (load_weights(tmp_path / "rl" / r / "checkpoints" / "agents.safetensors") for r in "ab")
    assert all(torch.equal(ours[name], tensor) for name, tensor in again.items())  # the same each time
    del gym.registry["WithGoal-v0"]


def test_arguments_of_the_task_may_be_a_mapping_in_a_preset(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("env_id: Pendulum-v1\nenv_kwargs:\n  g: 9.0\n")
    settings = cli.parse(Settings, ["--config", str(tmp_path / "p.yaml")])
    assert settings.task_arguments == {"g": 9.0}
    (tmp_path / "q.yaml").write_text(cli.to_yaml(settings))
    assert cli.parse(Settings, ["--config", str(tmp_path / "q.yaml")]) == dataclasses.replace(
        settings, config=tmp_path / "q.yaml"
    )
