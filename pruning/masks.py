"""Which weights are kept: a mask is a bool tensor of its weight's shape; `Masks` maps layer names to masks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


def pruned_count(weights: int, sparsity: float) -> int:
    """Returns how many of `weights` go at `sparsity`, rounded as torch.nn.utils.prune rounds."""
    return round(weights * sparsity)


@torch.no_grad()
def mask_from_scores(scores: Tensor, sparsity: float, kept: Tensor | None = None) -> Tensor:
    """Returns the mask that drops the fraction `sparsity` of lowest scores, exactly so many also among equal ones.

    Weights that `kept` already drops go first, so that masks of rising sparsity are nested.
    """
    if kept is not None:
        scores = torch.where(kept, scores, -math.inf)
    flat = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    lowest = scores.flatten().topk(pruned_count(scores.numel(), sparsity), largest=False, sorted=False)
    flat[lowest.indices] = False
    return torch.empty_like(scores, dtype=torch.bool).copy_(flat.view(scores.shape))  # in the weight's memory format


@torch.no_grad()
def magnitude_mask(weight: Tensor, sparsity: float, kept: Tensor | None = None) -> Tensor:
    """Returns the mask that drops the smallest magnitudes (Han et al. 2015, section 3), those not `kept` first."""
    return mask_from_scores(weight.abs(), sparsity, kept)


@torch.no_grad()
def random_mask(weight: Tensor, sparsity: float, generator: torch.Generator) -> Tensor:
    """Returns a mask that drops weights at random, the control for a criterion at the same layer sparsities.

    The same generator state gives nested masks for rising sparsity.
    """
    scores = torch.rand(weight.shape, generator=generator, device=generator.device)
    return mask_from_scores(torch.empty_like(weight).copy_(scores), sparsity)


def magnitude_masks(weights: Mapping[str, Tensor], sparsities: Mapping[str, float], kept: Masks | None = None) -> Masks:
    """Returns `magnitude_mask` of every layer at its own sparsity."""
    return {n: magnitude_mask(w, sparsities[n], None if kept is None else kept[n]) for n, w in weights.items()}


def random_masks(weights: Mapping[str, Tensor], sparsities: Mapping[str, float], seed: int) -> Masks:
    """Returns `random_mask` of every layer at its own sparsity, the same for the same `seed` on one device type."""
    generator = torch.Generator().manual_seed(seed)
    return {name: random_mask(weight, sparsities[name], generator) for name, weight in weights.items()}


@torch.no_grad()
def exchange(masks: Masks, weights: Mapping[str, Tensor], share: float) -> Masks:
    """Returns masks of as many weights, in which the smallest of every layer have put up their places.

    The fraction `share` of a layer's kept weights, no more than it has dropped, leaves; those of the largest gradients
    come, one that has just left among them where its gradient says so (RigL, Evci et al. 2020, section 3). `weights`
    hold the gradients of the last step, also of those that are dropped.
    """
    result = {}
    for name, mask in masks.items():
        weight, gradient = weights[name], weights[name].grad
        assert gradient is not None
        kept, total = int(mask.sum()), mask.numel()
        leaving = min(round(share * kept), total - kept)
        staying = magnitude_mask(weight, 1 - (kept - leaving) / total, mask)
        coming = mask_from_scores(gradient.abs(), 1 - leaving / total, ~staying)
        result[name] = staying | coming
    return result


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Sets the dropped weights to exactly +0."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


@torch.no_grad()
def clear_empty_filters(convolutions: Mapping[str, nn.Conv2d], masks: Masks) -> None:
    """Sets the bias of every filter that has no weight left to 0.

    Such a filter gives its bias everywhere, with a variance of 0, which batch normalisation divides by. What that
    subtracts is the bias as training rounded it, to bfloat16 say: in another precision the difference, magnified 300
    times, would go on to the next layer.
    """
    for name, mask in masks.items():
        bias = convolutions[name].bias
        if bias is not None:
            kept = mask.permute(0, 2, 3, 1).flatten(1)  # no copy: channels last
            empty = kept.view(torch.uint8).amax(1) == 0  # as bytes: `any` takes 40 times as long
            bias.masked_fill_(empty, 0.0)


@torch.no_grad()
def forget_momentum(weights: Mapping[str, Tensor], masks: Masks, optimizer: torch.optim.Optimizer) -> None:
    """Clears the optimiser's memory of the dropped weights, which would otherwise revive them on the next step."""
    for name, mask in masks.items():
        for memory in optimizer.state.get(weights[name], {}).values():
            if isinstance(memory, Tensor) and memory.shape == mask.shape:
                memory.masked_fill_(~mask, 0.0)


def cubic_sparsity(done: float) -> float:
    """Returns the fraction of the final sparsity due when `done` of the pruning phase is over.

    s(t) = s_f + (s_i − s_f)(1 − t)³ with s_i = 0 (Zhu & Gupta 2017, Eq. 1).
    """
    return 1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** 3


def cosine_share(done: float) -> float:
    """Returns the fraction of the first exchange due when `done` of the pruning phase is over: from 1 to 0."""
    return (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
