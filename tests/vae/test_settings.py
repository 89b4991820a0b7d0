"""Settings of the script: bad input in one line, presets that it accepts, and what a model is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common import cli
from vae.priors import kl_divergence
from vae.settings import Settings
from vae.train import main, told_of_further_samples

Refused = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("chosen", "parameters", "told"),
    [
        ({"sample_prior": "own"}, None, None),
        ({"sample_prior": "normal"}, None, "the model's own, N(0, 1): there are none"),  # by its name
        ({"sample_mean": 0.0}, None, "the model's own, N(0, 1): there are none"),
        ({"sample_prior": "gaussian12"}, (1.0, 2.0), "of codes from N(1, 2²), not from the model's prior N(0, 1)"),
        ({"sample_mean": 3.0}, (3.0, 1.0), "of codes from N(3, 1)"),
        ({"sample_prior": "gaussian12", "sample_std": 0.5}, (1.0, 0.5), "of codes from N(1, 0.5²)"),
        ({"prior": "gaussian12", "sample_prior": "normal"}, (0.0, 1.0), "not from the model's prior N(1, 2²)"),
    ],
)
def test_which_prior_the_mismatched_samples_are_from(
    chosen: dict[str, Any], parameters: tuple[float, float] | None, told: str | None
) -> None:
    settings = Settings(**chosen)
    assert settings.mismatched_parameters == parameters
    line = told_of_further_samples(settings)
    assert line is None if told is None else told in str(line)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--latent", "0"], 2, "--latent 0"),
        (["--latent", "100000000000"], 2, "--latent 100000000000"),
        (["--beta", "-1"], 2, "--beta -1"),
        (["--prior-std", "0"], 2, "--prior-std 0"),
        (["--prior", "laplace"], 2, "gaussian12"),
        (["--arch", "transformer"], 2, "conv"),
        (["--likelihood", "poisson"], 2, "dynamic"),
        (["--capacity", "-2"], 2, "--capacity -2"),
        (["--nll-samples", "0"], 2, "--nll-samples 0"),
        (["--kl-warmup-epochs", "9", "--epochs", "3"], 2, "--kl-warmup-epochs 9"),
        (["--hidden", "0"], 2, "--hidden"),
        (["--initialisation", "mapped"], 2, "choose another prior"),
        (["--mapped-rates"], 2, "--mapped-rates needs --initialisation mapped"),
        (["--sample-prior", "laplace"], 2, "gaussian12"),
        (["--sample-std", "0"], 2, "--sample-std 0"),
        (["--prior-mean", "nan"], 2, "--prior-mean"),
        (["--arch", "conv", "--hidden", "7"], 2, "--hidden 7 with --arch conv: it is for --arch fc and has no effect"),
        (["--arch", "deep", "--hidden", "7", "5"], 2, "--hidden 7 5 with --arch deep"),
        (["--arch", "fc", "--channels", "32"], 2, "--channels 32 with --arch fc: it is for --arch conv and has no"),
        (["--arch", "deep", "--channels", "32"], 2, "--channels 32 with --arch deep"),
        (["--prior-std", "2e15"], 2, "--prior-std 2e+15: allowed are 1e-15 to 1e+15"),
        (["--prior-std", "5e-16"], 2, "--prior-std 5e-16: allowed are 1e-15 to 1e+15"),
        (["--prior-mean", "-2e15"], 2, "--prior-mean -2e+15: allowed are -1e+15 to 1e+15"),
        (["--prior-mean", "1", "--prior-std", "1e-7"], 2, "a mean of at most 1e+06 deviations is allowed"),
        (["--sample-std", "2e15"], 2, "--sample-std 2e+15: allowed are 1e-15 to 1e+15"),
        (["--sample-std", "1e-30"], 2, "--sample-std 1e-30: allowed are 1e-15 to 1e+15"),
        (["--sample-mean", "2e15"], 2, "--sample-mean 2e+15: allowed are -1e+15 to 1e+15"),
        (["--sample-mean", "3e6"], 2, "--sample-mean 3e+06 with --sample-std 1: a mean of at most 1e+06 deviations"),
        (
            ["--dataset", "/no/such/folder"],
            2,
            "--dataset /no/such/folder: no such folder; put it back, or start a new run",
        ),
        (["--dataset", "fasion-mnist"], 2, "choose one of auto, mnist, fashion-mnist, kmnist, digits, or a folder"),
        (["--dataset", "mnist", "--resize"], 2, "--resize with --dataset mnist"),
        (["--dataset", "tests"], 1, "tests: no images"),
        (["--prior", "vamp", "--initialisation", "mapped"], 2, "--initialisation mapped with --prior vamp"),
        (["--prior", "vamp", "--prior-mean", "1"], 2, "--prior-mean 1 with --prior vamp"),
        (["--prior", "vamp", "--prior-std", "2"], 2, "--prior-std 2 with --prior vamp"),
        (["--prior", "vamp", "--pseudo-inputs", "0"], 2, "--pseudo-inputs 0"),
        (["--prior", "vamp", "--sample-std", "2"], 2, "--sample-prior normal or gaussian12"),
        (["--pseudo-inputs", "9"], 2, "--pseudo-inputs 9 with --prior normal: needs --prior vamp"),
        (["--objective", "iwae", "--beta", "2"], 2, "--beta 2 with --objective iwae"),
        (["--objective", "iwae", "--capacity", "3"], 2, "--capacity 3 with --objective iwae"),
        (["--objective", "iwae", "--kl-warmup-epochs", "1"], 2, "--kl-warmup-epochs 1 with --objective iwae"),
        (["--objective", "iwae", "--importance-samples", "0"], 2, "--importance-samples 0"),
        (["--importance-samples", "5"], 2, "--importance-samples 5 with --objective elbo: needs --objective iwae"),
        (["--objective", "vimco"], 2, "iwae"),
        (["--beta", "0", "--capacity", "3"], 2, "--capacity 3 with --beta 0"),
        (["--beta", "0", "--kl-warmup-epochs", "1"], 2, "--kl-warmup-epochs 1 with --beta 0"),
        (
            ["--initialisation", "mapped", "--mapped-rates", "--prior-mean", "1"],
            2,
            "--mapped-rates under a prior of deviation 1",
        ),
        (["--elbo-epochs", "2"], 2, "--elbo-epochs 2 with --objective elbo: needs --objective iwae"),
        (["--objective", "iwae", "--elbo-epochs", "9", "--epochs", "9"], 2, "--elbo-epochs 9 with --epochs 9"),
        (["--resume", "tests"], 1, "tests/config.yaml: no such file"),
        (["--dataset", "mnist", "--data-dir", "{damaged}"], 1, "train-images-idx3-ubyte: damaged"),
        (["--results-dir", "README.md"], 1, "README.md"),
    ],
)
def test_bad_input_is_one_line_and_the_right_status(
    arguments: list[str], status: int, told: str, tmp_path: Path, refused: Refused
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (raw / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(bytes(100))
    arguments = [argument.format(damaged=tmp_path) for argument in arguments]
    if "--resume" not in arguments:
        arguments = ["--dataset", "digits", "--results-dir", str(tmp_path), *arguments]
    got, line = refused(main, Settings, arguments)
    assert got == status
    assert told in line


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-15), (0.0, 1e15), (1e15, 1e15), (-1e6, 1.0)])
def test_the_kl_of_every_allowed_prior_is_finite(mean: float, std: float) -> None:
    settings = Settings(prior_mean=mean, prior_std=std)
    settings.check()
    start = torch.zeros(1)
    assert torch.isfinite(kl_divergence(start, start, settings.prior_on(torch.device("cpu")))).all()


def test_every_preset_is_accepted() -> None:
    presets = {path: yaml.safe_load(path.read_text()) for path in Path("configs/vae").glob("*.yaml")}
    presets = {path: values for path, values in presets.items() if "models" not in values}
    assert presets
    for path in presets:
        cli.parse(Settings, ["--config", str(path)]).check()


@pytest.mark.parametrize(
    ("options", "name", "title"),
    [
        ({}, "conv-normal-16", "convolutional VAE, prior N(0, 1), 16 dimensions"),
        ({"prior": "gaussian12", "beta": 4.0}, "conv-beta4-gaussian12-16", None),
        ({"prior_std": 3.0}, "conv-prior0_3-16", None),
        ({"prior": "vamp"}, "conv-vamp-16", "convolutional VAE, prior VampPrior (500 pseudo-inputs), 16 dimensions"),
        (
            {"prior": "vamp", "objective": "iwae", "conditional": True},
            "conv-conditional-iwae5-vamp-16",
            "convolutional conditional IWAE (K = 5), prior VampPrior (500 pseudo-inputs), 16 dimensions",
        ),
    ],
)
def test_names_and_titles_say_what_the_model_is(options: dict[str, Any], name: str, title: str | None) -> None:
    settings = Settings(**options)
    settings.check()
    assert settings.model_name == name
    assert title is None or settings.model_title == title
