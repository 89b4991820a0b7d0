"""Double DQN against a naive agent written from the papers; agents in lockstep against agents alone; the script."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common import cli
from common.errors import UsageError
from common.files import load_state, load_weights
from common.report.document import Claim
from common.report.folders import find, usable
from rl import load, report
from rl.compare import Comparison
from rl.compare import main as compare
from rl.dqn import DQN, ActionGrid, double_q_target, epsilon_at, huber_loss, value_of
from rl.dqn_settings import DQNSettings
from rl.play import Play
from rl.play import main as play
from rl.records import pooled, read
from rl.replay import Batch
from rl.settings import Settings
from rl.streams import Noise, RandomStreams
from rl.train_dqn import main
from rl.train_sac_icm import main as train_sac
from tests.rl.naive import perceptron
from tests.rl.runs import QUICK, metrics_of, rows_of, stopped_at_the_first_checkpoint
from tests.rl.test_train import Refused

OBSERVATION, ACTION, BATCH = 5, 2, 16
CPU = torch.device("cpu")
HEADS = ("joint", "decoupled")


def dqn(agents: range, **settings: Any) -> DQN:
    generators = [torch.Generator().manual_seed(seed) for seed in agents]
    chosen = {"hidden": (12, 12), "precision": "float32", "learning_rate": 1e-2, "n_step": 1, **settings}
    return DQN(DQNSettings(**chosen), OBSERVATION, ACTION, generators, CPU)


def batch_and_noise(agents: int, step: int, bins: int = 3) -> tuple[Batch, Noise]:
    g = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(agents, BATCH, *shape, generator=g)

    ended = (torch.rand(agents, BATCH, generator=g) < 0.2).float()
    action = torch.randint(0, bins, (agents, BATCH, ACTION), generator=g) * 2 / (bins - 1) - 1
    fields = normal(1, OBSERVATION), action, normal() * 3, ended, normal(OBSERVATION)
    nothing = torch.zeros(agents, BATCH, 0)
    return Batch(*fields, following=fields[-1]), Noise(nothing, nothing, normal())


class NaiveDQN:
    """One agent, transition by transition, with the actions of the grid in a list; shares no line with `rl.dqn`."""

    def __init__(self, network: nn.Sequential, target: nn.Sequential, head: str, bins: int, lr: float) -> None:
        self.network, self.target, self.head, self.bins = network, target, head, bins
        self.levels = [2 * i / (bins - 1) - 1 for i in range(bins)]
        # the first dimension changes fastest
        self.grid = [actions[::-1] for actions in itertools.product(self.levels, repeat=ACTION)]
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)

    def q(self, network: nn.Sequential, state: Tensor, action: tuple[float, ...]) -> Tensor:
        outputs: Tensor = network(state)
        if self.head == "joint":
            return outputs[self.grid.index(action)]
        bins = [self.levels.index(a) for a in action]
        return torch.stack([outputs[j * self.bins + b] for j, b in enumerate(bins)]).mean()

    def greedy(self, state: Tensor) -> tuple[float, ...]:
        """Over the whole grid, also for the decoupled head: its maximum is that of each dimension."""
        return max(self.grid, key=lambda action: float(self.q(self.network, state, action).detach()))

    def update(self, s: Tensor, a: Tensor, r: Tensor, d: Tensor, s2: Tensor, discount: float) -> None:
        losses = []
        for i in range(len(s)):
            with torch.no_grad():
                y = r[i] if d[i] else r[i] + discount * self.q(self.target, s2[i], self.greedy(s2[i]))
            error = (self.q(self.network, s[i], tuple(a[i].tolist())) - y).abs()
            losses.append(0.5 * error**2 if error <= 1 else error - 0.5)
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        self.optimizer.step()


@pytest.mark.parametrize("head", HEADS)
def test_six_updates_as_the_naive_agent_takes_them(head: str) -> None:
    agents = dqn(range(2), head=head, target_period=3)
    naive = [
        NaiveDQN(
            perceptron(agents.q_network.network, k),
            *(perceptron(agents.target_network.network, k), head, 3, agents.settings.learning_rate),
        )
        for k in range(2)
    ]
    for step in range(1, 7):
        batch, noise = batch_and_noise(2, step)
        agents.update(batch, noise)
        for k, agent in enumerate(naive):
            agent.update(
                *(batch.observation[k], batch.action[k], batch.reward[k], batch.terminated[k]),
                *(batch.next_observation[k], agents.settings.discount),
            )
        if step % 3 == 0:
            agents.update_target()
            for agent in naive:
                agent.target.load_state_dict(agent.network.state_dict())
    for k, agent in enumerate(naive):
        for stack, plain in ((agents.q_network, agent.network), (agents.target_network, agent.target)):
            for ours, theirs in zip(perceptron(stack.network, k).parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    state = torch.randn(2, OBSERVATION)
    expected = [agent.greedy(state[k]) for k, agent in enumerate(naive)]
    assert agents.q_network.deterministic(state).tolist() == [list(action) for action in expected]


@pytest.mark.parametrize("settings", [{"head": "joint"}, {"head": "decoupled", "icm": "single", "bins": 2}])
def test_an_agent_among_three_is_the_agent_alone(settings: dict[str, Any]) -> None:
    settings = {**settings, "feature_size": 6, "icm_width": 10}
    together, alone = dqn(range(3), **settings), dqn(range(1, 2), **settings)
    for step in range(10):
        batch, noise = batch_and_noise(3, step, together.settings.bins)
        together.update(batch, noise)
        alone.update(Batch(*(t[1:2] for t in batch)), Noise(*(t[1:2] for t in noise)))
        if step == 5:
            together.update_target()
            alone.update_target()
    own = alone.state_dict()
    for name, tensor in together.state_dict().items():
        per_agent = tensor if tensor.ndim == 0 else tensor[1:2]
        torch.testing.assert_close(per_agent, own[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_network_that_acts_chooses_and_the_target_network_values() -> None:
    """By hand, two heads: the choices are 1 and 0, worth 10 and 3 to the target network."""
    chosen_by = torch.tensor([[[[0.0, 5.0], [2.0, 1.0]]]])
    valued_by = torch.tensor([[[[99.0, 10.0], [3.0, 99.0]]]])
    for ended, expected in ((0.0, 1 + 0.5 * 6.5), (1.0, 1.0)):
        target = double_q_target(torch.tensor([[1.0]]), torch.tensor([[ended]]), chosen_by, valued_by, 0.5)
        assert target.tolist() == [[expected]]
    assert value_of(chosen_by, torch.tensor([[[1, 1]]])).tolist() == [[3.0]]
    loss = huber_loss(torch.tensor([[0.5, -4.0]]), torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([(0.125 + 3.5) / 2]))


@pytest.mark.parametrize(("head", "bins", "dimensions"), [("joint", 3, 3), ("joint", 4, 2), ("decoupled", 5, 3)])
def test_choices_name_the_actions_of_the_grid(head: Any, bins: int, dimensions: int) -> None:
    grid = ActionGrid(dimensions, bins, head)
    actions = torch.tensor(list(itertools.product(np.linspace(-1, 1, bins), repeat=dimensions)), dtype=torch.float32)
    choice = grid.choice(actions)
    assert choice.shape == (len(actions), grid.heads)
    assert len(choice.unique(dim=0)) == len(actions)
    torch.testing.assert_close(grid.actions(choice), actions)
    assert grid.heads * grid.choices == (bins**dimensions if head == "joint" else bins * dimensions)


def test_epsilon_falls_linearly_after_the_random_steps() -> None:
    settings = DQNSettings(random_steps=2, epsilon=0.2, epsilon_steps=4, env_steps=10)
    assert [epsilon_at(step, settings) for step in range(1, 9)] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert epsilon_at(3, DQNSettings(random_steps=2, epsilon=0.2, epsilon_steps=0)) == 0.2


@pytest.mark.parametrize("head", HEADS)
def test_a_share_epsilon_of_the_choices_is_random_and_uniform(head: str) -> None:
    network, draws = dqn(range(200), head=head, hidden=(2,)).q_network, 4000
    observation = torch.zeros(200, OBSERVATION)
    greedy = network.deterministic(observation)
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(20, 200, 2 * network.grid.heads, generator=g)
    assert torch.equal(network.act(observation, drawn[0], 0.0), greedy)
    acted = torch.stack([network.act(observation, noise, 0.3) for noise in drawn])
    assert set(acted.unique().tolist()) == {-1.0, 0.0, 1.0}
    other = (network.grid.choice(acted) != network.grid.choice(greedy)).float().mean((0, 1))
    choices = network.grid.choices
    torch.testing.assert_close(other, torch.full_like(other, 0.3 * (choices - 1) / choices), rtol=0, atol=0.03)
    everything = network.grid.choice(torch.cat([network.act(observation, noise, 1.0) for noise in drawn]))
    counts = torch.bincount(everything[:, 0], minlength=choices) / draws
    torch.testing.assert_close(counts, torch.full((choices,), 1 / choices), rtol=0, atol=0.03)


def test_streams_without_numbers_for_a_policy() -> None:
    """An agent's numbers depend on its seed alone, and there are none that nobody uses."""
    together, alone = (RandomStreams(seeds, 4, 0, CPU, exploration=6) for seeds in (range(3), range(1, 2)))
    exploration, noise = together.noise()
    assert exploration.shape == (3, 6)
    assert noise.action.numel() == noise.next_action.numel() == 0
    ours, own = alone.noise()
    assert torch.equal(ours[0], exploration[1])
    assert torch.equal(own.shuffle[0], noise.shuffle[1])
    assert not torch.equal(exploration[0], exploration[1])


# -- the script --------------------------------------------------------------------------------------------------------

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
