"""A run that starts from a sparse network: what counts as sparse, what is refused, and that its zeros stay."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import UsageError
from common.experiment import Run
from common.files import save_weights
from pruning.allocation import reference, sparsities_at
from pruning.given import read_masks
from pruning.masks import Masks, apply_masks, magnitude_masks
from pruning.schedule import MaskSchedule
from pruning.settings import Settings
from pruning.sparse_file import save_sparse
from pruning.sparse_start import check_given, kept_weights
from pruning.vgg import VGG11, prunable_weights
from tests.pruning.small import use_narrow_network


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)


@pytest.fixture
def sparse() -> tuple[dict[str, Tensor], Masks]:
    """The weights and the masks of a network at the original report's sparsities."""
    network = VGG11(initialisation="default")
    weights = prunable_weights(network)
    masks = magnitude_masks(weights, reference(weights))
    apply_masks(weights, masks)
    return network.state_dict(), masks


def same(found: Masks | None, masks: Masks) -> bool:
    return found is not None and all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_masks_are_those_of_the_file_or_its_zeros(sparse: tuple[dict[str, Tensor], Masks], tmp_path: Path) -> None:
    weights, masks = sparse
    save_weights(tmp_path / "zeros.safetensors", weights)
    assert same(read_masks(tmp_path / "zeros.safetensors"), masks)
    with torch.no_grad():
        weights["features.4.weight"][masks["features.4"]] = 1e-9  # rounds to zero in half precision, and is kept
    save_sparse(tmp_path / "half.sparse", weights, masks, "float16")
    assert same(read_masks(tmp_path / "half.sparse"), masks)
    pairs = {name: tensor for name, tensor in weights.items() if name != "features.4.weight"}
    pairs |= {"features.4.weight_orig": torch.ones_like(weights["features.4.weight"])}
    pairs |= {"features.4.weight_mask": masks["features.4"].float()}
    torch.save(pairs, tmp_path / "pairs.pt")
    found = read_masks(tmp_path / "pairs.pt")
    assert found is not None
    assert torch.equal(found["features.4"], masks["features.4"])


def test_a_few_zeros_make_no_sparse_network(tmp_path: Path) -> None:
    network = VGG11(initialisation="default")
    weights = prunable_weights(network)
    total = sum(weight.numel() for weight in weights.values())
    last = list(weights.values())[-1].detach().permute(0, 2, 3, 1).view(-1)  # in the order of the memory
    last[: int(0.009 * total)] = 0
    save_weights(tmp_path / "dense.safetensors", network.state_dict())
    assert read_masks(tmp_path / "dense.safetensors") is None
    last[: int(0.011 * total) + 1] = 0
    save_weights(tmp_path / "sparse.safetensors", network.state_dict())
    assert read_masks(tmp_path / "sparse.safetensors") is not None
    every = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    save_sparse(tmp_path / "all.sparse", network.state_dict(), every, "float32")  # its masks say that it is dense
    assert read_masks(tmp_path / "all.sparse") is None


def test_zeros_of_an_identity_that_was_never_trained_are_no_pruning(tmp_path: Path) -> None:
    network = VGG11()
    weights = prunable_weights(network)
    assert sum(int((w == 0).sum()) for w in weights.values()) > 0.1 * sum(w.numel() for w in weights.values())
    save_weights(tmp_path / "start.safetensors", network.state_dict())
    assert read_masks(tmp_path / "start.safetensors") is None
    masks = magnitude_masks(weights, reference(weights))
    apply_masks(weights, masks)
    with torch.no_grad():
        for weight in weights.values():
            weight *= 0.9  # trained
    save_weights(tmp_path / "sparse.safetensors", network.state_dict())
    found = read_masks(tmp_path / "sparse.safetensors")
    assert found is not None
    assert all(torch.equal(found[name], weight != 0) for name, weight in weights.items())


