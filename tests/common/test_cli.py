"""Settings: who wins, what a resumed run keeps, other names, and the help."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import tyro
import yaml
from annotated_types import Ge, Interval

from common import cli
from common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Settings(cli.RunSettings):
    """A task's settings."""

    smoke: ClassVar[dict[str, Any]] = {"epochs": 1, "dataset": "digits"}
    replaced: ClassVar[dict[str, str]] = {"passes": "epochs", "lr": "rate"}

    dataset: Literal["auto", "digits"] = "auto"
    epochs: Annotated[int, Ge(1)] = 10
    """Passes over the data."""
    rate: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    target: Annotated[float, Ge(0)] | None = None
    flip: bool = True


@dataclasses.dataclass(frozen=True)
class Aliased(cli.RunSettings):
    """Settings with another name for an option on the command line."""

    discount: Annotated[float, Interval(ge=0, lt=1), tyro.conf.arg(aliases=["--gamma"])] = 0.99


def preset(folder: Path, text: str) -> str:
    (folder / "preset.yaml").write_text(text)
    return str(folder / "preset.yaml")


def test_command_line_beats_yaml_beats_default(tmp_path: Path) -> None:
    path = preset(tmp_path, "epochs: 5\nrate: 1e-3\nflip: false\n")
    settings = cli.parse(Settings, ["--config", path, "--epochs", "7"])
    assert (settings.epochs, settings.rate, settings.flip, settings.target) == (7, 1e-3, False, None)


def test_smoke_test_beats_yaml_but_not_the_command_line(tmp_path: Path) -> None:
    path = preset(tmp_path, "epochs: 5\n")
    assert cli.parse(Settings, [f"--config={path}", "--smoke-test"]).epochs == 1
    assert cli.parse(Settings, ["--smoke-test", "--epochs", "2", "--config", path]).epochs == 2


def test_underscores_and_both_spellings_of_a_switch(tmp_path: Path) -> None:
    assert cli.parse(Settings, ["--smoke_test"]).epochs == 1
    path = preset(tmp_path, "flip: false\nsmoke_test: true\nrate: 0.5\n")
    settings = cli.parse(Settings, ["--config", path, "--no-flip", "--smoke-test"])
    assert (settings.flip, settings.epochs, settings.rate) == (False, 1, 0.5)
    assert cli.parse(Settings, ["--config", path, "--flip"]).flip
    assert cli.parse(Settings, ["--config", path]).epochs == 1  # the preset itself asks for the smoke test


def test_written_settings_read_back_the_same(tmp_path: Path) -> None:
    settings = cli.parse(Settings, ["--rate", "0.25", "--target", "3", "--results-dir", "some/where", "--no-flip"])
    path = preset(tmp_path, cli.to_yaml(settings))
    assert dataclasses.replace(cli.parse(Settings, ["--config", path]), config=None) == settings
    names = {f.name for f in dataclasses.fields(Settings)} - {"config", "resume"}
    assert yaml.safe_load(cli.to_yaml(settings)).keys() == names


def test_resume_keeps_the_runs_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(cli.to_yaml(Settings(epochs=4)))
    assert cli.parse(Settings, ["--resume", str(tmp_path)]).epochs == 4
    assert cli.parse(Settings, ["--resume", str(tmp_path), "--data-dir", "elsewhere"]).data_dir == Path("elsewhere")
    with pytest.raises(UsageError, match="--epochs 5 beside --resume: the run was started with 4"):
        cli.parse(Settings, ["--resume", str(tmp_path), "--epochs", "5"])
    with pytest.raises(UsageError, match="--config beside --resume"):
        cli.parse(Settings, ["--resume", str(tmp_path), "--config", "x.yaml"])
    with pytest.raises(UsageError, match="none: no such folder"):
        cli.parse(Settings, ["--resume", str(tmp_path / "none")])
    with pytest.raises(UsageError, match=r"config.yaml: a file; give the run's folder"):
        cli.parse(Settings, ["--resume", str(tmp_path / "config.yaml")])


