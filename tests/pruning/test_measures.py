"""Accuracy on a split: normalised images, every image counted once, in evaluation mode."""

import math

import pytest
import torch

from common.data import Dataset, Split
from pruning import measures
from pruning.vgg import VGG11


def test_accuracy_counts_every_image_of_the_split(network: VGG11) -> None:
    images = torch.randint(256, (13, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.25, 0.3])
    with torch.no_grad():
        pixels = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        labels = network(pixels).argmax(1)
    labels[:4] = (labels[:4] + 1) % 10  # four of thirteen are wrong
    split = Split(images, labels)
    dataset = Dataset("x", "", None, tuple("0123456789"), split, split, split, mean, std)
    torch.testing.assert_close(measures.inputs(dataset, split)(slice(2, 5)), pixels[2:5])
    before = network.state_dict()["features.1.running_mean"].clone()
    assert measures.accuracy(network.train(), dataset, split) == 9 / 13
    assert network.training
    assert torch.equal(before, network.eval().state_dict()["features.1.running_mean"])


@pytest.mark.parametrize("images", [100, 360, 10_000])
def test_chance_is_three_standard_errors_of_guessing_wide(images: int) -> None:
    edge = 0.1 + 3 * math.sqrt(0.09 / images)
    assert measures.at_chance(0.05, images)
    assert measures.at_chance(edge - 1e-6, images)
    assert not measures.at_chance(edge + 1e-6, images)


def test_the_ratio_of_a_useless_network_is_marked() -> None:
    assert measures.ratio(16342.4, True) == "16,342.40× (at chance)"
    assert measures.ratio(4.333, False) == "4.33×"
