"""The random convolutions are the same everywhere, and see what the classes do not tell."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common import data
from vae import metrics
from vae.features import FeatureSpace, RandomConvolutions
from vae.objective import pixels


@pytest.fixture(scope="module")
def digits() -> Tensor:
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))
    return pixels(torch.cat([dataset.train.images, dataset.test.images]))


def test_weights_are_the_same_on_every_machine() -> None:
    network = RandomConvolutions()
    assert network.digest == "e9819b99ba5486f1"
    assert not any(weight.requires_grad for weight in network.parameters())
    for weight in network.parameters():  # N(0, 2/inputs)
        deviation = (2 / weight[0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(deviation, rel=0.1)


def test_features_of_a_batch_are_those_of_each_image(digits: Tensor) -> None:
    network = RandomConvolutions()
    some = network(digits[:3])
    assert some.shape == (3, 64)
    torch.testing.assert_close(some[1:2], network(digits[1:2]))


def test_space_compares_as_the_metrics_do(digits: Tensor) -> None:
    network = RandomConvolutions()
    real, fake = network(digits[:300]), network(digits[300:500])
    found = FeatureSpace.of(real).compare(fake)
    density, coverage = metrics.density_and_coverage(real, metrics.neighbour_radii(real), fake)
    fid = metrics.frechet_distance(metrics.moments(real), metrics.moments(fake))
    assert found == {"fid": fid, "density": density, "coverage": coverage}


@pytest.mark.parametrize("change", ["thicker", "blurred", "shifted"])
def test_a_change_of_style_is_seen(change: str, digits: Tensor) -> None:
    """The distance of changed images to real ones is several times that of other real ones."""
    changes = {
        "thicker": lambda images: F.max_pool2d(images, 3, 1, 1),
        "blurred": metrics.blurred,
        "shifted": lambda images: images.roll(2, 3),
    }
    network = RandomConvolutions()
    space = FeatureSpace.of(network(digits[:800]))
    other = digits[800:]
    assert space.compare(network(changes[change](other)))["fid"] > 4 * space.compare(network(other))["fid"]
