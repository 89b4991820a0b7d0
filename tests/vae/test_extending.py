"""A finished training of a VAE goes on; the evaluation is made anew."""

import dataclasses
from pathlib import Path

import pytest
import torch

from common import cli, data
from common.experiment import Run
from vae import objective
from vae.settings import Settings
from vae.train import train

QUICK = ["--dataset", "digits", "--arch", "fc", "--hidden", "16", "--latent", "3", "--prior", "gaussian12"]
EVERYTHING = ["--initialisation", "mapped", "--mapped-rates", "--ema-decay", "0.9", "--keep-state"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_goes_on_with_everything_or_from_the_weights(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate that ignores the length and the state kept, to what an unbroken run reaches. Without the state, and
    at a rate of next to nothing, the weights stay, also those whose steps are scaled."""
    monkeypatch.setattr("vae.train.triangular", lambda peak: lambda done: 0.5)
    options = cli.parse(Settings, [*QUICK, *EVERYTHING, "--results-dir", str(tmp_path), "--epochs", "1"])
    options = dataclasses.replace(options, keep_state=kept)
    device = torch.device("cpu")
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=device)
    seen = objective.as_seen(dataset, "dynamic")
    run = Run(options, "vae", "short", device)
    short = {name: tensor.clone() for name, tensor in train(run, options, seen).state_dict().items()}
    rate = options.learning_rate if kept else 1e-30
    longer = dataclasses.replace(options, epochs=2, extended_from=run.path, learning_rate=rate)
    ours = train(Run(longer, "vae", "longer", device), longer, seen).state_dict()
    whole = dataclasses.replace(options, epochs=2)
    expected = train(Run(whole, "vae", "whole", device), whole, seen).state_dict() if kept else short
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        if kept:
            assert torch.equal(ours[name], tensor)
        else:
            torch.testing.assert_close(ours[name], tensor)
