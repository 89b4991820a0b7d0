"""How accurate a network is on one split of a dataset, and what its savings are worth."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from common import training
from common.data import Dataset, Split
from pruning.vgg import CLASSES

CHANCE = "at chance"


def inputs(dataset: Dataset, split: Split) -> Callable[[slice], Tensor]:
    """Returns the function from rows of a split to the network's input `(B, C, H, W)`, normalised as in training."""
    return lambda rows: dataset.normalise(split.images[rows])


def accuracy(network: nn.Module, dataset: Dataset, split: Split) -> float:
    """Returns the fraction of the split's images that the network classifies correctly, in evaluation mode."""
    return training.accuracy(network, inputs(dataset, split), split.labels)


def at_chance(accuracy: float, images: int) -> bool:
    """Returns whether an accuracy on this many images is that of guessing, to three standard errors.

    What such a network saves says nothing: it has no accuracy to keep.
    """
    guessed = 1 / CLASSES
    return accuracy <= guessed + 3 * math.sqrt(guessed * (1 - guessed) / images)


def ratio(value: float, useless: bool, decimals: int = 2) -> str:
    """Returns how many times smaller or faster a network is, marked if the network is `useless`, at chance."""
    return f"{value:,.{decimals}f}×" + (f" ({CHANCE})" if useless else "")
