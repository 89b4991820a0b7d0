"""Weights & Biases gets what TensorBoard gets; without its package, or without --track, nothing is sent."""

import socket
import time
from pathlib import Path

import pytest
import torch

from common import tracking
from common.cli import RunSettings
from common.errors import UsageError
from common.experiment import Run

CPU = torch.device("cpu")


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--track wandb: the package wandb is missing; pip install -e '\.\[wandb\]'"):
        Run(RunSettings(results_dir=tmp_path, track="wandb"), "test", "name", CPU)
    assert not list(tmp_path.iterdir())
    Run(RunSettings(results_dir=tmp_path), "test", "name", CPU)


def test_without_a_login_it_is_one_line_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(UsageError, match=r"--track wandb: not logged in; call wandb login, or set WANDB_MODE=offline"):
        Run(RunSettings(results_dir=tmp_path, track="wandb"), "test", "name", CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_offline_it_gets_the_scalars_and_a_resumed_run_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    connect = socket.socket.connect

    def at_home(self: socket.socket, address: object) -> None:
        assert isinstance(address, str) or address[0] in ("localhost", "127.0.0.1", "::1")  # type: ignore[index]
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", at_home)
    run = Run(RunSettings(results_dir=tmp_path, track="wandb", run_name="mine"), "test", "name", CPU)
    run.log("net", 1, {"first_loss": 0.5})
    tracking.finish("wandb")  # as if the process ended
    again = Run(RunSettings(resume=run.path, track="wandb"), "test", "name", CPU)
    again.log("net", 2, {"second_loss": 0.25})
    again.finish({"accuracy": 0.75}, ("accuracy",))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))  # by the time in the folder's name
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # the same id in both sittings
    for file, scalar in zip(files, (b"net/first_loss", b"net/second_loss"), strict=True):
        deadline = time.monotonic() + 60  # wandb's own process writes the file
        while scalar not in file.read_bytes():
            assert time.monotonic() < deadline, f"{scalar!r} is not in {file}"
            time.sleep(0.1)
    assert not list(run.path.glob("wandb"))
