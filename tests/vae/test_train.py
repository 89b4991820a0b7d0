"""The command as a user types it: the whole experiment, a crash in the middle, and damaged files."""

import csv
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common import cli, data
from common.files import load_weights, save_weights
from tests.vae.runs import QUICK, metrics_of, settings_of
from vae import bounds, classifier, objective, plane, samplers
from vae.settings import Settings
from vae.train import generate, initial_model, main

Refused = Callable[..., tuple[int, str]]
Killed = Callable[..., Path]
Unchanged = Callable[[Any, Any, Path], None]
COMMAND = [sys.executable, "vae/train.py"]


def train(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """The run folder of the whole experiment at its smallest: one epoch of a small β-VAE, one of the classifier."""
    folder = tmp_path_factory.mktemp("results")
    short = [*QUICK, "--latent", "2", "--nll-samples", "3", "--prior", "gaussian12", "--beta", "3"]
    short += ["--sample-mean", "9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "EPOCHS", 1)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # no other test shall find it
        cli.run(main, Settings, [*short, "--run-name", "quick", "--results-dir", str(folder)])
    return folder / "vae" / "quick"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """The run folder of one smoke test, of a β-VAE under N(1, 2²)."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--prior", "gaussian12", "--beta", "3", "--kl-warmup-epochs", "2", "--run-name", "smoke"]
    done = train("--smoke-test", *arguments, "--results-dir", str(folder))
    assert done.stdout.splitlines()[-1] == str(folder / "vae" / "smoke")
    assert "STAND-IN" in done.stderr
    return folder / "vae" / "smoke"


KEYS = {
    *("dataset", "device", "torch", "seconds", "git_commit", "peak_memory_bytes"),
    *("elbo", "reconstruction", "kl", "nll", "nll_samples", "fid", "density", "coverage"),
    *("arch", "prior", "prior_mean", "prior_std", "latent", "beta", "images_per_second"),
}


def test_the_smallest_run_writes_what_the_contract_says(quick: Path) -> None:
    metrics = metrics_of(quick)
    assert metrics.keys() >= KEYS
    expected = {"arch": "fc", "prior": "gaussian12", "prior_mean": 1, "prior_std": 2, "latent": 2, "beta": 3}
    assert metrics | expected == metrics
    assert metrics["elbo"] == pytest.approx(-metrics["reconstruction"] - metrics["kl"])
    assert metrics["fid"] == metrics["quality"]["prior samples"]["fid"]
    assert {p.stem for p in (quick / "figures").iterdir()} == {
        *("training", "reconstructions", "samples_prior", "samples_mismatched", "samples_mixture", "latent"),
        *("manifold", "interpolations", "quality", "early_look"),
    }
    shown = plane.read(quick / plane.FILE)
    assert (shown.latent, shown.prior_mean, shown.prior_std, shown.copied) == (2, 1, 2, False)
    assert metrics["sample_prior"] == {"mean": 9, "std": 2}
    assert metrics["quality"]["mismatched samples"] != metrics["quality"]["prior samples"]
    (row,) = (row for row in csv.DictReader((quick / "history.csv").open()) if row["stage"] == "vae")
    assert float(row["loss/train"]) == pytest.approx(float(row["reconstruction/train"]) + 3 * float(row["kl/train"]))


def test_mismatched_samples_are_of_the_same_draws(quick: Path) -> None:
    """Codes of N(9, 2²), where the model's own are of N(1, 2²): moved by 8, and decoded by the same model."""
    settings = settings_of(quick)
    model = initial_model(settings, classes=10)
    model.load_state_dict(load_weights(quick / "checkpoints" / "vae.safetensors"))
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    mixture = load_weights(quick / "checkpoints" / "mixture.safetensors")
    images = generate(settings, model.eval(), mixture, dataset.train.labels)
    assert list(images) == ["prior samples", "mismatched samples", "mixture samples"]
    codes = samplers.prior_codes(settings.prior_on(torch.device("cpu")), settings.generated, 2, settings.seed)
    torch.testing.assert_close(images["prior samples"], bounds.decoded(model, codes))
    torch.testing.assert_close(images["mismatched samples"], bounds.decoded(model, codes + 8))


@pytest.mark.slow
def test_writes_what_the_contract_says(smoke: Path) -> None:
    metrics = metrics_of(smoke)
    assert metrics.keys() >= KEYS
    expected = {"arch": "conv", "prior": "gaussian12", "prior_mean": 1, "prior_std": 2, "latent": 16, "beta": 3}
    assert metrics | expected == metrics
    assert metrics["dataset"] | {"name": "digits", "stand_in_for": "mnist", "images": 1797} == metrics["dataset"]
    assert {p.stem for p in (smoke / "figures").iterdir()} == {
        *("training", "reconstructions", "samples_prior", "samples_mixture", "latent", "traversals"),
        *("interpolations", "quality", "early_look"),
    }
    assert list(smoke.glob("events.out.tfevents.*"))
    shown = plane.read(smoke / plane.FILE)
    assert (shown.latent, len(shown.dimensions), shown.copied) == (16, 4, True)
    assert 0 < shown.error < 0.05
    rows = list(csv.DictReader((smoke / "history.csv").open()))
    assert [row["stage"] for row in rows][:8] == ["vae"] * 8
    assert float(rows[7]["elbo/validation"]) > float(rows[0]["elbo/validation"])


@pytest.mark.slow
def test_numbers_can_be_true(smoke: Path) -> None:
    metrics = metrics_of(smoke)
    assert metrics["elbo"] == pytest.approx(-metrics["reconstruction"] - metrics["kl"])
    assert metrics["nll"] < -metrics["elbo"]  # the bound over many codes is the tighter one
    assert metrics["nll"] > 100
    rows = metrics["quality"]
    assert metrics["fid"] == rows["prior samples"]["fid"]
    assert rows["real training images"]["fid"] < rows["prior samples"]["fid"] < rows["uniform noise"]["fid"]
    assert rows["real training images"]["coverage"] > 0.8
    assert rows["uniform noise"]["coverage"] == 0
    for row in rows.values():
        assert sum(row["classes"]) == pytest.approx(1, abs=0.002)
        assert 0.1 <= row["confidence"] <= 1
    assert metrics["classifier"]["accuracy"] > 0.9


@pytest.mark.slow
def test_evaluated_at_beta_1_whatever_was_trained(smoke: Path) -> None:
    """The saved model's ELBO, computed here without any β, is the one that metrics.json has for the β-VAE."""
    settings, device = settings_of(smoke), torch.device("cpu")
    assert settings.beta == 3
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=device)
    model = initial_model(settings, classes=10)
    model.load_state_dict(load_weights(smoke / "checkpoints" / "vae.safetensors"))
    test = objective.as_seen(dataset, settings.likelihood).test.images
    means, deviations = bounds.posterior_means(model.eval(), test)
    prior = settings.prior_on(device)
    posterior = torch.distributions.Normal(means, deviations)
    kl = torch.distributions.kl_divergence(posterior, prior.expand(means.shape)).sum(1).mean().item()
    metrics = metrics_of(smoke)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    codes = posterior.sample((50,))
    x = objective.pixels(test)
    errors = [-objective.log_likelihood(model, model.decode(c), x).mean().item() for c in codes]
    assert metrics["elbo"] == pytest.approx(-sum(errors) / 50 - kl, abs=0.5)


@pytest.mark.slow
def test_warm_up_and_beta_reach_the_loss(smoke: Path) -> None:
    rows = [row for row in csv.DictReader((smoke / "history.csv").open()) if row["stage"] == "vae"]
    values = [[float(row[f"{n}/train"]) for n in ("loss", "reconstruction", "kl")] for row in rows]
    weights = [(loss - reconstruction) / kl for loss, reconstruction, kl in values]
    assert 0 < weights[0] < weights[1] < 3  # means over an epoch in which it rises from 0 to 1½, then to 3
    assert weights[2:] == pytest.approx([3] * 6, rel=1e-3)


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_weights(own_cache: None, tmp_path: Path, killed: Killed) -> None:
    arguments = [*QUICK, "--epochs", "10", "--latent", "2", "--nll-samples", "3", "--results-dir", str(tmp_path)]
    run = killed([*COMMAND, *arguments], tmp_path, "vae.state.pt", later=0)
    assert not (run / "checkpoints" / "vae.safetensors").exists()
    done = train("--resume", str(run))
    assert "going on after epoch" in done.stderr
    cli.run(main, Settings, [*arguments, "--run-name", "whole"])
    whole = tmp_path / "vae" / "whole"
    ours, unbroken = (load_weights(r / "checkpoints" / "vae.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[key], tensor) for key, tensor in unbroken.items())
    assert (run / plane.FILE).read_bytes() == (whole / plane.FILE).read_bytes()
    mine, theirs = metrics_of(run), metrics_of(whole)
    for key in ("elbo", "nll", "fid", "coverage", "classifier"):
        assert mine[key] == theirs[key]


def test_resuming_a_complete_run_changes_nothing(quick: Path, unchanged_by_resume: Unchanged) -> None:
    unchanged_by_resume(main, Settings, quick)


@pytest.mark.parametrize("file", ["vae", "classifier"])
def test_another_networks_file_is_told(quick: Path, tmp_path: Path, file: str, refused: Refused) -> None:
    shutil.copytree(quick, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    save_weights(tmp_path / "run" / "checkpoints" / f"{file}.safetensors", {"x": torch.zeros(1)})
    _, line = refused(main, Settings, ["--resume", str(tmp_path / "run")])
    assert f"{file}.safetensors: not" in line


@pytest.mark.slow
def test_two_processes_on_one_run_are_refused(quick: Path, tmp_path: Path) -> None:
    shutil.copytree(quick, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with (tmp_path / "run" / ".lock").open("a") as holder:
        fcntl.lockf(holder, fcntl.LOCK_EX)
        done = train("--resume", str(tmp_path / "run"), check=False)
    assert done.returncode == 1
    assert "another process is at work on this run" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("content", ['{"elbo', "[]"])
def test_damaged_metrics_are_not_taken_for_a_finished_run(
    content: str, quick: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(quick, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(content)
    status, line = refused(main, Settings, ["--resume", str(tmp_path / "run")])
    assert status == 1
    assert "metrics.json: damaged" in line


@pytest.mark.slow
def test_the_plain_formulas_train_the_same_model(own_cache: None, tmp_path: Path) -> None:
    """A run without a fast twin: the same first epoch to rounding, which training then amplifies."""
    arguments = ["--dataset", "digits", "--channels", "8", "--epochs", "2", "--batch-size", "32", "--generated", "100"]
    arguments += ["--latent", "1", "--nll-samples", "3", "--results-dir", str(tmp_path)]
    train(*arguments, "--run-name", "plain", env={**os.environ, "TRILAB_PLAIN": "1"})
    cli.run(main, Settings, [*arguments, "--run-name", "fast"])
    plain, fast = tmp_path / "vae" / "plain", tmp_path / "vae" / "fast"
    first_rows = [next(csv.DictReader((run / "history.csv").open())) for run in (plain, fast)]
    for key in ("loss/train", "reconstruction/train", "kl/train", "elbo/validation"):
        assert float(first_rows[0][key]) == pytest.approx(float(first_rows[1][key]), rel=0.01)
    weights = [load_weights(run / "checkpoints" / "vae.safetensors") for run in (plain, fast)]
    assert weights[0].keys() == weights[1].keys()
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])  # the switch was on
    assert metrics_of(plain)["elbo"] == pytest.approx(metrics_of(fast)["elbo"], rel=0.03)


@pytest.mark.slow
def test_a_conditional_model_draws_the_class_it_is_asked_for(own_cache: None, tmp_path: Path) -> None:
    arguments = ["--smoke-test", "--arch", "fc", "--conditional", "--run-name", "asked"]
    train(*arguments, "--results-dir", str(tmp_path))
    assert metrics_of(tmp_path / "vae" / "asked")["class_agreement"] > 0.5  # chance: 0.1; seeds: 0.75 to 0.89


@pytest.mark.slow
def test_a_conditional_model_of_a_small_folder(own_cache: None, tmp_path: Path) -> None:
    for number in range(120):  # so that fewer than sixteen images are held out
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (28, 28), dtype=torch.uint8).numpy()).save(folder / f"{number}.png")
    quick = ["--arch", "fc", "--epochs", "1", "--nll-samples", "2", "--generated", "100", "--run-name", "small"]
    train("--dataset", str(tmp_path / "images"), "--conditional", *quick, "--results-dir", str(tmp_path))
    assert metrics_of(tmp_path / "vae" / "small")["dataset"]["validation"] < 16
