"""Forward models side by side: what is held out, what is shared, a control in which the stack must win, the script."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli
from common.errors import RunError
from rl.foresight import EVERY, begin, forward_parameters, matched_width, measured, split, train
from rl.forward_models import ForwardModels, main, verdict
from rl.replay import Replay
from rl.settings import Settings

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"icm": "stacked", "stack": 2, "feature_size": 4, "icm_width": 32, "batch_size": 64}


def gliding(episodes: int, agents: int = 2, length: int = 60) -> Replay:
    """Returns a replay of points with a steady velocity that the observation, a position on a circle, hides."""
    generator = torch.Generator().manual_seed(0)
    replay = Replay(agents, episodes * length, 2, 1, CPU)
    for _ in range(episodes):
        angle, velocity = (torch.rand(agents, generator=generator) * 6 - 3 for _ in range(2))
        for t in range(length):
            before, angle = angle, angle + 0.2 * velocity
            states = [torch.stack([x.cos(), x.sin()], dim=1) for x in (before, angle)]
            action = torch.rand(agents, 1, generator=generator)
            ended = torch.full((agents,), t == length - 1)
            replay.add(states[0], states[1], action, torch.zeros(agents), ended.float(), ended)
    return replay


def test_every_fifth_episode_is_held_out_and_nothing_of_it_is_learnt() -> None:
    replay = gliding(11)
    learnt, held_out = split(replay, range(2))
    assert held_out.tolist() == [[*range(240, 300), *range(540, 600)]] * 2  # episodes 5 and 10
    for row in learnt:
        assert sorted([*row.tolist(), *held_out[0].tolist()]) == list(range(660))
    with pytest.raises(RunError, match="seed 7 has 60 held-out transitions, fewer than 100; more --env-steps"):
        split(gliding(EVERY, 1), [7])


def test_a_ring_that_has_wrapped_is_split_by_its_own_episodes() -> None:
    """The rest of the episode that is half forgotten is learnt from, the fifth whole one after it is held out."""
    replay, long = gliding(1), gliding(11)
    replay = Replay(2, 400, 2, 1, CPU)
    for t in range(660):
        batch = long.sample(torch.full((2, 1), t))
        ended = torch.full((2,), t % 60 == 59)
        fields = (batch.observation, batch.next_observation, batch.action)
        replay.add(*(field[:, 0] for field in fields), batch.reward[:, 0], batch.terminated[:, 0], ended)
    with pytest.raises(RunError, match="seed 0 has 60 held-out transitions"):
        split(replay, range(2))  # episodes 6 to 11, of which the tenth is the fifth


@pytest.mark.slow
def test_a_stack_foresees_what_one_frame_cannot() -> None:
    """The positive control: where velocities are hidden, two frames foresee more, with φ their own and shared."""
    settings, replay = Settings(num_seeds=2, icm_learning_rate=4e-3, **SMALL), gliding(20)
    learnt, held_out = split(replay, settings.seeds)
    models = {space: begin(settings, replay, shared=space == "shared") for space in ("own", "shared")}
    frozen = {name: module.encoder.weights[0].clone() for name, module in models["shared"].modules.items()}
    own = models["own"].modules["single"].encoder.weights[0].detach().clone()
    train(models, replay, learnt, settings, 250)
    for name, module in models["shared"].modules.items():
        assert torch.equal(module.encoder.weights[0], frozen["single"]), name
    assert not torch.equal(models["own"].modules["single"].encoder.weights[0], own)
    record = measured(models, replay.sample(held_out, 2))
    for r2 in record["forward_r2"].values():
        for seed in range(2):
            assert r2["stacked"][seed] > r2["matched"][seed] + 0.02
    for ranks in record["rank_correlation"].values():
        for seed in range(2):
            assert ranks["single again − single"][seed] > ranks["stacked − single"][seed]


def test_the_matched_model_has_as_many_parameters_as_the_stacked_one() -> None:
    settings = Settings(icm="stacked")
    assert matched_width(settings, 3) == 309  # that of configs/rl/matched.yaml
    modules = begin(settings, Replay(1, 1, 11, 3, CPU), shared=False).modules
    sizes = {name: forward_parameters(module) for name, module in modules.items()}
    assert sizes == {"single": 8_736, "single again": 8_736, "matched": 21_044, "stacked": 21_024}


def test_the_verdict_is_printed_either_way() -> None:
    for correlation, told in ((0.95, "rank states alike (0.95 > 0.9): little can follow"), (0.7, "do not rank")):
        ranks = {"stacked − single": [correlation] * 5, "single again − single": [0.97] * 5}
        sentence = verdict({"rank_correlation": {"own": ranks}})
        assert told in sentence
        assert "agree to 0.97" in sentence


def test_of_a_kept_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "replay").mkdir(parents=True)
    settings = Settings(env_id="Pendulum-v1", num_seeds=2, env_steps=700, random_steps=1, batch_size=8, icm_width=8)
    (run / "config.yaml").write_text(cli.to_yaml(settings))
    source, replay = gliding(11), Replay(2, 700, 3, 1, CPU)
    for t in range(660):
        batch = source.sample(torch.full((2, 1), t))
        states = [torch.cat([s[:, 0], s[:, 0, :1]], dim=1) for s in (batch.observation, batch.next_observation)]
        ended = torch.full((2,), t % 60 == 59)
        replay.add(*states, batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0], ended)
    replay.save_segment(run / "checkpoints" / "replay", 0)
    main(ForwardModels(run=run, updates=2, output=tmp_path / "out"))
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (record["transitions"], record["held_out"], record["seeds"]) == (660, 120, [0, 1])
    assert "| stacked − single |" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.slow
def test_of_a_replay_that_it_collects(tmp_path: Path) -> None:
    """Random actions, then SAC; with velocities hidden the models see Hopper's five positions."""
    out = tmp_path / "out"
    steps = ["--env-steps", "640", "--random-steps", "630", "--num-seeds", "2", "--updates", "2"]
    cli.command(main, ForwardModels, [*steps, "--icm-observation", "positions", "--output", str(out)])
    record = json.loads((out / "metrics.json").read_text())
    assert record["icm_observation"] == "positions"
    assert len(record["forward_r2"]["own"]["stacked"]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--stack", "1"], 2, "--stack 1"),
        (["--env-id", "Pendulum-v1", "--icm-observation", "positions"], 2, "known for Hopper"),
        (["--run", "results/none"], 2, "results/none: no such folder"),
        (["--run", "tests"], 1, "tests/config.yaml: no such file"),
        (["--env-steps", "40", "--random-steps", "40"], 1, "more --env-steps"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], status: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.command(main, ForwardModels, [*arguments, "--output", str(tmp_path / "out")])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert (stop.value.code, told in line) == (status, True)
    assert not (tmp_path / "out").exists()
