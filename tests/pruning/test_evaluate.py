"""Accuracy on a split: normalised images, every image counted once, in evaluation mode."""

import torch

from common.data import Dataset, Split
from pruning import evaluate
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
    torch.testing.assert_close(evaluate.inputs(dataset, split)(slice(2, 5)), pixels[2:5])
    before = network.state_dict()["features.1.running_mean"].clone()
    assert evaluate.accuracy(network.train(), dataset, split) == 9 / 13
    assert network.training
    assert torch.equal(before, network.eval().state_dict()["features.1.running_mean"])
