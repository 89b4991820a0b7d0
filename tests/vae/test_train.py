"""The command as a user types it: the whole experiment, a crash in the middle, and bad input."""

import csv
import dataclasses
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common import cli, data, experiment
from common.experiment import Run
from common.files import load_weights, save_weights
from common.plotting import png_bytes
from tests.vae.runs import metrics_of, settings_of
from vae import bounds, classifier, distil, objective, plane, samplers
from vae.priors import kl_divergence, mapped_to
from vae.settings import Settings
from vae.train import generate, initial_model, main, told_of_further_samples
from vae.train import train as train_model

Refused = Callable[..., tuple[int, str]]
Killed = Callable[..., Path]
Unchanged = Callable[[Any, Any, Path], None]
COMMAND = [sys.executable, "vae/train.py"]
QUICK = ["--dataset", "digits", "--arch", "fc", "--hidden", "32", "--epochs", "1", "--generated", "100"]


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
        (["--prior-std", "2e18"], 2, "--prior-std 2e+18: allowed are 1e-18 to 1e+18"),
        (["--prior-std", "5e-19"], 2, "--prior-std 5e-19: allowed are 1e-18 to 1e+18"),
        (["--prior-mean", "-2e18"], 2, "--prior-mean -2e+18: allowed are -1e+18 to 1e+18"),
        (["--prior-mean", "1", "--prior-std", "1e-7"], 2, "a mean of at most 1e+06 deviations is allowed"),
        (["--sample-std", "2e18"], 2, "--sample-std 2e+18: allowed are 1e-18 to 1e+18"),
        (["--sample-std", "1e-30"], 2, "--sample-std 1e-30: allowed are 1e-18 to 1e+18"),
        (["--sample-mean", "2e18"], 2, "--sample-mean 2e+18: allowed are -1e+18 to 1e+18"),
        (["--sample-mean", "3e6"], 2, "--sample-mean 3e+06 with --sample-std 1: a mean of at most 1e+06 deviations"),
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


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-18), (0.0, 1e18), (1e18, 1e18), (-1e6, 1.0)])
def test_the_kl_of_every_allowed_prior_is_finite(mean: float, std: float) -> None:
    settings = Settings(prior_mean=mean, prior_std=std)
    settings.check()
    start = torch.zeros(1)
    assert torch.isfinite(kl_divergence(start, start, settings.prior_on(torch.device("cpu")))).all()


@pytest.mark.slow
def test_batch_norm_sees_training_images_alone(tmp_path: Path) -> None:
    """Validation and the images of an early look must not move the statistics that the model is saved with."""
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    few = dataclasses.replace(dataset, train=dataset.train.head(25), validation=dataset.validation.head(20))
    options = Settings(arch="deep", epochs=1, batch_size=10, results_dir=tmp_path)
    weights = train_weights(Run(options, "vae", "deep", torch.device("cpu")), options, few)
    counts = [int(tensor) for name, tensor in weights.items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {3}  # 25 images: two whole batches, and what is left over


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


def test_a_rate_that_diverges_is_told(tmp_path: Path, refused: Refused) -> None:
    _, line = refused(main, Settings, [*QUICK, "--learning-rate", "1e6", "--results-dir", str(tmp_path)])
    assert "lower learning rate" in line


def test_every_preset_is_accepted() -> None:
    presets = {path: yaml.safe_load(path.read_text()) for path in Path("configs/vae").glob("*.yaml")}
    presets = {path: values for path, values in presets.items() if "models" not in values}
    assert presets
    for path in presets:
        cli.parse(Settings, ["--config", str(path)]).check()


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


@pytest.mark.slow
def test_a_conditional_model_draws_the_class_it_is_asked_for(own_cache: None, tmp_path: Path) -> None:
    arguments = ["--smoke-test", "--arch", "fc", "--conditional", "--run-name", "asked"]
    train(*arguments, "--results-dir", str(tmp_path))
    assert metrics_of(tmp_path / "vae" / "asked")["class_agreement"] > 0.5  # chance: 0.1; seeds: 0.75 to 0.89


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
