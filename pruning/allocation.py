"""How much of each layer to prune: every rule is a function from weights (or curves) to a sparsity per layer.

A sparsity is the fraction of a layer's weights that goes: a whole number of weights, and one at least stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pruning.masks import pruned_count

Allocation = Literal["reference", "scan", "uniform", "global", "lamp", "erk", "random"]
Sparsities = dict[str, float]
Curve = Mapping[str, float]  # sparsity as text, as JSON holds it → accuracy

REFERENCE = (0.1, 0.7, 0.5, 0.7, 0.7, 0.7, 0.8, 0.9)  # the reference study's choice, in network order


def reference(weights: Mapping[str, Tensor]) -> Sparsities:
    """Returns the reference study's sparsities: 22.97 % of VGG11's convolution weights stay."""
    return _whole_weights(weights, dict(zip(weights, REFERENCE, strict=True)))


def uniform(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the same sparsity for every layer."""
    return _whole_weights(weights, dict.fromkeys(weights, sparsity))


def global_magnitude(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the layers' shares of the smallest magnitudes in the whole network."""
    return _by_score(weights, sparsity, lambda weight: weight.abs())


def lamp(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the layers' shares of the smallest LAMP scores (Lee et al. 2021, Eq. 1).

    A weight's score is its square over the sum of the squares of all weights of its layer that are not smaller.
    """

    def score(weight: Tensor) -> Tensor:
        squares = weight.double().square().sort().values
        return (squares / squares.flip(0).cumsum(0).flip(0)).nan_to_num(0.0)  # a layer of zeros scores zero

    return _by_score(weights, sparsity, score)


def erk(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns Erdős–Rényi-kernel sparsities: density ∝ Σ dimensions / Π dimensions, at most 1 (Evci et al. 2020)."""
    raw = {name: sum(weight.shape) / weight.numel() for name, weight in weights.items()}
    kept = (1 - sparsity) * sum(weight.numel() for weight in weights.values())
    dense: set[str] = set()
    while True:
        rest = kept - sum(weights[name].numel() for name in dense)
        scale = rest / sum(raw[name] * weights[name].numel() for name in weights if name not in dense)
        full = {name for name in weights if name not in dense and scale * raw[name] > 1}
        if not full:
            return _whole_weights(weights, {n: 0.0 if n in dense else 1 - scale * raw[n] for n in weights})
        dense |= full


# The rules that need nothing but the weights, and those among them that are one threshold for the whole network.
RULES: dict[str, Callable[[Mapping[str, Tensor], float], Sparsities]] = {
    "uniform": uniform,
    "erk": erk,
    "global": global_magnitude,
    "lamp": lamp,
}
ONE_THRESHOLD = ("global", "lamp")


def scan_for_budget(
    weights: Mapping[str, Tensor], curves: Mapping[str, Curve], accuracy: float, budget: float
) -> Sparsities:
    """Returns the most each layer alone stands before held-out accuracy falls more than `budget` below `accuracy`."""
    return _whole_weights(weights, {name: _tolerated(curves[name], accuracy, budget) for name in weights})


def scan_for_sparsity(
    weights: Mapping[str, Tensor], curves: Mapping[str, Curve], accuracy: float, sparsity: float
) -> Sparsities:
    """Returns the sparsities at which every layer alone costs the same accuracy and which together reach `sparsity`."""
    total = sum(weight.numel() for weight in weights.values())

    def overall(drop: float) -> float:
        return (
            sum(_tolerated(curves[name], accuracy, drop) * weight.numel() for name, weight in weights.items()) / total
        )

    low, high = -1.0, 1.0  # below 0 nothing may go; a drop of 1 is more than any accuracy, and everything may go
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overall(middle) < sparsity else (low, middle)
    below = {name: _tolerated(curves[name], accuracy, low) for name in weights}
    above = {name: _tolerated(curves[name], accuracy, high) for name in weights}
    # A curve that does not fall for a stretch jumps there: share the step out evenly.
    missing, step = sparsity - overall(low), overall(high) - overall(low)
    share = missing / step if step > 0 else 0.0
    return _whole_weights(weights, {name: below[name] + share * (above[name] - below[name]) for name in weights})


def _tolerated(curve: Curve, accuracy: float, drop: float) -> float:
    """Returns the sparsity at which the curve first loses `drop`: linear between points, all accuracy lost at 1."""
    points = sorted((float(sparsity), value) for sparsity, value in curve.items())
    sparsity = np.array([0.0, *(s for s, _ in points), 1.0])
    lost = np.maximum.accumulate(accuracy - np.array([accuracy, *(value for _, value in points), 0.0]))
    if drop < 0:
        return 0.0
    first_over = int(np.searchsorted(lost, drop, side="right"))
    if first_over == len(lost):
        return 1.0
    before = first_over - 1
    part = (drop - lost[before]) / (lost[first_over] - lost[before])
    return float(sparsity[before] + part * (sparsity[first_over] - sparsity[before]))


def _by_score(weights: Mapping[str, Tensor], sparsity: float, score: Callable[[Tensor], Tensor]) -> Sparsities:
    """Returns each layer's share of the lowest scores over all layers; `score` maps a flat weight to its scores."""
    with torch.no_grad():
        scores = torch.cat([score(weight.flatten()) for weight in weights.values()])
        layer = torch.cat([torch.full((w.numel(),), i, device=w.device) for i, w in enumerate(weights.values())])
        lowest = scores.topk(pruned_count(len(scores), sparsity), largest=False, sorted=False).indices
        counts = layer[lowest].bincount(minlength=len(weights)).tolist()
    return _whole_weights(weights, {n: c / w.numel() for c, (n, w) in zip(counts, weights.items(), strict=True)})


def _whole_weights(weights: Mapping[str, Tensor], sparsities: Sparsities) -> Sparsities:
    """Returns the sparsities in whole weights, with one weight a layer left at least."""
    return {
        name: min(pruned_count(weight.numel(), sparsities[name]), weight.numel() - 1) / weight.numel()
        for name, weight in weights.items()
    }
