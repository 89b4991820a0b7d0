"""Settings that are refused, runs of other scripts, and failures: what is told, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import cli, progress
from common.errors import RunError, UsageError
from tests.common.test_cli import Settings, preset
from vae.settings import Settings as VAESettings


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


def test_what_pydantic_says_in_its_own_words_is_told_in_plain_ones() -> None:
    with pytest.raises(UsageError, match=r"--run-name \.\./x: only letters, digits, '-', '_' and '\.', and not"):
        cli.parse(Settings, ["--run-name", "../x"])
    with pytest.raises(UsageError, match=r"--hidden \(\): give at least one value"):
        cli.parse(VAESettings, ["--hidden"])


def test_a_key_of_another_script_is_not_taken_for_a_misspelt_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'finetune_epochs' \(of another script\? --help lists those of this one\)"):
        cli.parse(VAESettings, ["--config", preset(tmp_path, "finetune_epochs: 5\n")])
