"""The fast scan gives the naive scan's accuracies to the last image and leaves the network alone."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from common.data import Dataset, Split
from common.device import Precision
from common.experiment import Run
from pruning.calibration import recalibrated
from pruning.criteria import scorer
from pruning.masks import apply_masks, magnitude_mask
from pruning.run import scan_layers
from pruning.sensitivity import Sensitivity, scan
from pruning.settings import Settings
from pruning.vgg import VGG11, prunable_layers


@torch.inference_mode()
def naive_scan(model: VGG11, images: Tensor, labels: Tensor, sparsities: tuple[float, ...]) -> Sensitivity:
    """The reference: for every layer and sparsity, prune a copy of the network and pass the images through it all."""
    result: Sensitivity = {}
    for layer in prunable_layers(model):
        result[layer] = {}
        for sparsity in sparsities:
            pruned = copy.deepcopy(model).eval()
            weight = prunable_layers(pruned)[layer].weight
            apply_masks({layer: weight}, {layer: magnitude_mask(weight, sparsity)})
            correct = int((pruned(images).argmax(1) == labels).sum())
            result[layer][str(sparsity)] = correct / len(labels)
    return result


def test_recalibrates_each_pruned_network(network: VGG11) -> None:
    """As a copy of the whole network that is pruned in one layer, then recalibrated; the network stays as it is."""
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(network.state_dict())

    def calibration() -> Iterator[Tensor]:
        yield from images[:16].split(8)

    labels = recalibrated(network, calibration)(images).argmax(1)
    layers = ["features.0", "features.15"]
    fast = scan(network, lambda rows: images[rows], labels, layers, (0.5, 0.9), calibration=calibration)
    for layer in layers:
        for sparsity in (0.5, 0.9):
            pruned = copy.deepcopy(network)
            weight = prunable_layers(pruned)[layer].weight
            apply_masks({layer: weight}, {layer: magnitude_mask(weight, sparsity)})
            measured = recalibrated(pruned, calibration)
            with torch.inference_mode():
                correct = int((measured(images).argmax(1) == labels).sum())
            assert fast[layer][str(sparsity)] == correct / len(labels)
    stale = scan(network, lambda rows: images[rows], labels, layers, (0.5, 0.9))
    assert fast != stale
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("count", "sparsities"), [(9, (0.9,)), pytest.param(90, (0.3, 0.6, 0.9), marks=pytest.mark.slow)]
)
def test_agrees_with_the_naive_scan_to_the_last_image(
    network: VGG11, count: int, sparsities: tuple[float, ...]
) -> None:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = network(images).argmax(1)  # the dense network is right everywhere, so that every flip shows
    fast = scan(network, lambda rows: images[rows], labels, sparsities=sparsities, batch_size=4 * count // 9)
    assert fast == naive_scan(network, images, labels, sparsities)
    different = {accuracy for curve in fast.values() for accuracy in curve.values()}
    assert len(different) > min(5, count // 5)


def test_leaves_weights_statistics_and_mode_untouched(network: VGG11) -> None:
    model = copy.deepcopy(network).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(6, 3, 32, 32)
    scan(model, lambda rows: images[rows], torch.zeros(6, dtype=torch.long), sparsities=(0.5,))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not p.is_inference() for p in model.parameters())


def test_chosen_layers_only(network: VGG11) -> None:
    images = torch.randn(4, 3, 32, 32)
    result = scan(network, lambda rows: images[rows], torch.zeros(4, dtype=torch.long), ["features.8"], (0.1, 0.9))
    assert list(result) == ["features.8"]
    assert list(result["features.8"]) == ["0.1", "0.9"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_scans_in_the_precision_of_its_training(network: VGG11, precision: Precision) -> None:
    images = torch.randn(2, 3, 32, 32)
    types = set()
    watched = copy.deepcopy(network)  # the other tests have this network too
    for module in watched.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
    split = Split(images, torch.zeros(2, dtype=torch.long))
    dataset = Dataset("x", "", None, ("0", "1"), split, split, split, torch.zeros(3), torch.ones(3))
    run = cast(Run, SimpleNamespace(device=torch.device("cpu")))
    settings = Settings(precision=precision)
    scores = scorer(settings.criterion, dataset, 0.0, settings.ranked_by)
    scan_layers(run, settings, dataset, split, watched, scores)
    assert types == {getattr(torch, precision)}
