"""The DQN script: what it writes, a stop in the middle, play, comparisons with SAC, the report, and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli
from common.errors import UsageError
from common.files import load_state, load_weights
from common.report.document import Claim
from common.report.folders import find, usable
from rl import load, report
from rl.compare import Comparison
from rl.compare import main as compare
from rl.dqn_settings import DQNSettings
from rl.play import Play
from rl.play import main as play
from rl.records import pooled, read
from rl.settings import Settings
from rl.train_dqn import main
from rl.train_sac_icm import main as train_sac
from tests.rl.runs import QUICK, metrics_of, rows_of, stopped_at_the_first_checkpoint
from tests.rl.test_train import Refused

SMALL = [*QUICK, "--env-steps", "90", "--random-steps", "20", "--hidden", "8", "8", "--batch-size", "8"]
SMALL += ["--eval-every", "45", "--log-every", "45", "--num-seeds", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task folder of a joint and a decoupled DQN and a SAC, of the same seeds."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [*SMALL, "--results-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.experiment.Run.figure", lambda *_: None)
        cli.run(train_sac, Settings, [*arguments, "--run-name", "sac"])
        cli.run(main, DQNSettings, [*arguments, "--head", "joint", "--run-name", "joint", "--n-step", "1"])
        more = ["--icm", "stacked", "--select", "best", "--target-period", "7", "--updates-per-step", "2"]
        cli.run(main, DQNSettings, [*arguments, *more, "--run-name", "decoupled", "--checkpoint-every", "40"])
    return folder / "rl"


def test_writes_what_a_run_writes(runs: Path) -> None:
    sac = metrics_of(runs / "sac")
    for name in ("joint", "decoupled"):
        metrics = metrics_of(runs / name)
        assert sac.keys() <= metrics.keys() | {"best"}
        assert (metrics["curiosity_parameters"] > 0) == (name == "decoupled")
        rows = rows_of(runs / name, "train")
        assert [int(row["step"]) for row in rows] == [45, 90]
        assert all(float(row["q_loss"]) > 0 for row in rows)
        assert len(rows_of(runs / name, "eval")) == 2
    assert "bonus_share" in rows_of(runs / "decoupled", "train")[0]


def test_a_run_that_stopped_goes_on_to_the_same_weights(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr("common.experiment.Run.figure", lambda *_: None)
    with stopped_at_the_first_checkpoint():
        again = ["--config", str(runs / "decoupled" / "config.yaml"), "--results-dir", str(tmp_path)]
        assert refused(main, DQNSettings, again)[0] == 130
    stopped = tmp_path / "rl" / "decoupled"
    assert load_state(stopped / "checkpoints" / "agents.state.pt")["step"] == 40
    cli.run(main, DQNSettings, ["--resume", str(stopped)])
    ours, whole = (load_weights(run / "checkpoints" / "agents.safetensors") for run in (stopped, runs / "decoupled"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
    assert rows_of(stopped, "eval") == rows_of(runs / "decoupled", "eval")


@pytest.mark.parametrize("name", ["joint", "decoupled"])
def test_play_and_load(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    returns, last = (metrics_of(runs / name)[key] for key in ("eval_returns", "last_eval_returns"))
    capsys.readouterr()
    path = tmp_path / "policy.pt"
    cli.command(play, Play, [str(runs / name), "--agent", "1", "--episodes", "1", "--export", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[0].split()[-1]) == pytest.approx(last[1], abs=0.06)
    assert returns == last
    policy, exported = load(runs / name, agent=1), torch.jit.load(path)
    weights = load_weights(runs / name / "checkpoints" / "agents.safetensors")
    observation = torch.randn(20, 11)
    x = observation
    for layer in range(3):
        x = x @ weights[f"q_network.network.weights.{layer}"][1] + weights[f"q_network.network.biases.{layer}"][1]
        x = x.relu() if layer < 2 else x
    if name == "joint":
        best = x.argmax(-1)
        expected = torch.stack([best % 3, best // 3 % 3, best // 9], -1) - 1.0
    else:
        expected = x.view(20, 3, 3).argmax(-1) - 1.0
    assert torch.equal(policy(observation), expected)
    assert torch.equal(exported(observation), expected)
    assert torch.equal(torch.from_numpy(policy.act(observation[0].numpy())), expected[0])


def test_weights_of_the_best_evaluation(runs: Path) -> None:
    policy = load(runs / "decoupled", agent=0, weights="best")
    assert policy(torch.zeros(4, 11)).abs().le(1).all()
    with pytest.raises(UsageError, match="--select best"):
        load(runs / "joint", weights="best")


def test_compared_with_sac(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(Comparison((runs / "sac", runs / "joint", runs / "decoupled"), tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    gain = record["differences"]["joint − sac"]["final return"]["t"]["estimate"]
    means = {name: np.mean(metrics_of(runs / name)["eval_returns"]) for name in ("joint", "sac")}
    assert gain == pytest.approx(means["joint"] - means["sac"])
    arms = [read(folder) for folder in find(runs)]
    others = [arm for arm in arms if arm.name == "joint"]
    moved = [type(arm)("more", arm.settings, arm.metrics | {"seeds": [7, 8]}, arm.steps, arm.curves) for arm in others]
    assert [arm.name for arm in pooled([*arms, *moved])] == ["decoupled", "joint", "sac"]


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    """The runs as if they were no smoke tests, and the SAC once more as a CrossQ of high returns, which comes first."""
    folder = tmp_path / "rl"
    shutil.copytree(runs, folder)
    shutil.copytree(runs / "sac", folder / "crossq")
    for name in ("sac", "joint", "decoupled", "crossq"):
        config = folder / name / "config.yaml"
        text = config.read_text().replace("smoke_test: true", "smoke_test: false")
        config.write_text(text.replace("critic: twin", "critic: crossq") if name == "crossq" else text)
    path = folder / "crossq" / "metrics.json"
    path.write_text(json.dumps(metrics_of(path.parent) | {"eval_returns": [1e6, 1e6]}))
    return folder


def test_the_report_names_the_agents_and_gives_dqn_its_own_claim(whole: Path) -> None:
    section = report.section(find(whole))
    claims = [claim for claim in section.claims if claim.claim == report.AGAINST_SAC]
    assert len(claims) == 1  # the decoupled run here has curiosity
    gain = np.subtract(*(np.mean(metrics_of(whole / name)["eval_returns"]) for name in ("joint", "sac")))
    assert claims[0].measured.startswith(f"joint: {gain:+.0f}".replace("-", "−")[:8])
    assert section.claims[0] == Claim.not_measured(report.CLAIM, f"{report.COMMAND}` and `--icm single")
    rows = {folder.name: report.row(folder, metrics) for folder, metrics in usable(find(whole), report.Metrics)}
    assert [rows[name][1] for name in ("joint", "decoupled", "sac")] == ["DQN, joint", "DQN, decoupled", "SAC"]


def test_plain_sac_is_another_learner_than_crossq(whole: Path) -> None:
    crossq, sac = (read(find(whole / name)[0]) for name in ("crossq", "sac"))
    assert not report.differ_only_in(report.CURIOSITY, crossq, sac)


def test_smoke_tests_are_no_evidence(runs: Path) -> None:
    assert [claim.claim for claim in report.section(find(runs)).claims] == [report.CLAIM]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--head", "joint", "--env-id", "Humanoid-v4"], "a grid of 3^17 = 129,140,163 actions; at most 10,000"),
        (["--head", "joint", "--bins", "101"], "a grid of 101^3 = 1,030,301 actions"),
        (["--bins", "1"], "--bins 1"),
        (["--head", "both"], "decoupled"),
        (["--epsilon", "1.5"], "--epsilon 1.5"),
        (["--target-period", "0"], "--target-period 0"),
        (["--tau", "0.1"], "--tau"),
        (["--random-steps", "90", "--env-steps", "90"], "no step is left"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, tmp_path: Path, refused: Refused) -> None:
    status, line = refused(main, DQNSettings, ["--results-dir", str(tmp_path), *arguments])
    assert status == 2
    assert told in line
    assert not list(tmp_path.iterdir())


def test_diverging_training_stops_with_the_step(tmp_path: Path, refused: Refused) -> None:
    """The greedy choice among values that are no numbers is an action all the same: losses and weights tell."""
    arguments = [*SMALL, "--learning-rate", "1e30", "--results-dir", str(tmp_path)]
    status, line = refused(main, DQNSettings, arguments)
    assert status == 1
    assert "step 45: q_loss of seed" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--env-id", "Pendulum-v1", "--head", "joint", "--bins", "5"],
        ["--reward", "sparse", "--icm", "random", "--n-step", "3"],
    ],
)
def test_other_choices_run_to_the_end(arguments: list[str], tmp_path: Path) -> None:
    cli.run(main, DQNSettings, [*SMALL, *arguments, "--results-dir", str(tmp_path), "--run-name", "r"])
    assert metrics_of(tmp_path / "rl" / "r")["eval_returns"]
