"""Fixtures that several test files share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli
from pruning.vgg import VGG11

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder with the real data sets, or a skip."""
    for folder in (os.environ.get("DATA_DIR"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "MNIST" / "raw").is_dir():
            return Path(folder)
    pytest.skip("no real data: set DATA_DIR")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def network() -> VGG11:
    """A VGG11-BN with batch-norm statistics as after some training, so that every layer carries signal."""
    torch.manual_seed(0)
    model = VGG11()
    model(torch.randn(64, 3, 32, 32))
    return model.eval()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a script's `main` on a command line that must fail; returns its exit status and its one line."""

    def run(main: Any, settings: Any, arguments: Sequence[str]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.run(main, settings, list(arguments))
        (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return int(str(stop.value.code)), error

    return run
