"""The training of a model: every choice, its start, its statistics, either bound, and a stop between two epochs."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli, data, experiment
from common.experiment import Run
from common.plotting import png_bytes
from tests.vae.runs import QUICK, metrics_of, settings_of
from vae import distil, objective
from vae.priors import mapped_to
from vae.settings import Settings
from vae.train import initial_model, main
from vae.train import train as train_model

Refused = Callable[..., tuple[int, str]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--latent", "2", "--prior", "gaussian12"],
        ["--latent", "1"],
        ["--likelihood", "gaussian", "--latent", "3"],
        ["--likelihood", "bernoulli", "--prior-mean", "-1", "--prior-std", "0.5"],
        ["--likelihood", "static", "--beta", "5", "--capacity", "4"],
        ["--initialisation", "mapped", "--prior", "gaussian12", "--mapped-rates", "--ema-decay", "0.9"],
        ["--arch", "conv", "--channels", "8", "--ema-decay", "0.9", "--hidden", "512", "256"],
        ["--latent", "2", "--prior", "vamp", "--pseudo-inputs", "20", "--sample-prior", "normal"],
        ["--latent", "1", "--prior", "vamp", "--beta", "2", "--likelihood", "gaussian"],
        ["--latent", "3", "--conditional", "--prior", "gaussian12", "--initialisation", "mapped", "--mapped-rates"],
        ["--latent", "2", "--conditional", "--prior", "vamp", "--objective", "iwae", "--ema-decay", "0.9"],
        ["--objective", "iwae", "--arch", "conv", "--channels", "8", "--hidden", "512", "256", "--conditional"],
    ],
)
def test_every_choice_runs_to_the_end(
    arguments: list[str],
    own_cache: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distil, "STEPS", 10)
    monkeypatch.setattr(experiment, "png_bytes", functools.partial(png_bytes, dpi=30))
    cli.run(main, Settings, [*QUICK, *arguments, "--results-dir", str(tmp_path), "--nll-samples", "3"])
    run = Path(capsys.readouterr().out.splitlines()[-1])
    metrics, settings = metrics_of(run), settings_of(run)
    assert (metrics["prior_mean"], metrics["prior_std"]) == (settings.prior_parameters or (None, None))
    assert (run / "figures" / "samples_by_class.png").exists() == settings.conditional == ("class_agreement" in metrics)
    assert (run / "figures" / "manifold.png").exists() == (settings.latent == 2)
    assert (run / "figures" / "traversals.png").exists() == (settings.latent != 2)


def test_mapped_start_is_the_plain_start_under_the_standard_prior() -> None:
    plain = initial_model(Settings(prior="normal", arch="fc", latent=3, seed=4), classes=10)
    settings = Settings(prior="gaussian12", arch="fc", latent=3, seed=4, initialisation="mapped")
    expected = mapped_to(plain.state_dict(), settings.prior_on(torch.device("cpu")))
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in initial_model(settings, classes=10).state_dict().items()
    )


@pytest.mark.slow
def test_batch_norm_sees_training_images_alone(tmp_path: Path) -> None:
    """Validation and the images of an early look must not move the statistics that the model is saved with."""
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    few = dataclasses.replace(dataset, train=dataset.train.head(25), validation=dataset.validation.head(20))
    options = Settings(arch="deep", epochs=1, batch_size=10, results_dir=tmp_path)
    weights = train_weights(Run(options, "vae", "deep", torch.device("cpu")), options, few)
    counts = [int(tensor) for name, tensor in weights.items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {3}  # 25 images: two whole batches, and what is left over


@pytest.mark.parametrize(
    "arguments",
    [
        ["--likelihood", "gaussian", "--learning-rate", "1e6"],
        ["--objective", "iwae", "--learning-rate", "1e6"],
        ["--prior", "vamp", "--pseudo-inputs", "20", "--learning-rate", "1e6"],
    ],
)
def test_whatever_diverges_is_told_with_its_term_and_step(
    arguments: list[str], tmp_path: Path, refused: Refused
) -> None:
    given = [*QUICK, "--batch-size", "32", "--results-dir", str(tmp_path), *arguments]
    status, line = refused(main, Settings, given)
    assert status == 1
    assert re.search(r"(kl|reconstruction|loss|gradient).* of step \d+", line)
    assert "a lower learning rate" in line


@pytest.mark.slow
def test_weights_far_from_the_prior_end_in_a_run_without_a_plane(
    own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--latent", "4", "--batch-size", "32", "--learning-rate", "100", "--epochs", "2", "--nll-samples", "3"]
    cli.run(main, Settings, [*QUICK, *given, "--results-dir", str(tmp_path)])
    captured = capsys.readouterr()
    run = Path(captured.out.splitlines()[-1])
    assert metrics_of(run)["active_units"] == 0
    assert not (run / "plane.json").exists()
    assert "the report page will not show the decoder: a number is not finite" in captured.err
    assert "Try a lower --learning-rate or more --epochs" in captured.err


def test_a_rate_that_diverges_is_told(tmp_path: Path, refused: Refused) -> None:
    _, line = refused(main, Settings, [*QUICK, "--learning-rate", "1e6", "--results-dir", str(tmp_path)])
    assert "lower learning rate" in line


EVERYTHING = ["--prior", "vamp", "--pseudo-inputs", "30", "--objective", "iwae", "--importance-samples", "2"]


def test_resume_after_an_epoch_gives_the_weights_of_an_unbroken_run(
    own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pseudo-inputs, their classes, the drawn codes and the moving average all go on where they were."""
    arguments = [*QUICK, "--latent", "3", "--epochs", "2", *EVERYTHING, "--conditional", "--ema-decay", "0.9"]
    options = cli.parse(Settings, [*arguments, "--results-dir", str(tmp_path)])
    device = torch.device("cpu")
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=device)
    seen = objective.as_seen(dataset, "dynamic")
    unbroken = train_weights(Run(options, "vae", "unbroken", device), options, seen)
    log = Run.log

    def stopped_before_epoch_2(self: Run, stage: str, step: int, scalars: Any) -> None:
        if step == 2:
            raise KeyboardInterrupt
        log(self, stage, step, scalars)

    broken = Run(options, "vae", "broken", device)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stopped_before_epoch_2)
        with pytest.raises(KeyboardInterrupt):
            train_weights(broken, options, seen)
    assert (broken.checkpoints / "vae.state.pt").exists()
    assert not (broken.checkpoints / "vae.safetensors").exists()
    broken._lock_file.close()
    resumed = Run(dataclasses.replace(options, resume=broken.path), "vae", "", device)
    weights = train_weights(resumed, options, seen)
    assert weights.keys() >= {"pseudo_inputs", "pseudo_labels"}
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in weights.items())
    start = initial_model(options, classes=10).state_dict()["pseudo_inputs"]
    assert not torch.allclose(weights["pseudo_inputs"], start)


def test_epochs_on_the_elbo_come_before_those_on_the_importance_weighted_bound(tmp_path: Path) -> None:
    arguments = [*QUICK, "--latent", "3", "--prior", "vamp", "--pseudo-inputs", "9", "--objective", "iwae"]
    options = cli.parse(Settings, [*arguments, "--epochs", "2", "--elbo-epochs", "1", "--results-dir", str(tmp_path)])
    device = torch.device("cpu")
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=device)
    run = Run(options, "vae", "both", device)
    train_model(run, options, objective.as_seen(dataset, "dynamic"))
    history = run.history("vae")
    first, second = zip(*(history[f"{name}/train"] for name in ("loss", "reconstruction", "kl")), strict=True)
    assert first[0] == pytest.approx(first[1] + first[2], rel=1e-6)
    assert second[0] < second[1] + second[2] - 1e-3  # Jensen


def train_weights(run: Run, settings: Settings, seen: data.Dataset) -> dict[str, torch.Tensor]:
    return train_model(run, settings, seen).state_dict()
