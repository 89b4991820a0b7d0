"""Folders of one's own images: any number of classes, resumed, refused, collapsed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import cli, data
from common.files import load_weights
from tests.vae.runs import metrics_of, settings_of
from vae import plane
from vae.settings import Settings
from vae.train import main

Refused = Callable[..., tuple[int, str]]


def folder_of_digits(folder: Path, *, classes: bool, count: int = 200) -> Path:
    """Writes some of scikit-learn's digits as 28×28 images, flat or in class folders."""
    digits = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    for i in range(count):
        path = folder / (f"digit {int(digits.train.labels[i]) % 3}" if classes else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train.images[i, 0].numpy()).save(path)
    return folder


OWN = ["--arch", "fc", "--hidden", "16", "--epochs", "1", "--generated", "100", "--nll-samples", "2", "--latent", "2"]


@pytest.mark.slow
def test_a_folder_without_classes_and_its_resume(
    own_cache: None, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged in the space of random convolutions alone; a changed image is refused."""
    folder = folder_of_digits(tmp_path / "own", classes=False)
    arguments = ["--dataset", str(folder), "--results-dir", str(tmp_path)]
    cli.run(main, Settings, [*OWN, *arguments])
    told = capsys.readouterr()
    run = Path(told.out.splitlines()[-1])
    assert run.name.startswith("folder-own-fc-normal-2-seed0-")
    assert "one class, so there is no classifier" in told.err
    metrics = metrics_of(run)
    assert metrics["dataset"]["source"] == "image folder own, a fixed random tenth of it as test images"
    assert metrics["classifier"].keys() == {"space", "random_weights_sha256"}
    for row in metrics["quality"].values():
        assert (row["fid"], row["coverage"]) == (row["random_fid"], row["random_coverage"])
        assert "confidence" not in row
    assert not (run / "checkpoints" / "classifier.safetensors").exists()
    (run / "metrics.json").unlink()
    (folder / "7.png").write_bytes((folder / "8.png").read_bytes())
    status, line = refused(main, Settings, ["--resume", str(run)])
    assert status == 1
    assert "the run began on" in line


@pytest.mark.slow
def test_a_folder_with_three_classes(
    own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_digits(tmp_path / "own", classes=True)
    monkeypatch.chdir(tmp_path)
    cli.run(main, Settings, [*OWN, "--dataset", "own", "--results-dir", str(tmp_path), "--run-name", "three"])
    run = tmp_path / "vae" / "three"
    metrics = metrics_of(run)
    assert metrics["dataset"]["classes"] == 3
    assert len(metrics["quality"]["prior samples"]["classes"]) == 3
    assert settings_of(run).dataset == str(tmp_path / "own")  # so that it can be resumed from elsewhere


@pytest.mark.slow
def test_a_conditional_model_of_three_classes(
    own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every option at once: the learned prior, its mismatched samples, and classes that are no digits."""
    folder = folder_of_digits(tmp_path / "own", classes=True)
    options = ["--conditional", "--prior", "vamp", "--pseudo-inputs", "6", "--sample-prior", "gaussian12"]
    cli.run(main, Settings, [*OWN, *options, "--dataset", str(folder), "--results-dir", str(tmp_path)])
    run = Path(capsys.readouterr().out.splitlines()[-1])
    assert run.name.startswith("folder-own-fc-conditional-vamp-2-seed0-")
    metrics = metrics_of(run)
    assert 0 <= metrics["class_agreement"] <= 1
    assert metrics["quality"]["mismatched samples"]["fid"] != metrics["quality"]["prior samples"]["fid"]
    assert metrics["sample_prior"] == {"mean": 1.0, "std": 2.0}
    assert load_weights(run / "checkpoints" / "vae.safetensors")["from_code.weight"].shape == (16, 2 + 3)
    assert not (run / plane.FILE).exists()


def test_a_conditional_model_of_one_class_is_refused(tmp_path: Path, refused: Refused) -> None:
    folder = folder_of_digits(tmp_path / "own", classes=False)
    arguments = [*OWN, "--conditional", "--dataset", str(folder), "--results-dir", str(tmp_path)]
    status, line = refused(main, Settings, arguments)
    assert status == 2
    assert f"--conditional with --dataset {folder}: its images have one class" in line
    assert not (tmp_path / "vae").exists()


@pytest.mark.slow
def test_a_collapsed_model_is_told(own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_digits(tmp_path / "own", classes=False)
    cli.run(main, Settings, [*OWN, "--dataset", str(folder), "--beta", "1e5", "--results-dir", str(tmp_path)])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING"))
    assert "0 of 2 units are active" in line
    assert "--beta" in line