def test_resume_of_a_smoke_test_keeps_what_it_was_given(tmp_path: Path) -> None:
    begun = cli.parse(Settings, ["--smoke-test", "--epochs", "5"])
    (tmp_path / "config.yaml").write_text(cli.to_yaml(begun))
    for typed in ([], ["--smoke-test"]):
        assert cli.parse(Settings, ["--resume", str(tmp_path), *typed]).epochs == 5
    (tmp_path / "config.yaml").write_text(cli.to_yaml(Settings(epochs=5)))
    with pytest.raises(UsageError, match="--smoke-test True beside --resume"):
        cli.parse(Settings, ["--resume", str(tmp_path), "--smoke-test"])


def test_an_alias_is_the_same_option(tmp_path: Path) -> None:
    assert cli.parse(Aliased, ["--gamma", "0.5"]).discount == 0.5
    path = preset(tmp_path, "discount: 0.9\n")
    assert cli.parse(Aliased, ["--config", path]).discount == 0.9
    assert cli.parse(Aliased, ["--config", path, "--gamma=0.5"]).discount == 0.5
    (tmp_path / "config.yaml").write_text(cli.to_yaml(Aliased(discount=0.9)))
    assert cli.parse(Aliased, ["--resume", str(tmp_path), "--gamma", "0.9"]).discount == 0.9
    with pytest.raises(UsageError, match=r"--discount 0\.5 beside --resume: the run was started with 0\.9"):
        cli.parse(Aliased, ["--resume", str(tmp_path), "--gamma", "0.5"])
    for typed, told in (
        (["--gamma", "2"], "--discount 2.0: "),
        (["--gamma", "x"], "'x' is no number .expected --gamma.--discount "),
    ):
        with pytest.raises(UsageError, match=told):
            cli.parse(Aliased, typed)
    with pytest.raises(UsageError, match="unknown setting 'gamma'"):  # in a mapping, a setting has one name
        cli.from_mapping(Aliased, {"gamma": 0.5})


def test_a_mapping_gives_the_settings_of_a_preset_without_a_command_line() -> None:
    settings = cli.from_mapping(Settings, {"epochs": 3, "rate": "1e-3", "results_dir": "there"})
    assert settings == Settings(epochs=3, rate=1e-3, results_dir=Path("there"))
    assert cli.from_mapping(Settings, {"smoke_test": True}).epochs == 1
    assert cli.from_mapping(Settings, {"smoke_test": True, "epochs": 3}).epochs == 3
    for values, told in (
        ({"epochs": 0}, "arm a: --epochs 0: input should be"),
        ({"epoch": 3}, "arm a: unknown setting 'epoch'"),
        ({"config": "x.yaml"}, "arm a: config belongs on the command line"),
        (
            {"passes": 3, "lr": 1},
            "arm a: has the keys of an older version: passes is now called epochs, lr is now called",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            cli.from_mapping(Settings, values, "arm a")


def test_a_preset_that_moved_is_found_in_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweeps").mkdir()
    now = preset(tmp_path / "sweeps", "epochs: 5\n")
    assert cli.parse(Settings, ["--config", str(tmp_path / "preset.yaml")]).epochs == 5
    assert capsys.readouterr().err == f"{tmp_path / 'preset.yaml'} has moved to {now}\n"


def test_help_is_shown_and_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda settings: None, Settings, ["--help"])
    assert not stop.value.code
    assert "Passes over the data." in capsys.readouterr().out


@pytest.mark.slow
def test_help_shows_the_field_comments() -> None:
    wide = {**os.environ, "COLUMNS": "110"}  # pytest's workers say 80
    command = [sys.executable, "pruning/run.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    assert "Passes over the training split for the dense network." in done.stdout
    assert "--resume" in done.stdout


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_gets_no_error() -> None:
    """`--help | head -1`: the pipe is closed before all is written."""
    code = "from common import cli\nfrom vae.settings import Settings\ncli.run(print, Settings, ['--help'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate()
    assert process.returncode == 141
    assert said == b""
