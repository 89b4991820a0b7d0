"""Settings: who wins, what is refused, and how it is told."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import tyro
import yaml
from annotated_types import Ge, Interval

from common import cli, progress
from common.errors import RunError, UsageError
from vae.settings import Settings as VAESettings


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs", "0"], ["--epochs", "0", "greater than or equal to 1"]),
        (["--epochs", "x"], ["--epochs", "x", "INT"]),
        (["--epochs"], ["--epochs"]),
        (["--rate", "1.0"], ["--rate", "1.0", "less than 1"]),
        (["--rate", "nan"], ["--rate", "nan"]),
        (["--target", "-1"], ["--target", "-1"]),
        (["--dataset", "imagenet"], ["--dataset", "imagenet", "digits"]),
        (["--rate", "inf"], ["--rate", "inf"]),
        (["--threads", "100000000000"], ["--threads"]),
        (["--run-name", "../../x"], ["--run-name", "../../x"]),
        (["--seed", "-3"], ["--seed", "-3"]),
        (["--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["--epoch", "3"], ["--epoch"]),
        (["--nonsense"], ["--nonsense"]),
        (["stray"], ["stray"]),
        (["--config"], ["--config"]),
        (["--config", "no/such.yaml"], ["--config no/such.yaml", "no such file"]),
        (["--config", "configs"], ["--config configs: a folder; give a YAML file"]),
    ],
)
def test_bad_command_lines_are_told_in_one_line(
    arguments: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda settings: None, Settings, arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "╭" not in message
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs: 0", "--epochs 0"),
        ("epochs: many", "--epochs many"),
        ("epoch: 3", "unknown setting 'epoch'"),
        ("dataset: imagenet", "--dataset imagenet"),
        ("- a\n- b", "holds no settings"),
        ("", "holds no settings"),
        ("epochs: [1", "cannot be read as YAML"),
        ("seed: 2024-13-45", "cannot be read as YAML"),
        ("epochs: " + "[" * 5000, "cannot be read as YAML"),
        ("script: pruning/run.py\narms: {a: {}}", "run it: python -m common.sweep"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nepochs: &c [*c]", "cannot be read as YAML"),
        ("resume: somewhere", "resume belongs on the command line"),
    ],
)
def test_bad_presets_are_usage_errors(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("[", r"\[")):
        cli.parse(Settings, ["--config", preset(tmp_path, text)])


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


@pytest.mark.parametrize("option", ["--resume", "--extend"])
def test_a_run_of_another_task_is_called_that(
    option: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    progress.write(tmp_path, {"task": "rl", "seconds": 0, "history_rows": 0, "git_commit": None})
    (tmp_path / "config.yaml").write_text("icm: stacked\n")
    status, line = refused(lambda settings: None, VAESettings, [option, str(tmp_path)])
    assert status == 1
    assert line == f"error: {tmp_path}: a run of rl, not of vae"


@pytest.mark.parametrize("option", ["--resume", "--extend"])
def test_a_run_of_another_script_of_the_task_is_called_that(
    option: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "config.yaml").write_text("script: vae/train.py\n")
    status, line = refused(lambda settings: None, VAESettings, [option, str(tmp_path)])
    assert status == 1
    assert line.startswith(f"error: {tmp_path}: its settings are not those of this script (unknown setting 'script'")


def failing(error: BaseException) -> Any:
    def main(settings: Settings) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (RunError("the loss is nan"), 1, "the loss is nan"),
        (UsageError("--sparsity 2"), 2, "--sparsity 2"),
        (OSError(28, "No space left on device", "results/x"), 1, "results/x: No space left on device"),
        (PermissionError(13, "Permission denied", "results"), 1, "results: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted; "),
    ],
)
def test_expected_failures_are_one_line(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(failing(error), Settings, [])
    assert stop.value.code == status
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(failing(ZeroDivisionError()), Settings, [])


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


def test_what_pydantic_says_in_its_own_words_is_told_in_plain_ones() -> None:
    with pytest.raises(UsageError, match=r"--run-name \.\./x: only letters, digits, '-', '_' and '\.', and not"):
        cli.parse(Settings, ["--run-name", "../x"])
    with pytest.raises(UsageError, match=r"--hidden \(\): give at least one value"):
        cli.parse(VAESettings, ["--hidden"])


def test_a_key_of_another_script_is_not_taken_for_a_misspelt_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'finetune_epochs' \(of another script\? --help lists those of this one\)"):
        cli.parse(VAESettings, ["--config", preset(tmp_path, "finetune_epochs: 5\n")])


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
