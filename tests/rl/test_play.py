"""A trained agent is played, exported and loaded: the same actions and the same returns as in training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from common import cli
from common.errors import UsageError
from common.files import load_weights, save_weights
from rl import load
from rl.networks import Actor
from rl.play import Play, main
from rl.policy import Policy, loaded
from rl.settings import Settings
from rl.train_sac_icm import main as train

pytestmark = pytest.mark.slow  # a training, and fresh processes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three small agents, seeds 4 to 6."""
    folder = tmp_path_factory.mktemp("results")
    steps = ["--env-steps", "150", "--random-steps", "100", "--eval-every", "75", "--eval-episodes", "2"]
    small = ["--hidden", "8", "12", "--batch-size", "16", "--num-seeds", "3", "--seed", "4", "--log-every", "50"]
    cli.run(train, Settings, [*steps, *small, "--results-dir", str(folder), "--run-name", "r"])
    return folder / "rl" / "r"


def play(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    cli.command(main, Play, [*arguments])
    return capsys.readouterr().out.splitlines()


def test_returns_are_those_of_the_last_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for seed, last in zip((4, 5, 6), metrics["last_eval_returns"], strict=True):
        lines = play(capsys, str(run), "--agent", str(seed), "--episodes", "2")
        returns = [float(line.split()[-1]) for line in lines[:2]]
        assert np.mean(returns) == pytest.approx(last, abs=0.06)  # printed with one decimal
        assert float(lines[2].split()[2]) == pytest.approx(last, abs=0.06)


def test_best_is_the_agent_with_the_highest_return(run: Path) -> None:
    returns = json.loads((run / "metrics.json").read_text())["eval_returns"]
    assert loaded(run, "best")[2] == 4 + int(np.argmax(returns))


def test_an_agent_that_failed_is_not_offered(run: Path, tmp_path: Path) -> None:
    """Its seed is missing from the seeds in metrics.json."""
    shutil.copytree(run, tmp_path / "r")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"seeds": [4, 6], "eval_returns": [1.0, 2.0]}
    (tmp_path / "r" / "metrics.json").write_text(json.dumps(metrics))
    assert loaded(tmp_path / "r", "best")[2] == 6
    with pytest.raises(UsageError, match="seeds 4, 6"):
        loaded(tmp_path / "r", 5)


@pytest.mark.parametrize("seed", [4, 6])
def test_policy_acts_as_the_agent_of_the_stack(run: Path, seed: int) -> None:
    """Against the actor of all agents, whose weights are those in the run."""
    settings = cli.parse(Settings, ["--config", str(run / "config.yaml")])
    actor = Actor(11, 3, settings.hidden, settings.log_std_range, [torch.Generator()] * 3)
    weights = load_weights(run / "checkpoints" / "agents.safetensors")
    actor.load_state_dict({k.removeprefix("actor."): v for k, v in weights.items() if k.startswith("actor.")})
    observation = np.random.default_rng(0).normal(size=11)
    expected = actor.deterministic(torch.from_numpy(observation).float().expand(3, -1))[seed - 4]
    np.testing.assert_allclose(load(run, agent=seed).act(observation), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_actions_are_in_the_tasks_own_range() -> None:
    """Low and high where tanh is −1 and 1."""
    actor = Actor(2, 2, (4,), (-20.0, 2.0), [torch.Generator().manual_seed(0)])
    space = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    policy = Policy.of(actor, 0, space)
    observation = torch.randn(7, 2)
    squashed = torch.stack([actor.deterministic(row[None])[0] for row in observation])
    expected = torch.tensor([-2.0, 0.0]) + (squashed + 1) / 2 * torch.tensor([4.0, 10.0])
    torch.testing.assert_close(policy(observation), expected)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_an_exported_policy_needs_none_of_this_code(
    run: Path, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded in a fresh process outside the repository, it gives the same actions for any number of observations."""
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    file = tmp_path / f"policy.{ending}"
    assert play(capsys, str(run), "--episodes", "0", "--export", str(file)) == [str(file)]
    observations = np.random.default_rng(1).normal(size=(5, 11)).astype(np.float32)
    np.save(tmp_path / "observations.npy", observations)
    call = {
        "pt": "import torch; out = torch.jit.load(file)(torch.from_numpy(x)).numpy()",
        "pt2": "import torch; out = torch.export.load(file).module()(torch.from_numpy(x)).numpy()",
        "onnx": "import onnxruntime as o; out = o.InferenceSession(file).run(None, {'observation': x})[0]",
    }[ending]
    program = (
        f"import numpy as np; file = {str(file)!r}; x = np.load('observations.npy'); {call}; np.save('out.npy', out)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = np.stack([load(run).act(row) for row in observations])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["{run}", "--agent", "3"], 2, "has the trained agents of seeds 4, 5, 6"),
        (["{run}", "--agent", "worst"], 2, "expected --agent INT|{best}"),
        (["{run}", "--episodes", "-1"], 2, "--episodes -1"),
        (["{run}", "--export", "policy.zip"], 2, "must end in .pt, .pt2, .onnx"),
        (["{run}", "--video", "film.mp4"], 2, "must end in .gif"),
        (["{run}", "--env-id", "HalfCheetah-v4"], 2, "17 observations and 6 actions, the policy has 11 and 3"),
        (["{run}", "--env-id", "Nothing-v0"], 2, "--env-id Nothing-v0"),
        (["tests"], 1, "tests: no finished run (metrics.json is missing)"),
        (["no/such"], 2, "no/such: no such folder"),
    ],
)
def test_bad_input(run: Path, arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.command(main, Play, [argument.format(run=run) for argument in arguments])
    assert stopped.value.code == status
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["other", "missing", "metrics", "task"])
def test_a_damaged_run_is_told(run: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "r")
    weights, metrics = tmp_path / "r" / "checkpoints" / "agents.safetensors", tmp_path / "r" / "metrics.json"
    told = {
        "other": "not the weights of these agents",
        "missing": "agents.safetensors",
        "metrics": "metrics.json: damaged",
        "task": "a run of another experiment",
    }[damage]
    if damage == "other":
        save_weights(weights, {"x": torch.zeros(1)})
    elif damage == "missing":
        weights.unlink()
    else:
        metrics.write_text("{" if damage == "metrics" else '{"elbo": 1}')
    with pytest.raises(SystemExit) as stopped:
        cli.command(main, Play, [str(tmp_path / "r")])
    assert stopped.value.code == 1
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_loaded_as_the_docs_say(run: Path) -> None:
    """In a fresh process, with the environment that it was trained in."""
    program = (
        f"import gymnasium as gym; from rl import load; policy = load({str(run)!r}); env = gym.make('Hopper-v4');"
        "observation, _ = env.reset(seed=0); env.step(policy.act(observation))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
