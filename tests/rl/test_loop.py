"""The script's loop: its updates, an agent beside others, the rate by a clock, and a stop that changes nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common import cli
from common.files import load_state, load_weights, save_state
from rl import train_sac_icm as script
from rl.checkpoint import Checkpoint
from rl.envs import Environments
from rl.evaluate import Evaluator
from rl.replay import Replay
from rl.sac import SAC
from rl.settings import Settings
from rl.train_sac_icm import main
from tests.rl.runs import QUICK, rows_of

Refused = Callable[..., tuple[int, str]]


class Trained(Exception):
    """Ends a run after its training; holds the agents and their replay."""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SAC, Replay]]:
    """Runs the script's own loop on settings and returns the agents and their replay as it leaves them."""
    loop = script.train
    monkeypatch.setattr(script, "train", lambda *parts: stop_after(*parts))

    def stop_after(run: Any, settings: Settings, sac: SAC, environments: Environments, replay: Replay) -> None:
        loop(run, settings, sac, environments, replay)
        raise Trained(sac, replay)

    def run(**settings: Any) -> tuple[SAC, Replay]:
        with pytest.raises(Trained) as stop:
            main(Settings(eval_episodes=1, batch_size=8, hidden=(8, 8), results_dir=tmp_path, **settings))
        sac, replay = stop.value.args
        return sac, replay

    return run


@pytest.mark.parametrize(
    ("earlier_names", "chosen"),
    [
        (False, ["--icm", "random"]),
        (True, ["--icm", "random"]),
        pytest.param(False, ["--icm", "single", "--no-bonus-episodic"], marks=pytest.mark.slow),
        pytest.param(False, ["--icm", "stacked", "--n-step", "3"], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_stopped_goes_on_to_the_same_weights(
    earlier_names: bool, chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """Also from a checkpoint in which the target critic has its earlier name."""
    arguments = [*QUICK, "--env-steps", "90", "--random-steps", "20", "--hidden", "8", "8", *chosen]
    arguments += ["--checkpoint-every", "40", "--log-every", "50", "--results-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("common.experiment.Run.figure", lambda *_: None)
        cli.run(main, Settings, [*arguments, "--run-name", "whole"])
        save = Checkpoint.save

        def save_and_stop(checkpoint: Checkpoint) -> None:
            save(checkpoint)
            raise KeyboardInterrupt

        patch.setattr(Checkpoint, "save", save_and_stop)
        status, _ = refused(main, Settings, [*arguments, "--run-name", "stopped"])
        assert status == 130
        patch.setattr(Checkpoint, "save", save)
        whole, stopped = tmp_path / "rl" / "whole", tmp_path / "rl" / "stopped"
        path = stopped / "checkpoints" / "agents.state.pt"
        state = load_state(path)
        assert state["step"] == 40
        assert "target_critic.network.weights.0" in state["sac"]
        if earlier_names:
            state["sac"] = {name.replace("target_critic.", "target."): tensor for name, tensor in state["sac"].items()}
            save_state(path, state)
        cli.run(main, Settings, ["--resume", str(stopped)])
    ours, unbroken = (load_weights(run / "checkpoints" / "agents.safetensors") for run in (stopped, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in unbroken.items())
    assert rows_of(stopped, "eval") == rows_of(whole, "eval")
    for mine, theirs in zip(rows_of(stopped, "train"), rows_of(whole, "train"), strict=True):
        assert {k: v for k, v in mine.items() if "per_second" not in k} == {
            k: v for k, v in theirs.items() if "per_second" not in k
        }


def test_several_updates_a_step_and_a_delayed_policy(trained: Callable[..., tuple[SAC, Replay]]) -> None:
    """Twelve updates of the critics in four steps, and the policy's after every fifth."""
    sac, _ = trained(random_steps=20, env_steps=24, updates_per_step=3, policy_delay=5)
    assert sac.critic_optimizer.steps == 12
    assert sac.actor_optimizer.steps == 2


def test_an_agent_acts_the_same_alone_and_beside_others(trained: Callable[..., tuple[SAC, Replay]]) -> None:
    """In the random steps exactly: environments, actions and stored transitions depend on the seed alone."""
    together, many = trained(num_seeds=3, seed=4, random_steps=60, env_steps=70)
    alone, one = trained(num_seeds=1, seed=5, random_steps=60, env_steps=70)
    assert torch.equal(many.rows[1, :60], one.rows[0, :60])
    # Then, after ten updates, to rounding.
    torch.testing.assert_close(many.rows[1, :70], one.rows[0, :70], rtol=1e-3, atol=1e-3)
    weights = [sac.actor.network.weights[1] for sac in (together, alone)]
    torch.testing.assert_close(weights[0][1], weights[1][0], rtol=1e-3, atol=1e-4)


def test_one_update_a_step_after_the_random_steps(trained: Callable[..., tuple[SAC, Replay]]) -> None:
    sac, replay = trained(random_steps=20, env_steps=30)
    assert replay.steps == 30
    assert {int(optimizer.steps) for optimizer in sac.optimizers} == {10}


def test_a_name_without_its_code_is_an_error() -> None:
    """Where a new reward or curiosity is begun with its name alone, nothing else may run under that name."""
    with pytest.raises(AssertionError, match="mine"):
        SAC(Settings(icm="mine"), 11, 3, [torch.Generator()], torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="mine"):
        Environments("Hopper-v4", "mine", [0])  # type: ignore[arg-type]


@pytest.mark.slow
def test_only_steps_with_an_update_count_in_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which acting takes 0.1 s, an update 1.9, an evaluation or a checkpoint 50, and all else nothing."""
    now = [0.0]

    def takes(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            now[0] += seconds
            return original(*arguments)

        monkeypatch.setattr(owner, name, timed)

    takes(Environments, "step", 0.1)
    takes(SAC, "update", 1.9)
    takes(Evaluator, "play", 50)
    takes(Checkpoint, "save", 50)
    monkeypatch.setattr("rl.meter.time", SimpleNamespace(perf_counter=lambda: now[0]))
    steps = ["--random-steps", "410", "--log-every", "40", "--eval-every", "430", "--checkpoint-every", "450"]
    cli.run(main, Settings, [*QUICK, *steps, "--run-name", "timed", "--results-dir", str(tmp_path)])
    rows = rows_of(tmp_path / "rl" / "timed", "train")
    assert [int(row["step"]) for row in rows] == [440, 480, 500]
    assert [float(row["agent_steps_per_second"]) for row in rows] == pytest.approx([0.5] * 3)
