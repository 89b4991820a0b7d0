"""The classifier that evaluates samples: good enough on real images, and its features those before the ReLU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli, data
from common.data import Split
from common.experiment import Run
from common.files import load_state, save_state
from vae import classifier
from vae.classifier import UNCLASSIFIED, Classifier, drawn, trained_judge
from vae.features import FeatureSpace
from vae.settings import Settings
from vae.train import main


@pytest.mark.slow
@pytest.mark.real_data
def test_classifier_reaches_99_percent_on_mnist(
    real_data_dir: Path,
    tmp_path: Path,
    own_cache: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After half of its epochs already; also that a run on the real images says so, one epoch of a small VAE."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no other test shall find it
    monkeypatch.setattr(classifier, "EPOCHS", classifier.EPOCHS // 2)
    arguments = ["--dataset", "mnist", "--data-dir", str(real_data_dir), "--arch", "fc", "--hidden", "64"]
    short = ["--epochs", "1", "--nll-samples", "1", "--generated", "1000", "--latent", "2"]
    cli.run(main, Settings, [*arguments, *short, "--results-dir", str(tmp_path)])
    metrics = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "metrics.json").read_text())
    assert metrics["dataset"]["stand_in_for"] is None
    assert metrics["dataset"]["images"] == 70_000
    assert metrics["classifier"]["accuracy"] >= 0.99
    assert -250 < metrics["elbo"] < -140


@pytest.mark.slow
def test_one_judge_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    before, digests = torch.get_num_threads(), set()
    try:
        for threads in (1, 2):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(threads)))  # each trains its own
            torch.set_num_threads(threads)
            settings = Settings(results_dir=tmp_path, run_name=f"threads{threads}")
            digests.add(trained_judge(Run(settings, "vae", "", torch.device("cpu")), digits, 100).digest)
            assert torch.get_num_threads() == threads
            assert list((tmp_path / str(threads)).rglob("classifier-*.pt"))
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


SLOWLY = [pytest.param(content, marks=pytest.mark.slow) for content in ({}, {"real training images": {}}, b"{")]


@pytest.mark.parametrize("content", ["flipped", *SLOWLY])
def test_damaged_caches_are_made_anew(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    digits = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))

    def judged(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        judge = trained_judge(Run(Settings(results_dir=tmp_path), "vae", name, torch.device("cpu")), digits, 100)
        return judge.record(), classifier.reference_rows(judge, digits, 100)

    record, rows = judged("first")
    caches = {path: load_state(path) for path in (tmp_path / "trilab").glob("*.pt")}
    assert len(caches) == 2  # the classifier, and what real images score
    for path in caches:
        if isinstance(content, dict):
            save_state(path, content)
        else:
            whole = bytearray(path.read_bytes())
            whole[len(whole) // 2] ^= 1
            path.write_bytes(content if isinstance(content, bytes) else whole)
    assert judged("second") == (record, rows)  # trained anew to the same weights
    for path, state in caches.items():
        assert load_state(path).keys() == state.keys()


def test_fewer_test_images_are_a_fair_draw() -> None:
    """Not the first ones: MNIST's are in an order."""
    split = Split(torch.arange(1000).view(-1, 1, 1, 1), torch.arange(1000))
    some = drawn(split, 200)
    assert torch.equal(some.images.flatten(), some.labels)
    assert len(some.labels.unique()) == 200
    assert torch.equal(some.labels, drawn(split, 200).labels)
    assert abs(some.labels.float().mean() - 499.5) < 4 * 1000 / 12**0.5 / 200**0.5
    assert drawn(split, 1000) is split
    assert drawn(split, 5000) is split


def test_classifier_separates_features_from_head() -> None:
    network = Classifier(10).eval()
    images = torch.rand(4, 1, 28, 28)
    features = network.features(images)
    assert features.shape == (4, 64)
    assert (features < 0).any()  # before the ReLU
    torch.testing.assert_close(network(images), network.head(features.relu()))


def test_one_class_leaves_the_random_convolutions_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    one_class = dataclasses.replace(digits, classes=("images",))
    judge = trained_judge(Run(Settings(results_dir=tmp_path), "vae", "one", torch.device("cpu")), one_class, 100)
    assert "one class" in capsys.readouterr().err
    images = digits.train.images[:100] / 255
    (row,) = judge.evaluate_all({"real": images}, "comparing").values()
    expected = FeatureSpace.of(judge.random_network(drawn(digits.test, 100).images / 255)).compare(
        judge.random_network(images)
    )
    assert list(row) == UNCLASSIFIED
    for name, value in expected.items():
        assert row[name] == row[f"random_{name}"] == pytest.approx(value, rel=1e-4)
    assert "accuracy" not in judge.record()