def test_less_than_what_is_pruned_already_is_refused_with_both(
    sparse: tuple[dict[str, Tensor], Masks], tmp_path: Path
) -> None:
    given = tmp_path / "given.safetensors"
    save_weights(given, sparse[0])
    weights = {name: sparse[0][f"{name}.weight"] for name in sparse[1]}
    total = sum(mask.numel() for mask in sparse[1].values())
    there = sum(int((~mask).sum()) for mask in sparse[1].values()) / total
    for asked in (0.0, 0.5, there - 1 / total):
        chosen = Settings(dense_weights=given, allocation="global", sparsity=asked)
        with pytest.raises(UsageError, match=f"--sparsity {asked:.4g} with .*{there:.4f} of its convolution weights"):
            check_given(chosen)
    for asked in (there, 0.9):
        check_given(Settings(dense_weights=given, allocation="global", sparsity=asked))
    check_given(Settings(dense_weights=given))  # reference: the same sparsities as there are
    (tmp_path / "metrics.json").write_text(
        json.dumps(
            {"layers": [{"name": n, "weights": w.numel(), "nonzero": w.numel() // 2} for n, w in weights.items()]}
        )
    )
    with pytest.raises(UsageError, match=r"--allocation given, sparsity 0.5 with"):
        check_given(Settings(dense_weights=given, allocation="given", sparsities_from=tmp_path))
    with pytest.raises(UsageError, match="--sparsities-from RUN"):
        check_given(Settings(allocation="given"))


def test_a_run_keeps_the_masks_and_says_so_also_without_the_file(
    sparse: tuple[dict[str, Tensor], Masks], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.safetensors"
    save_weights(given, sparse[0])
    settings = Settings(dense_weights=given, results_dir=tmp_path)
    run = Run(settings, "pruning", "x", torch.device("cpu"))
    weights = {name: sparse[0][f"{name}.weight"] for name in sparse[1]}
    assert same(kept_weights(run, settings, weights), sparse[1])
    assert "is sparse: " in (line := capsys.readouterr().err)
    assert "are pruned already and stay zero" in line
    given.unlink()
    kept = kept_weights(run, settings, weights)
    assert kept is not None
    assert sparsities_at(kept) == sparsities_at(sparse[1])
    assert kept_weights(run, Settings(results_dir=tmp_path), weights) is None


def test_zeros_of_a_sparse_start_do_not_come_back_by_regrowth(sparse: tuple[dict[str, Tensor], Masks]) -> None:
    weights = {name: sparse[0][f"{name}.weight"].clone().requires_grad_() for name in sparse[1]}
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    chosen = Settings(schedule="gradual", regrow=0.5, allocation="uniform", sparsity=0.95)
    schedule = MaskSchedule.from_settings(chosen, dict.fromkeys(weights, 0.95), sparse[1])
    kept = magnitude_masks(weights, dict.fromkeys(weights, 0.9), sparse[1])
    regrown = schedule.regrown_at(1, 10, weights, kept)
    assert regrown is not None
    assert any((regrown[name] & ~kept[name]).any() for name in kept)
    assert not any((regrown[name] & ~sparse[1][name]).any() for name in kept)


def test_what_a_given_network_leaves_without_effect() -> None:
    given = Settings(dense_weights=Path("x"), epochs=30, learning_rate=0.05)
    assert given.without_effect() == ["--epochs 30", "--learning-rate 0.05"]
    rewound = dataclasses.replace(given, schedule="iterative", rewind="rate")
    assert rewound.without_effect() == []  # it repeats that training
    assert Settings(epochs=30).without_effect() == []


def test_a_dense_network_has_nothing_to_keep(tmp_path: Path) -> None:
    network = VGG11(initialisation="default")
    save_weights(tmp_path / "given.safetensors", network.state_dict())
    settings = Settings(dense_weights=tmp_path / "given.safetensors", results_dir=tmp_path)
    run = Run(settings, "pruning", "x", torch.device("cpu"))
    assert kept_weights(run, settings, prunable_weights(network)) is None
    assert kept_weights(run, settings, prunable_weights(network)) is None  # as a resumed run asks
