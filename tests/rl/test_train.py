"""The command as a user types it: the whole experiment, and a crash in the middle."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, stats
from common.files import load_weights, save_weights
from rl.evaluate import Evaluator
from rl.sac import SAC
from rl.settings import Settings
from rl.train_sac_icm import main
from tests.rl.runs import QUICK, metrics_of, rows_of

COMMAND = [sys.executable, "rl/train_sac_icm.py"]
Refused = Callable[..., tuple[int, str]]
Killed = Callable[[Sequence[str], Path, str], Path]
Unchanged = Callable[[Any, Any, Path], None]


def train(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return done


def in_this_process(*arguments: str) -> None:
    cli.run(main, Settings, list(arguments))


def slow(*arguments: str) -> Any:
    return pytest.param(list(arguments), marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one smoke test with the stacked ICM."""
    folder = tmp_path_factory.mktemp("results")
    done = train("--smoke-test", "--icm", "stacked", "--run-name", "smoke", "--results-dir", str(folder))
    assert done.stdout.splitlines()[-1] == str(folder / "rl" / "smoke")
    return folder / "rl" / "smoke"


def test_writes_what_the_contract_says(smoke: Path) -> None:
    metrics = metrics_of(smoke)
    assert metrics.keys() >= {
        *("dataset", "device", "torch", "seconds", "git_commit", "peak_memory_bytes"),
        *("eval_returns", "eval_return_mean", "eval_return_iqm", "env_steps", "agent_steps_per_second", "icm", "seeds"),
    }
    expected = {"icm": "stacked", "env_id": "Hopper-v4", "seeds": [0, 1], "env_steps": 1200}
    assert metrics | expected == metrics
    assert metrics["dataset"]["name"] == "Hopper-v4"
    assert {"learning_curve.png", "training.png"} <= {p.name for p in (smoke / "figures").iterdir()}
    assert list(smoke.glob("events.out.tfevents.*"))
    assert not (smoke / "checkpoints" / "replay").exists()  # spent
    assert not (smoke / "checkpoints" / "agents.state.pt").exists()


def test_history_holds_every_quantity_of_every_seed(smoke: Path) -> None:
    rows = rows_of(smoke, "train")
    assert [int(row["step"]) for row in rows] == [600, 800, 1000, 1200]  # nothing is learned in the random steps
    quantities = {
        *("return", "critic_loss", "value", "actor_loss", "temperature", "entropy", "extrinsic_reward"),
        *("intrinsic_reward", "forward_loss", "inverse_loss", "feature_variance", "inverse_r2"),
        *("forward_r2", "bonus_share", "coverage", "episode_length", "steps_paid"),
    }
    for row in rows:
        assert float(row["agent_steps_per_second"]) > 0
        for name in quantities:
            values = [float(row[f"{name}/seed{seed}"]) for seed in (0, 1)]
            assert values[0] != values[1] or name in ("coverage", "episode_length", "steps_paid")
            assert float(row[name]) == pytest.approx(sum(values) / 2)
    assert float(rows[-1]["temperature"]) < float(rows[0]["temperature"]) < 1  # from 1, towards less entropy
    assert float(rows[-1]["forward_loss"]) < float(rows[0]["forward_loss"])


def test_numbers_can_be_true(smoke: Path) -> None:
    """With three evaluations the last 10 % is the last one; Hopper pays 1 a step for standing."""
    metrics, evaluations = metrics_of(smoke), rows_of(smoke, "eval")
    assert [int(row["step"]) for row in evaluations] == [400, 800, 1200]
    last = [float(evaluations[-1][f"return/seed{seed}"]) for seed in (0, 1)]
    assert metrics["eval_returns"] == pytest.approx(last)
    assert metrics["eval_return_mean"] == pytest.approx(sum(last) / 2)
    for key, name in (("eval_lengths", "length"), ("eval_distances", "distance")):
        assert metrics[key] == pytest.approx([float(evaluations[-1][f"{name}/seed{seed}"]) for seed in (0, 1)])
    assert all(1000 < steps <= 1200 for steps in metrics["steps_paid"])  # the dense reward pays nearly each step
    assert all(0 < cells < 12**4 for cells in metrics["coverage"])
    assert metrics["solved_at"] == 3800
    assert metrics["eval_return_iqm"] == pytest.approx(stats.interquartile_mean(last).estimate)
    assert all(1 < value < 1000 for value in last)


def test_saved_agents_are_those_that_were_evaluated(smoke: Path) -> None:
    settings = cli.parse(Settings, ["--config", str(smoke / "config.yaml")])
    sac = SAC(settings, 11, 3, [torch.Generator()] * settings.num_seeds, torch.device("cpu"))
    sac.load_state_dict(load_weights(smoke / "checkpoints" / "agents.safetensors"))
    evaluator = Evaluator(settings.env_id, settings.reward, settings.num_seeds, settings.eval_episodes)
    returns = evaluator.returns(sac.actor).mean(1)
    np.testing.assert_allclose(returns, metrics_of(smoke)["last_eval_returns"], rtol=1e-6)


