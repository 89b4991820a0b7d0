"""Settings of the script: their usual names, bad input in one line, and presets and sweeps that it accepts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common import cli
from common.sweep.file import groups_of, read, seeds_of
from rl.dqn_settings import kind_of
from rl.settings import Settings
from rl.train_sac_icm import main

Refused = Callable[..., tuple[int, str]]


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
        for arm in (arm for group in groups_of(file, smoke_test=True) for arm in group):
            cli.from_mapping(kind_of(arm.settings), arm.settings).check()
