"""Which weights matter: a criterion gives each weight a score, and the lowest scores of a layer are dropped.

The rules of allocation that compare all layers with one threshold (`global`) compare these scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import Dataset
from pruning import measures
from pruning.filters import Importance, ranked
from pruning.vgg import VGG11, prunable_weights

Criterion = Literal["magnitude", "taylor", "random"]
Scores = dict[str, Tensor]  # layer → a score for each weight, none negative, in the shape of the weight
Scorer = Callable[[VGG11], Scores]
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # yields images (B, C, H, W), normalised, and labels (B,)
IMAGES, BATCH = 1280, 128  # training images that the Taylor scores look at; ten batches (10 to 30, Molchanov et al.)


def scorer(
    criterion: Criterion, dataset: Dataset, label_smoothing: float, importance: Importance | None = None
) -> Scorer:
    """Returns the function from a network to the scores of its weights, or to the importances of its filters.

    Random masks heed no scores. What scores a network for them is its magnitude: the layers then have the sparsities
    that magnitude would give them, and the control differs in which weights go.
    """
    if importance is not None:
        return lambda network: ranked(network, importance)
    if criterion == "taylor":
        batches = labelled_batches(dataset)
        return lambda network: taylor_scores(network, batches, label_smoothing)
    return by_magnitude


@torch.no_grad()
def by_magnitude(network: VGG11) -> Scores:
    """Returns |w| (Han et al. 2015, section 3)."""
    return {name: weight.abs() for name, weight in prunable_weights(network).items()}


def taylor_scores(network: VGG11, batches: Batches, label_smoothing: float = 0.0) -> Scores:
    """Returns the mean of (g·w)² over `batches`, with g = ∂loss/∂w of a batch (Molchanov et al. 2019, Eq. 8).

    g·w is to first order what the loss of the batch changes if the weight goes. The loss is the cross-entropy with the
    training's label smoothing. As in a step of the training, each batch is normalised by its own statistics. So the
    score knows that batch normalisation undoes a change of a filter's scale. (Molchanov et al. put a gate behind each
    batch normalisation, but they score filters.) The network and its stored statistics stay as they are.
    """
    scored = copy.deepcopy(network).train()
    weights = prunable_weights(scored)
    totals, count = {name: torch.zeros_like(weight) for name, weight in weights.items()}, 0
    for images, labels in batches():
        loss = F.cross_entropy(scored(images), labels, label_smoothing=label_smoothing)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            totals[name] += (gradient * weight.detach()).square()
        count += 1
    return {name: total / count for name, total in totals.items()}


def labelled_batches(dataset: Dataset) -> Batches:
    """Returns a function that yields the first `IMAGES` training images and their labels, the same at each call.

    They are normalised, not augmented, and come in whole batches. So a resumed run finds the same scores.
    """
    inputs, labels = measures.inputs(dataset, dataset.train), dataset.train.labels
    images = min(IMAGES, len(dataset.train))
    rows = [slice(k * BATCH, min((k + 1) * BATCH, images)) for k in range(max(1, images // BATCH))]
    return lambda: ((inputs(batch), labels[batch]) for batch in rows)
