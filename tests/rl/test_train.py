"""The command as a user types it: the whole experiment, a crash in the middle, and bad input."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, stats
from common.files import load_state, load_weights, save_state, save_weights
from common.sweep.file import groups_of, read, seeds_of
from rl import train_sac_icm as script
from rl.checkpoint import Checkpoint
from rl.dqn_settings import kind_of
from rl.envs import Environments
from rl.evaluate import Evaluator
from rl.replay import Replay
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


@pytest.mark.parametrize(
    ("alias", "option", "value"),
    [("--gamma", "--discount", 0.9), ("--tau", "--target-rate", 0.25), ("--learning-starts", "--random-steps", 7)],
)
def test_the_usual_names_of_settings_are_understood(alias: str, option: str, value: float, refused: Refused) -> None:
    name = option.removeprefix("--").replace("-", "_")
    for spelling in (alias, option, alias.replace("-", "_").replace("__", "--")):
        settings = cli.parse(Settings, [spelling, str(value)])
        assert getattr(settings, name) == value
        text = cli.to_yaml(settings)
        assert f"{name}: {value}" in text
        assert alias.removeprefix("--").replace("-", "_") + ":" not in text
    for spelling in (alias, option):
        status, line = refused(main, Settings, [spelling, "-1"])
        assert status == 2
        assert line.startswith(f"error: {option} -1")
    status, line = refused(main, Settings, [alias, "much"])
    assert status == 2
    assert alias in line
    assert option in line


def test_help_shows_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parse(Settings, ["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for names in (("--gamma", "--discount"), ("--tau", "--target-rate"), ("--learning-starts", "--random-steps")):
        assert any(all(name in line for name in names) for line in text.splitlines())


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


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--env-id", "Hoper-v4"], 2, "--env-id Hoper-v4"),
        (["--env-id", "CartPole-v1"], 2, "actions are Discrete(2)"),
        (["--env-id", "Pendulum-v1", "--env-kwargs", "{g: 3, gg: 4}"], 2, "gymnasium cannot make it"),
        (["--env-kwargs", "[1]"], 2, "--env-kwargs [1]: write a mapping"),
        (["--env-kwargs", "{a: "], 2, "write a mapping"),
        (["--icm", "curious"], 2, "stacked"),
        (["--stack", "0"], 2, "--stack 0"),
        (["--intrinsic-weight", "-1"], 2, "--intrinsic-weight -1"),
        (["--extrinsic-weight", "-0.5"], 2, "--extrinsic-weight -0.5"),
        (["--num-seeds", "0"], 2, "--num-seeds 0"),
        (["--discount", "1"], 2, "--discount 1"),
        (["--reward", "none"], 2, "sparse"),
        (["--reward", "sparse", "--env-id", "Reacher-v4"], 2, "nothing there can walk forward"),
        (["--reward", "sparse", "--env-id", "InvertedPendulum-v4"], 2, "nothing there can walk forward"),
        (["--batch-size", "0"], 2, "--batch-size 0"),
        (["--random-steps", "5000", "--env-steps", "5000"], 2, "no step is left"),
        (["--log-std-range", "2", "-2"], 2, "the lower bound must come first"),
        (["--log-std-range", "-1e300", "1e300"], 2, "outside float32's range"),
        (["--critic-learning-rate", "0"], 2, "--critic-learning-rate 0"),
        (["--bonus-decay", "2"], 2, "--bonus-decay 2"),
        (["--extrinsic-weight", "0", "--icm", "rnd", "--bonus-decay", "1"], 2, "no reward is left at the end"),
        (["--no-bonus-episodic"], 2, "--no-bonus-episodic with --icm none: there is no bonus"),
        (["--no-bonus-episodic", "--icm", "rnd", "--n-step", "3"], 2, "--no-bonus-episodic with --n-step 3"),
        (["--icm", "rnd", "--intrinsic-discount", "0.9"], 2, "--intrinsic-discount 0.9: it is that of the head of"),
        (["--n-step", "0"], 2, "--n-step 0"),
        (["--icm", "rnd", "--icm-observation", "positions", "--env-id", "Ant-v4"], 2, "known for Hopper, HalfCheetah"),
        (["--policy-delay", "0"], 2, "--policy-delay 0"),
        (["--updates-per-step", "0"], 2, "--updates-per-step 0"),
        (["--buffer-size", "1"], 2, "--buffer-size"),
        (["--initial-temperature", "1e300"], 2, "--initial-temperature"),
        (["--extrinsic-weight", "0"], 2, "no reward is left"),
        (["--extrinsic-weight", "0", "--icm", "rnd", "--intrinsic-weight", "0"], 2, "no reward is left"),
        (["--buffer-size", "1000000000", "--env-steps", "1000000000", "--num-seeds", "99"], 1, "out of memory"),
        (["--icm", "rnd", "--forward-width", "10"], 2, "no forward model"),
        (["--resume", "tests"], 1, "tests/config.yaml: no such file"),
        (["--results-dir", "README.md"], 1, "README.md"),
    ],
)
def test_bad_input_is_one_line_and_the_right_status(
    arguments: list[str], status: int, told: str, tmp_path: Path, refused: Refused
) -> None:
    if "--resume" not in arguments:
        arguments = ["--results-dir", str(tmp_path), *arguments]
    got, line = refused(main, Settings, arguments)
    assert got == status
    assert told in line
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_every_preset_is_accepted() -> None:
    presets = list(Path("configs/rl").glob("*.yaml"))
    assert presets
    for path in presets:
        cli.parse(Settings, ["--config", str(path)]).check()


def test_every_arm_of_the_sweeps_is_accepted_and_its_agents_have_seeds_of_their_own() -> None:
    paths = sorted(Path("configs/rl/sweeps").glob("*.yaml"))
    assert paths
    for path in paths:
        file = read(path)
        for arm in (arm for group in groups_of(file) for arm in group):
            settings = [
                cli.from_mapping(kind_of(arm.settings), {**arm.settings, "seed": seed}) for seed in seeds_of(file)
            ]
            for chosen in settings:
                chosen.check()
            seeds = [seed for chosen in settings for seed in chosen.seeds]
            assert len(set(seeds)) == len(seeds), path