@pytest.mark.slow
def test_a_film_is_small_and_moves_at_the_speed_of_the_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--env-steps", "60", "--random-steps", "50", "--hidden", "8", "8", "--video", "--run-name", "film"]
    cli.run(main, Settings, [*QUICK, *arguments, "--results-dir", str(tmp_path)])
    film = tmp_path / "rl" / "film" / "figures" / "best_policy.gif"
    if "no video" in capsys.readouterr().err:
        assert not film.exists()
        pytest.skip("this machine cannot render off-screen")
    with Image.open(film) as image:
        assert image.size == (240, 240)
        assert image.info["duration"] == 40  # milliseconds: five steps of 0.008 s
        assert film.stat().st_size < 10_000 * image.n_frames


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_numbers(smoke: Path, tmp_path: Path, killed: Killed) -> None:
    arguments = ["--config", str(smoke / "config.yaml"), "--results-dir", str(tmp_path)]
    run = killed([*COMMAND, *arguments], tmp_path, "agents.state.pt")
    assert not (run / "checkpoints" / "agents.safetensors").exists()
    (run / "checkpoints" / "replay" / ".000000000800.pt.left").touch()  # as if killed while it was written
    train("--resume", str(run))
    assert not (run / "checkpoints" / "replay").exists()
    ours, unbroken = (load_weights(r / "checkpoints" / "agents.safetensors") for r in (run, smoke))
    assert all(torch.equal(ours[key], tensor) for key, tensor in unbroken.items())
    assert metrics_of(run)["eval_returns"] == metrics_of(smoke)["eval_returns"]
    for stage in ("train", "eval"):
        for mine, theirs in zip(rows_of(run, stage), rows_of(smoke, stage), strict=True):
            assert {k: v for k, v in mine.items() if "per_second" not in k} == {
                k: v for k, v in theirs.items() if "per_second" not in k
            }


def test_resuming_a_complete_run_changes_nothing(smoke: Path, unchanged_by_resume: Unchanged) -> None:
    unchanged_by_resume(main, Settings, smoke)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--icm", "none"],
        slow("--icm", "single", "--forward-width", "50", "--extrinsic-weight", "0"),
        slow("--icm", "random", "--env-id", "HalfCheetah-v4", "--n-step", "3", "--icm-observation", "positions"),
        slow("--icm", "stacked", "--env-id", "MountainCarContinuous-v0"),
        slow("--icm", "rnd", "--env-id", "Pendulum-v1", "--env-kwargs", "{g: 9.0}"),
        ["--icm", "rnd", "--reward", "sparse", "--bonus", "centred", "--bonus-decay", "0.5", "--no-bonus-episodic"],
        slow("--icm", "stacked", "--stack", "2", "--env-id", "Walker2d-v4", "--buffer-size", "300"),
        slow("--env-id", "Hopper-v5", "--precision", "float32", "--target-entropy", "-1"),
    ],
)
def test_every_choice_runs_to_the_end(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(main, Settings, [*QUICK, *arguments, "--results-dir", str(tmp_path)])
    metrics = metrics_of(Path(capsys.readouterr().out.splitlines()[-1]))
    assert metrics["icm"] in arguments or "--icm" not in arguments
    assert (metrics["curiosity_parameters"] > 0) == (metrics["icm"] != "none")


@pytest.mark.slow
def test_the_plain_formulas_run_the_whole_experiment(tmp_path: Path) -> None:
    """TRILAB_PLAIN=1: the same weights and environments at first, so that the first evaluation is the same."""
    folders = []
    short = ["--smoke-test", "--icm", "stacked", "--env-steps", "430", "--eval-every", "400"]
    for name, run in (("plain", functools.partial(train, TRILAB_PLAIN="1")), ("fast", in_this_process)):
        run(*short, "--run-name", name, "--results-dir", str(tmp_path))
        folders.append(tmp_path / "rl" / name)
    plain_rows, fast_rows = (rows_of(folder, "eval") for folder in folders)
    assert float(plain_rows[0]["return"]) == pytest.approx(float(fast_rows[0]["return"]), rel=1e-4)
    losses = [float(rows_of(folder, "train")[0]["critic_loss"]) for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_diverging_training_stops_with_the_step_and_the_last_checkpoint(tmp_path: Path, refused: Refused) -> None:
    arguments = ["--learning-rate", "1e30", "--checkpoint-every", "400", "--random-steps", "450"]
    status, line = refused(main, Settings, ["--smoke-test", *arguments, "--results-dir", str(tmp_path)])
    assert status == 1
    assert "step 45" in line  # the first updates
    assert "agents.state.pt" in line
    (run,) = (tmp_path / "rl").iterdir()
    weights = torch.load(run / "checkpoints" / "agents.state.pt", weights_only=True)["sac"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_not_a_checkpoint_of_these_agents(smoke: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(smoke, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    save_weights(tmp_path / "run" / "checkpoints" / "agents.safetensors", {"x": torch.zeros(1)})
    status, line = refused(main, Settings, ["--resume", str(tmp_path / "run")])
    assert status == 1
    assert "agents.safetensors: not what this run wrote there" in line
