"""A finished fine-tuning goes on under the masks that it ended with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common import cli
from common.files import load_weights
from pruning.run import main
from pruning.settings import Settings
from tests.pruning.small import use_few_images, use_narrow_network

pytestmark = pytest.mark.slow
SMALL = ["--smoke-test", "--epochs", "1", "--latency-seconds", "0", "--keep-first-layer", "--allocation", "lamp"]


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        use_few_images(patch)
        patch.setattr("common.experiment.Run.figure", lambda *_: None)
        yield patch


def go(results: Path, name: str, *arguments: str) -> Path:
    cli.run(main, Settings, [*arguments, "--results-dir", str(results), "--run-name", name])
    return results / "pruning" / name


def weights_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_weights(run / "checkpoints" / f"{name}.safetensors")


def test_with_a_rate_that_ignores_the_length_it_ends_as_an_unbroken_fine_tuning(
    tmp_path: Path, narrow: pytest.MonkeyPatch
) -> None:
    """Momentum, masks, batches and augmentation go on. With the triangular rate the two differ in the rate alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.rewind.triangular", lambda peak: lambda done: 0.3)
        whole = go(tmp_path, "whole", *SMALL, "--finetune-epochs", "2")
        short = go(tmp_path, "short", *SMALL, "--finetune-epochs", "1", "--keep-state")
        longer = go(tmp_path, "longer", "--extend", str(short), "--finetune-epochs", "2")
    for name in ("dense", "finetuned", "masks"):
        ours, unbroken = weights_of(longer, name), weights_of(whole, name)
        assert all(torch.equal(ours[key], tensor) for key, tensor in unbroken.items())


@pytest.mark.parametrize("keep", ["--keep-state", "--no-keep-state"])
def test_after_gradual_pruning_the_masks_change_no_more(keep: str, tmp_path: Path) -> None:
    """The longer schedule would not be done by then: it would bring weights back."""
    gradual = ["--schedule", "gradual", "--regrow", "0.3", keep]
    short = go(tmp_path, "short", *SMALL, *gradual, "--finetune-epochs", "1")
    longer = go(tmp_path, "longer", "--extend", str(short), "--finetune-epochs", "2")
    goes_on_under_its_masks(short, longer)


def test_in_rounds_the_last_one_goes_on_under_its_masks(tmp_path: Path) -> None:
    rounds = ["--schedule", "iterative", "--rounds", "2", "--keep-state"]
    short = go(tmp_path, "short", *SMALL, *rounds, "--finetune-epochs", "1")
    longer = go(tmp_path, "longer", "--extend", str(short), "--finetune-epochs", "2")
    goes_on_under_its_masks(short, longer)
    for name in ("round1", "round1.masks"):
        ours, before = weights_of(longer, name), weights_of(short, name)
        assert all(torch.equal(ours[key], tensor) for key, tensor in before.items())


def test_without_its_masks_it_does_not_go_on(tmp_path: Path) -> None:
    short = go(tmp_path, "short", *SMALL, "--finetune-epochs", "1")
    (short / "checkpoints" / "masks.safetensors").unlink()
    with pytest.raises(SystemExit) as stop:
        go(tmp_path, "longer", "--extend", str(short), "--finetune-epochs", "2")
    assert stop.value.code == 1


def test_files_given_to_the_finished_run_may_be_gone(tmp_path: Path) -> None:
    dense = go(tmp_path, "dense", *SMALL, "--finetune-epochs", "1")
    given = tmp_path / "given.safetensors"
    given.write_bytes((dense / "checkpoints" / "dense.safetensors").read_bytes())
    start = ["--dense-weights", str(given), "--allocation", "given", "--sparsities-from", str(dense)]
    short = go(tmp_path, "short", "--smoke-test", "--latency-seconds", "0", *start, "--finetune-epochs", "1")
    given.unlink()
    shutil.rmtree(dense)
    longer = go(tmp_path, "longer", "--extend", str(short), "--finetune-epochs", "2")
    goes_on_under_its_masks(short, longer)


def goes_on_under_its_masks(short: Path, longer: Path) -> None:
    masks = weights_of(longer, "masks")
    assert all(torch.equal(masks[name], mask) for name, mask in weights_of(short, "masks").items())
    weights, before = weights_of(longer, "finetuned"), weights_of(short, "finetuned")
    for name, mask in masks.items():
        key = name if name in weights else f"{name}.weight"
        assert not weights[key][~mask].any()
        assert not torch.equal(weights[key], before[key])
