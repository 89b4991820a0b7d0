"""Whole filters in place of single weights: what ranks them, and what leaves the network with them.

Rules and schedules rank the entries of tensors, whatever they are. For single weights these are the convolutions'
weights. For filters it is one vector a layer, the importance of each filter: a sparsity is then a share of the filters,
and a mask over the vector says which filters stay. `weight_masks` turns that into masks of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pruning.masks import Masks, apply_masks, mask_from_scores, pruned_count
from pruning.vgg import VGG11, prunable_layers, prunable_weights

Granularity = Literal["weight", "filter"]
Importance = Literal["l2", "l1", "batch-norm"]


@torch.no_grad()
def filter_importance(conv: nn.Conv2d, norm: nn.BatchNorm2d, importance: Importance) -> Tensor:
    """Returns the importance `(out,)` of each filter of a convolution, relative to the mean over the filters.

    `l1` and `l2` are the norms of its weights (Li et al. 2017, section 3.1). `batch-norm` is |γ|, the scale that batch
    normalisation gives its output (network slimming, Liu et al. 2017). The mean changes nothing within a layer. Without
    it one threshold for all layers would compare norms over 27 weights with norms over 4,608, and take nearly all of
    the first layer; and |γ| is comparable only after training with an L1 penalty on it, which we do not have.
    """
    if importance == "batch-norm":
        scores = norm.weight.detach().abs()
    else:
        scores = torch.linalg.vector_norm(conv.weight, ord=int(importance[1]), dim=(1, 2, 3))
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


def ranked(network: VGG11, importance: Importance | None) -> dict[str, Tensor]:
    """Returns by layer what is ranked to choose what goes: the weights (out, in, 3, 3), or the filters' importances.

    None means single weights; an importance `(out,)` means whole filters.
    """
    if importance is None:
        return prunable_weights(network)
    return {name: filter_importance(conv, _norm(network, name), importance) for name, conv in _layers(network)}


def ranked_masks(masks: Masks, importance: Importance | None) -> Masks:
    """Returns masks of weights as masks of what `ranked` returns."""
    return masks if importance is None else kept_filters(masks)


def kept_filters(masks: Masks) -> Masks:
    """Returns for each layer which filters `(out,)` have a weight left."""
    return {name: mask.flatten(1).any(1) for name, mask in masks.items()}


def weight_masks(network: VGG11, masks: Masks, importance: Importance | None) -> Masks:
    """Returns masks of what `ranked` returns as masks of the weights.

    A weight stays if its filter stays and its input is the output of a filter that stays.
    """
    if importance is None:
        return masks
    result, inputs = {}, None
    for name, weight in prunable_weights(network).items():
        outputs = masks[name]
        kept = torch.ones_like(weight, dtype=torch.bool) & outputs.view(-1, 1, 1, 1)
        result[name] = kept if inputs is None else kept & inputs.view(1, -1, 1, 1)
        inputs = outputs
    return result


@torch.no_grad()
def clear_filters(network: VGG11, masks: Masks) -> None:
    """Sets to 0 all that belongs to the dropped filters, so that their outputs are exactly 0.

    These are their weights and biases, their batch-norm weights and biases, and the inputs of the next layer, which is
    the classifier after the last convolution. Their gradients are then 0 too.
    """
    kept = kept_filters(masks)
    for name, conv in _layers(network):
        clear(conv, _norm(network, name), kept[name])
    apply_masks(prunable_weights(network), masks)
    network.classifier.weight.masked_fill_(~kept[name], 0.0)


@torch.no_grad()
def clear(conv: nn.Conv2d, norm: nn.BatchNorm2d, kept: Tensor) -> None:
    """Sets to 0 the weights, the bias and the batch-norm entries of the filters that are not in `kept` (out,)."""
    conv.weight.masked_fill_(~kept.view(-1, 1, 1, 1), 0.0)
    for parameter in (conv.bias, norm.weight, norm.bias):
        assert parameter is not None
        parameter.masked_fill_(~kept, 0.0)


def filter_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Returns the mask `(out,)` that drops the share `sparsity` of the filters with the lowest scores, but not all."""
    filters = len(scores)
    return mask_from_scores(scores, min(pruned_count(filters, sparsity), filters - 1) / filters)


def filter_counts(masks: Iterable[Tensor]) -> dict[str, Any]:
    """Returns how many filters the layers with these masks had, how many are left, and the fraction that is gone."""
    kept = [filters for mask in masks for filters in kept_filters({"": mask}).values()]
    filters, left = sum(map(len, kept)), sum(int(of.sum()) for of in kept)
    return {"filters": filters, "filters_left": left, "filter_sparsity": 1 - left / filters}


def _layers(network: VGG11) -> list[tuple[str, nn.Conv2d]]:
    return list(prunable_layers(network).items())


def _norm(network: VGG11, layer: str) -> nn.BatchNorm2d:
    """Returns the batch normalisation that follows a convolution."""
    norm = network.features[int(layer.removeprefix("features.")) + 1]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm
