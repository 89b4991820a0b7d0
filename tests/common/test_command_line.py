"""What tyro finds wrong with a command line, in one line."""

import contextlib

import pytest
import tyro

from common import cli, command_line
from common.errors import UsageError
from tests.common.test_cli import Settings


def test_a_misspelt_option_is_told_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"unrecognized options: --epoch 3 \(did you mean --epochs\?\); see --help"):
        cli.parse(Settings, ["--epoch", "3"])


def test_tyros_own_message_stands_in_where_its_hook_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line._on_parse_error is tyro._errors.on_parse_error  # the installed tyro has it
    monkeypatch.setattr(command_line, "_on_parse_error", lambda hook: contextlib.nullcontext())
    with pytest.raises(SystemExit) as stop:
        cli.parse(Settings, ["--epochs", "x"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err
