"""Batch-norm statistics measured anew, on training images and without training: what pruning alone makes stale.

Pruning changes what reaches each batch normalisation. Its stored mean and variance are those of the dense network, so
they no longer normalise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from common.data import Dataset
from pruning import measures
from pruning.vgg import VGG11

Batches = Callable[[], Iterator[Tensor]]  # yields the network's inputs (B, C, H, W), from the first one at each call
IMAGES = 5120  # training images, or as many as there are
BATCH = 128


def batches(dataset: Dataset) -> Batches:
    """Returns a function that yields the first `IMAGES` training images `(B, C, H, W)`, normalised, not augmented.

    They come in the order of the split, in whole batches, so that each batch counts the same.
    """
    inputs = measures.inputs(dataset, dataset.train)
    images = min(IMAGES, len(dataset.train))
    whole = max(1, images // BATCH)
    return lambda: (inputs(slice(k * BATCH, min((k + 1) * BATCH, images))) for k in range(whole))


def clear_statistics(network: nn.Module) -> None:
    """Resets every batch normalisation; the next passes in training mode average their statistics, batch by batch."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches so far in place of a moving average


@torch.no_grad()
def recalibrate(network: nn.Module, images: Batches) -> None:
    """Replaces the batch-norm statistics of `network` by their means over these batches of images.

    Each batch is normalised by its own statistics, as in training. The means are of the batch means and of the unbiased
    batch variances. Nothing else of the network changes.
    """
    measured = copy.deepcopy(network).train()
    clear_statistics(measured)
    for batch in images():
        measured(batch)
    statistics = dict(measured.named_buffers())
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(statistics[name])


def recalibrated(network: VGG11, images: Batches) -> VGG11:
    """Returns a copy of `network` with recalibrated statistics; the network itself keeps its own."""
    result = copy.deepcopy(network)
    recalibrate(result, images)
    return result
