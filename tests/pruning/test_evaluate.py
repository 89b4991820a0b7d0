"""A trained network is loaded from a run or a file, and classifies uint8 images as it did while training."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import cli
from common.errors import RunError, UsageError
from common.files import save_weights
from pruning import load
from pruning.evaluate import Evaluate, main
from pruning.masks import magnitude_masks
from pruning.smaller import save_smaller
from pruning.sparse_file import save_sparse
from pruning.trained import CIFAR10_MEAN, CIFAR10_STD
from pruning.vgg import VGG11, prunable_weights

pytestmark = pytest.mark.slow  # networks of true size
MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.fixture
def run(network: VGG11, tmp_path: Path) -> Path:
    """A finished run's folder, as far as loading needs it; half of the weights of each layer are zero."""
    weights = prunable_weights(network)
    with torch.no_grad():
        for weight in weights.values():  # the identity at the start has zeros of its own
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        masks = magnitude_masks(weights, dict.fromkeys(weights, 0.5))
        for name, mask in masks.items():
            weights[name].mul_(mask)
    folder = tmp_path / "run"
    save_weights(folder / "checkpoints" / "finetuned.safetensors", network.state_dict())
    save_sparse(folder / "checkpoints" / "network.float32.sparse", network.state_dict(), masks, "float32")
    metrics = {"finetuned_accuracy": 0.5, "classes": CLASSES, "normalisation": {"mean": MEAN, "std": STD}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def images() -> torch.Tensor:
    return torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def logits(network: VGG11, mean: object, std: object) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        return network.eval()((images() / 255 - mean) / std)


@pytest.mark.parametrize("file", ["", "checkpoints/finetuned.safetensors", "checkpoints/network.float32.sparse"])
def test_logits_are_those_of_the_normalised_images(run: Path, file: str, network: VGG11) -> None:
    loaded = load(run / file)
    assert loaded.classes == tuple(CLASSES)
    torch.testing.assert_close(loaded(images()), logits(network, MEAN, STD))
    torch.testing.assert_close(loaded(images() / 255), logits(network, MEAN, STD))
    assert not loaded.training
    with pytest.raises(UsageError, match=r"images are torch.int64; give torch.uint8 from 0 to 255"):
        loaded(images().long())


def test_a_file_without_its_run_is_normalised_as_cifar10(run: Path, network: VGG11, tmp_path: Path) -> None:
    file = tmp_path / "copy.safetensors"
    file.write_bytes((run / "checkpoints" / "finetuned.safetensors").read_bytes())
    torch.testing.assert_close(load(file)(images()), logits(network, CIFAR10_MEAN, CIFAR10_STD))
    assert load(file).classes[0] == "airplane"


def test_a_sparse_file_knows_its_classes_and_normalisation(network: VGG11, tmp_path: Path) -> None:
    origin = {"dataset": "digits", "classes": CLASSES, "normalisation": {"mean": MEAN, "std": STD}}
    save_sparse(tmp_path / "far.sparse", network.state_dict(), {}, "float32", origin)
    loaded = load(tmp_path / "far.sparse")
    assert (loaded.classes, loaded.dataset) == (tuple(CLASSES), "digits")
    torch.testing.assert_close(loaded(images()), logits(network, MEAN, STD))
    save_sparse(tmp_path / "bad.sparse", network.state_dict(), {}, "float32", origin | {"normalisation": [1]})
    with pytest.raises(RunError, match=r"bad\.sparse: damaged"):
        load(tmp_path / "bad.sparse")


def test_accuracy_costs_and_layers_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    cli.command(main, Evaluate, [str(run), "--dataset", "digits", "--batch-size", "4"])
    done = capsys.readouterr()
    lines = done.out.splitlines()
    assert lines[0].startswith("accuracy 0.")
    assert "360 test images" in lines[0]
    assert "the network's classes are ant, bee" in done.err
    assert [line.split(" for ")[1].split(",")[0] for line in lines[1:3]] == ["a batch of 1", "a batch of 4"]
    assert lines[3].split() == ["layer", "sparsity", "weights", "nonzero"]
    rows = [line.split() for line in lines[4:-1]]
    assert [row[0] for row in rows] == list(prunable_weights(load(run).network))
    assert all(float(row[1]) == pytest.approx(0.5, abs=0.01) for row in rows)
    assert lines[-1].startswith("weights kept 0.5")


def test_of_a_smaller_network_the_whole_one_is_the_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = VGG11(widths=[32, 64, 128, 128, 256, 256, 256, 256])
    save_smaller(tmp_path / "smaller.safetensors", half)
    capsys.readouterr()
    cli.command(main, Evaluate, [str(tmp_path / "smaller.safetensors"), "--dataset", "digits", "--batch-size", "2"])
    last = capsys.readouterr().out.splitlines()[-1]
    fewer = 9_231_114 / sum(parameter.numel() for parameter in half.parameters())
    assert last.startswith("widths 32 64 128 128 256 256 256 256: 1,376 of 2,752 filters")
    assert f"{fewer:.2f}× fewer parameters" in last
    assert last.endswith("3.95× fewer multiply-adds (at chance)")  # untrained


def test_images_are_classified(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "more").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "more/c")):
        Image.fromarray(images()[number].permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{name}.png")
    capsys.readouterr()
    cli.command(main, Evaluate, [str(run), "--images", str(tmp_path / "mine"), "--batch-size", "2"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    probabilities = load(run)(images()[:3]).softmax(1)
    assert [row["file"] for row in rows] == ["a.png", "b.png", "more/c.png"]
    assert [row["class"] for row in rows] == [CLASSES[int(label)] for label in probabilities.argmax(1)]
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"finetuned_accuracy": None}, "a run of another experiment"),
        ({"normalisation": {"mean": "x", "std": STD}}, "damaged (normalisation"),
        ({"normalisation": {"mean": [0.1], "std": STD}}, "damaged (normalisation: three channels"),
        ({"classes": ["a", "b"]}, "classifier"),
    ],
)
def test_a_damaged_run_is_told(
    run: Path, change: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((run / "metrics.json").read_text()) | change
    (run / "metrics.json").write_text(json.dumps({name: value for name, value in metrics.items() if value is not None}))
    with pytest.raises(SystemExit) as stopped:
        cli.command(main, Evaluate, [str(run), "--dataset", "digits"])
    assert stopped.value.code == 1
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["tests"], 1, "tests: no finished run (metrics.json is missing)"),
        (["nothing.sparse"], 2, "nothing.sparse: no such file or folder"),
        (["{run}", "--dataset", "imagenet"], 2, "--dataset imagenet: choose one of auto, cifar10, digits"),
        (["{run}", "--batch-size", "0"], 2, "--batch-size 0"),
        (["{run}", "--images", "nowhere"], 2, "nowhere: no such"),
    ],
)
def test_bad_input(run: Path, arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.command(main, Evaluate, [argument.format(run=run) for argument in arguments])
    assert stopped.value.code == status
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_loaded_as_the_docs_say(tmp_path: Path) -> None:
    """In a fresh process, with the network in its true size."""
    save_weights(tmp_path / "dense.safetensors", VGG11().state_dict())
    program = (
        f"import torch; from pruning import load; network = load({str(tmp_path / 'dense.safetensors')!r});"
        "images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8);"
        "print([network.classes[label] for label in network(images).argmax(1)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.count("'") == 4, done.stderr
