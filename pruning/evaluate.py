"""How accurate a network is on one split of a dataset."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from common import training
from common.data import Dataset, Split


def inputs(dataset: Dataset, split: Split) -> Callable[[slice], Tensor]:
    """Returns the function from rows of a split to the network's input `(B, C, H, W)`, normalised as in training."""
    return lambda rows: dataset.normalise(split.images[rows])


def accuracy(network: nn.Module, dataset: Dataset, split: Split) -> float:
    """Returns the fraction of the split's images that the network classifies correctly, in evaluation mode."""
    return training.accuracy(network, inputs(dataset, split), split.labels)
