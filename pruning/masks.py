"""Which weights are kept: a mask is a bool tensor of its weight's shape; `Masks` maps layer names to masks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a float → the integers that hold its bits


def pruned_count(weights: int, sparsity: float) -> int:
    """Returns how many of `weights` are dropped at `sparsity`, rounded as torch.nn.utils.prune rounds."""
    return round(weights * sparsity)


@torch.no_grad()
def mask_from_scores(scores: Tensor, sparsity: float, kept: Tensor | None = None) -> Tensor:
    """Returns the mask that drops the fraction `sparsity` with the lowest scores.

    Equal scores do not change the count. What `kept` has dropped already is dropped first, and never comes back, so
    masks of rising sparsity are nested.
    """
    count = pruned_count(scores.numel(), sparsity)
    if kept is not None:
        scores = torch.where(kept, scores, -math.inf)
        count = max(count, kept.numel() - int(kept.count_nonzero()))
    flat = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    lowest = scores.flatten().topk(count, largest=False, sorted=False)
    flat[lowest.indices] = False
    return torch.empty_like(scores, dtype=torch.bool).copy_(flat.view(scores.shape))  # in the weight's memory format


@torch.no_grad()
def magnitude_mask(weight: Tensor, sparsity: float, kept: Tensor | None = None) -> Tensor:
    """Returns the mask that drops the smallest magnitudes (Han et al. 2015, section 3), after those not in `kept`."""
    return mask_from_scores(weight.abs(), sparsity, kept)


@torch.no_grad()
def random_mask(weight: Tensor, sparsity: float, generator: torch.Generator, kept: Tensor | None = None) -> Tensor:
    """Returns a mask that drops weights at random, after those not in `kept`: the control for every criterion.

    From the same state of the generator, masks of rising sparsity are nested.
    """
    scores = torch.rand(weight.shape, generator=generator, device=generator.device)
    return mask_from_scores(torch.empty_like(weight).copy_(scores), sparsity, kept)


def masks_from_scores(scores: Mapping[str, Tensor], sparsities: Mapping[str, float], kept: Masks | None) -> Masks:
    """Returns the `mask_from_scores` of every layer, at the layer's sparsity."""
    return {n: mask_from_scores(s, sparsities[n], None if kept is None else kept[n]) for n, s in scores.items()}


def magnitude_masks(weights: Mapping[str, Tensor], sparsities: Mapping[str, float], kept: Masks | None = None) -> Masks:
    """Returns the `magnitude_mask` of every layer, at the layer's sparsity."""
    return {n: magnitude_mask(w, sparsities[n], None if kept is None else kept[n]) for n, w in weights.items()}


def random_masks(
    weights: Mapping[str, Tensor], sparsities: Mapping[str, float], seed: int, kept: Masks | None = None
) -> Masks:
    """Returns the `random_mask` of every layer, at the layer's sparsity.

    The same `seed` gives the same masks, and nested ones for rising sparsities.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: random_mask(weight, sparsities[name], generator, None if kept is None else kept[name])
        for name, weight in weights.items()
    }


@torch.no_grad()
def exchange(masks: Masks, weights: Mapping[str, Tensor], share: float, allowed: Masks | None = None) -> Masks:
    """Returns the masks after each layer swaps its smallest kept weights for the weights with the largest gradients.

    A layer drops the fraction `share` of its kept weights, at most as many as it has dropped so far, and takes as many
    back (RigL, Evci et al. 2020, section 3). A weight that has just been dropped may come back at once if its gradient
    is large. `weights` hold the gradients of the last step; dropped weights have gradients too. Only weights in
    `allowed` come back, by default any.
    """
    result = {}
    for name, mask in masks.items():
        weight, gradient = weights[name], weights[name].grad
        assert gradient is not None
        kept, total = int(mask.sum()), mask.numel()
        places = torch.ones_like(mask) if allowed is None else allowed[name]
        leaving = min(round(share * kept), int(places.sum()) - kept)
        staying = magnitude_mask(weight, 1 - (kept - leaving) / total, mask)
        coming = mask_from_scores(gradient.abs(), 1 - leaving / total, places & ~staying)
        result[name] = staying | coming
    return result


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Sets the dropped weights to exactly +0."""
    for name, mask in masks.items():
        _clear(weights[name], mask)


@torch.no_grad()
def pruned_energy(weights: Mapping[str, Tensor], masks: Masks) -> dict[str, float]:
    """Returns the share of each layer's energy, the sum of its squared weights, that the masks drop.

    The smallest fraction s of uniform weights, as PyTorch draws them, has s³ of the energy: 0.34 at 0.7, where normal
    weights have 0.22. A layer loses next to nothing where a few of its weights are large.
    """
    shares = {}
    for name, mask in masks.items():
        squares = weights[name].double().square()
        total = float(squares.sum())
        shares[name] = float(squares[~mask].sum()) / total if total else 0.0
    return shares


@torch.no_grad()
def clear_empty_filters(convolutions: Mapping[str, nn.Conv2d], masks: Masks) -> None:
    """Sets the bias of every filter that has no weight left to 0.

    The output of such a filter is its bias at every position. Batch normalisation subtracts the mean it saw in
    training, which is the bias rounded to the training's precision, bfloat16 say, and divides by √(0 + ε). In another
    precision the rounding error, 300 times as large, would reach the next layer.
    """
    for name, mask in masks.items():
        bias = convolutions[name].bias
        if bias is not None:
            kept = mask.permute(0, 2, 3, 1).flatten(1)  # no copy: channels last
            empty = kept.view(torch.uint8).amax(1) == 0  # as bytes, because `any` takes 40 times as long
            bias.masked_fill_(empty, 0.0)


@torch.no_grad()
def forget_momentum(weights: Mapping[str, Tensor], masks: Masks, optimizer: torch.optim.Optimizer) -> None:
    """Sets the momentum of the dropped weights to 0, which would otherwise revive them on the next step.

    Every tensor of a weight's shape in the optimiser's state is cleared, so Adam's moments are too.
    """
    for name, mask in masks.items():
        for memory in optimizer.state.get(weights[name], {}).values():
            if isinstance(memory, Tensor) and memory.shape == mask.shape:
                _clear(memory, mask)


def _clear(values: Tensor, kept: Tensor) -> None:
    """Sets what is not kept to +0, NaN too: its bits times 0. `masked_fill_` takes four times as long on a CPU."""
    values.view(BITS[values.element_size()]).mul_(kept)
