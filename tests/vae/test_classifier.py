"""The classifier that judges samples: good enough on real images, and its features those before the ReLU."""

import json
from pathlib import Path

import pytest
import torch

from common import cli
from vae.classifier import Classifier
from vae.settings import Settings
from vae.train import main


@pytest.mark.real_data
def test_classifier_reaches_99_percent_on_mnist(
    real_data_dir: Path, tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also that a run on the real images says so; one epoch of a small VAE."""
    arguments = ["--dataset", "mnist", "--data-dir", str(real_data_dir), "--arch", "fc", "--hidden", "64"]
    short = ["--epochs", "1", "--nll-samples", "1", "--generated", "1000", "--latent", "2"]
    cli.run(main, Settings, [*arguments, *short, "--results-dir", str(tmp_path)])
    metrics = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "metrics.json").read_text())
    assert metrics["dataset"]["stand_in_for"] is None
    assert metrics["dataset"]["images"] == 70_000
    assert metrics["classifier"]["accuracy"] >= 0.99
    assert -250 < metrics["elbo"] < -140


def test_classifier_separates_features_from_head() -> None:
    network = Classifier(10).eval()
    images = torch.rand(4, 1, 28, 28)
    features = network.features(images)
    assert features.shape == (4, 64)
    assert (features < 0).any()  # before the ReLU
    torch.testing.assert_close(network(images), network.head(features.relu()))
