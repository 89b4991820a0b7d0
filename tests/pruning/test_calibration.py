"""Recalibration: the statistics of a fresh pass, written naively; nothing else of the network changes."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from common.data import Dataset, Split
from pruning import calibration
from pruning.calibration import batches, recalibrate, recalibrated
from pruning.vgg import VGG11
from tests.pruning.small import use_narrow_network


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> VGG11:
    use_narrow_network(monkeypatch)
    return VGG11().eval()


def images() -> Iterator[Tensor]:
    yield from torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(1)).split(16)


@torch.no_grad()
def naive_statistics(network: VGG11) -> list[tuple[Tensor, Tensor]]:
    """The mean and the unbiased variance of each channel by hand, batch by batch, then their mean over the batches."""
    found: list[list[tuple[Tensor, Tensor]]] = []
    for batch in images():
        maps, of_batch = batch.double(), []
        for module in copy.deepcopy(network).double().features:
            if isinstance(module, nn.BatchNorm2d):
                values = maps.transpose(0, 1).flatten(1)  # (C, B·H·W)
                mean, variance = values.mean(1), values.var(1, unbiased=True)
                of_batch.append((mean, variance))
                scale = module.weight / (values.var(1, unbiased=False) + module.eps).sqrt()
                maps = (maps - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + module.bias.view(-1, 1, 1)
            else:
                maps = module(maps)
        found.append(of_batch)
    layers = zip(*found, strict=True)
    return [(torch.stack([m for m, _ in s]).mean(0), torch.stack([v for _, v in s]).mean(0)) for s in layers]


def test_statistics_are_those_of_a_fresh_naive_pass(small: VGG11) -> None:
    expected = naive_statistics(small)
    recalibrate(small, images)
    norms = [module for module in small.features if isinstance(module, nn.BatchNorm2d)]
    for module, (mean, variance) in zip(norms, expected, strict=True):
        torch.testing.assert_close(module.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.running_var, variance.float(), rtol=1e-4, atol=1e-6)


def test_nothing_but_the_statistics_changes(small: VGG11) -> None:
    before = copy.deepcopy(small.state_dict())
    measured = recalibrated(small, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    changed = {name for name, tensor in measured.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert not measured.training
    assert all(module.momentum == 0.1 for module in measured.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_network_whose_statistics_were_lost_comes_back(small: VGG11) -> None:
    right = recalibrated(small, images)
    lost = copy.deepcopy(right)
    for name, buffer in lost.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer))
    batch = next(images())
    with torch.no_grad():
        assert not torch.allclose(lost(batch), right(batch), atol=1e-2)
        torch.testing.assert_close(recalibrated(lost, images)(batch), right(batch))


@pytest.mark.parametrize(("there_are", "sizes"), [(9, [4, 4]), (3, [3]), (20, [4, 4, 4])])
def test_images_are_the_first_ones_in_whole_batches(
    there_are: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BATCH", 4)
    monkeypatch.setattr(calibration, "IMAGES", 12)
    split = Split(torch.randint(256, (there_are, 3, 2, 2), dtype=torch.uint8), torch.zeros(there_are))
    dataset = Dataset("x", "", None, ("0", "1"), split, split, split, torch.zeros(3), torch.ones(3))
    again = batches(dataset)
    for _ in range(2):
        found = list(again())
        assert [len(batch) for batch in found] == sizes
        torch.testing.assert_close(torch.cat(found), split.images[: sum(sizes)] / 255)
