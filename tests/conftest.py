"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

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
