"""Criteria: Taylor scores against autograd and against the loss itself, on the same batches at each call."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common import data
from pruning import criteria
from pruning.criteria import by_magnitude, labelled_batches, scorer, taylor_scores
from pruning.masks import mask_from_scores
from pruning.vgg import VGG11, prunable_layers, prunable_weights
from tests.pruning.small import use_narrow_network


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)


@pytest.fixture
def network() -> VGG11:
    return VGG11(initialisation="default").double()


def two_batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
        yield images, torch.randint(10, (8,), generator=generator)


def test_taylor_scores_are_the_mean_over_batches_of_the_squared_product(network: VGG11) -> None:
    before = copy.deepcopy(network.state_dict())
    scores = taylor_scores(network, two_batches, label_smoothing=0.2)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())  # and its statistics
    totals: dict[str, Tensor] = {}
    for images, labels in two_batches():
        network.train().zero_grad()
        torch.autograd.backward(F.cross_entropy(network(images), labels, label_smoothing=0.2))
        for name, weight in prunable_weights(network).items():
            assert weight.grad is not None
            totals[name] = totals.get(name, torch.zeros(())) + (weight.grad * weight).detach() ** 2 / 2
    assert scores.keys() == totals.keys()
    for name, score in scores.items():
        torch.testing.assert_close(score, totals[name])


def test_taylor_scores_say_what_the_loss_changes_without_a_small_weight(network: VGG11) -> None:
    """To first order the change of a batch's loss is −g·w; for small weights nothing else matters."""
    images, labels = next(two_batches())
    weight = prunable_layers(network)["features.4"].weight
    with torch.no_grad():
        weight[3, :4, 1, 1] *= 1e-4
    score = taylor_scores(network, lambda: iter([(images, labels)]))["features.4"]
    with torch.no_grad():
        whole = F.cross_entropy(network.train()(images), labels)
        for channel in range(4):
            value = weight[3, channel, 1, 1].clone()
            weight[3, channel, 1, 1] = 0
            change = F.cross_entropy(network(images), labels) - whole
            weight[3, channel, 1, 1] = value
            assert score[3, channel, 1, 1] == pytest.approx(float(change**2), rel=1e-2)


def test_dropped_weights_have_the_lowest_score_of_all(network: VGG11) -> None:
    weight = prunable_weights(network)["features.8"]
    with torch.no_grad():
        weight[:, :3] = 0
    score = taylor_scores(network, two_batches)["features.8"]
    assert not score[:, :3].any()
    assert not mask_from_scores(score, weight[:, :3].numel() / weight.numel())[:, :3].any()


def test_batches_are_the_first_images_in_whole_batches_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "BATCH", 16)
    monkeypatch.setattr(criteria, "IMAGES", 40)
    whole = data.load("digits", task_default="cifar10", shape=(3, 32, 32), data_dir=None, device=torch.device("cpu"))
    batches = labelled_batches(whole)
    for found in (list(batches()), list(batches())):
        assert [len(labels) for _, labels in found] == [16, 16]
        assert torch.equal(torch.cat([images for images, _ in found]), whole.normalise(whole.train.images[:32]))
        assert torch.equal(torch.cat([labels for _, labels in found]), whole.train.labels[:32])
    network = VGG11()
    assert torch.equal(by_magnitude(network)["features.0"], prunable_weights(network)["features.0"].abs())
    assert scorer("random", whole, 0.0) is scorer("magnitude", whole, 0.0) is by_magnitude
    one, other = (scorer("taylor", whole, 0.0)(network) for _ in range(2))
    assert all(torch.equal(one[name], score) for name, score in other.items())
