"""Shared agents are loaded like those of the run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli
from common.cli import to_yaml
from common.errors import UsageError
from common.files import load_weights, save_weights
from common.sharing import Share
from rl import load
from rl.agents import Agents
from rl.dqn import DQN
from rl.dqn_settings import DQNSettings
from rl.sac import SAC
from rl.selection import PREFIX
from rl.settings import AgentSettings, Settings
from rl.share import main
from tests.common.test_sharing import header_of, require_what_the_hub_documents

METRICS = {
    **{"seeds": [0, 1], "eval_returns": [3.0, 5.0], "eval_return_mean": 4.0, "eval_return_iqm": 4.0, "failed": []},
    **{"evaluations_averaged": 2, "torch": "2.14", "device": "cpu", "seconds": 9.0, "git_commit": "abc"},
    "dataset": {"name": "Hopper-v4", "source": "gymnasium 1.4", "images": 0},
}


def write_run(run: Path, settings: AgentSettings, agents: Agents) -> None:
    """Writes what a finished run of these agents has of itself."""
    save_weights(run / "checkpoints" / "agents.safetensors", agents.state_dict())
    (run / "config.yaml").write_text(to_yaml(settings))
    (run / "metrics.json").write_text(json.dumps(METRICS))


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_shared_folder_is_loaded_like_the_run(
    select: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = tmp_path / "run", tmp_path / "hopper"
    settings = Settings(hidden=(4,), num_seeds=2, select=select)  # type: ignore[arg-type]
    sac = SAC(settings, 11, 3, [torch.Generator().manual_seed(k) for k in range(2)], torch.device("cpu"))
    write_run(run, settings, sac)
    best = {PREFIX + name: tensor + 1 for name, tensor in sac.actor.state_dict().items()}
    if select == "best":
        save_weights(run / "checkpoints" / "best.safetensors", best)
    cli.command(main, Share, [str(run), str(folder)])
    assert capsys.readouterr().out == f"{folder}\n"
    header = header_of(folder / "README.md")
    require_what_the_hub_documents(header)
    assert header["pipeline_tag"] == "reinforcement-learning"
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == "4.00 +/- 1.41"
    assert ("optimistic" in (folder / "README.md").read_text()) == (select == "best")
    observation = np.linspace(-1, 1, 11)
    last = load(folder).act(observation)
    np.testing.assert_array_equal(last, load(run).act(observation))
    if select == "best":
        assert not np.allclose(load(folder, weights="best").act(observation), last)


def test_a_small_folder_has_the_best_policy_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = tmp_path / "run", tmp_path / "hopper"
    settings = Settings(hidden=(4,), num_seeds=2)
    sac = SAC(settings, 11, 3, [torch.Generator().manual_seed(k) for k in range(2)], torch.device("cpu"))
    write_run(run, settings, sac)
    cli.command(main, Share, [str(run), str(folder), "--small"])
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        *("README.md", "config.yaml", "metrics.json", "agents.safetensors")
    }
    assert "Of the agents this folder has one" in (folder / "README.md").read_text()
    weights = load_weights(folder / "checkpoints" / "agents.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    observation = np.linspace(-1, 1, 11)
    np.testing.assert_allclose(load(folder).act(observation), load(run, agent=1).act(observation), atol=2e-3)
    np.testing.assert_array_equal(load(folder, agent=1).act(observation), load(folder).act(observation))
    with pytest.raises(UsageError, match="the best agent alone, that of seed 1"):
        load(folder, agent=0)


@pytest.mark.parametrize("small", [True, False])
def test_a_dqn_is_shared_too(small: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = tmp_path / "run", tmp_path / "hopper"
    settings = DQNSettings(hidden=(4,), num_seeds=2)
    dqn = DQN(settings, 11, 3, [torch.Generator().manual_seed(k) for k in range(2)], torch.device("cpu"))
    write_run(run, settings, dqn)
    cli.command(main, Share, [str(run), str(folder), *["--small"] * small])
    text = (folder / "README.md").read_text()
    assert "python rl/train_dqn.py --num-seeds 2" in text
    assert "soft-actor-critic" not in text
    observation = np.linspace(-1, 1, 11)
    np.testing.assert_allclose(load(folder).act(observation), load(run).act(observation), atol=1e-2)
