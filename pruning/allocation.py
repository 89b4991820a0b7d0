"""How much of each layer to prune: a rule is a function from weights (or curves) to a sparsity for each layer.

A sparsity is the fraction of a layer's weights that is pruned. It stands for a whole number of weights, and every layer
keeps at least one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import RunError
from common.files import finished_metrics
from pruning.masks import Masks, pruned_count

Allocation = Literal["reference", "scan", "uniform", "global", "lamp", "erk", "random", "given"]
Sparsities = dict[str, float]
Curve = Mapping[str, float]  # sparsity → accuracy; the sparsity is text, because JSON has no other keys

REFERENCE = (0.1, 0.7, 0.5, 0.7, 0.7, 0.7, 0.8, 0.9)  # the choice of the original report, in network order


def reference(weights: Mapping[str, Tensor]) -> Sparsities:
    """Returns the original report's sparsities, which keep 22.97 % of VGG11's convolution weights."""
    return _whole_weights(weights, dict(zip(weights, REFERENCE, strict=True)))


def uniform(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the same sparsity for every layer."""
    return _whole_weights(weights, dict.fromkeys(weights, sparsity))


def global_magnitude(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the sparsities of one threshold on the magnitude, for all layers together."""
    return _by_score(weights, sparsity, lambda weight: weight.abs())


def lamp(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the sparsities of one threshold on the LAMP score, for all layers together (Lee et al. 2021, Eq. 1).

    The score of a weight is its square, divided by the sum of the squares of all weights of its layer that are at least
    as large.
    """

    def score(weight: Tensor) -> Tensor:
        squares = weight.double().square().sort().values
        return (squares / squares.flip(0).cumsum(0).flip(0)).nan_to_num(0.0)  # a layer of zeros scores zero

    return _by_score(weights, sparsity, score)


def erk(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns Erdős–Rényi-kernel sparsities (Evci et al. 2020).

    The density of a layer is proportional to the sum of its weight's dimensions over their product, and at most 1.
    """
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


# The rules that need only the weights. Those in ONE_THRESHOLD compare the weights of all layers with one threshold.
Rule = Callable[[Mapping[str, Tensor], float], Sparsities]
RULES: dict[str, Rule] = {
    "uniform": uniform,
    "erk": erk,
    "global": global_magnitude,
    "lamp": lamp,
}
ONE_THRESHOLD = ("global", "lamp")


def first_layer_dense(rule: Rule, weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
    """Returns the sparsities of `rule` with nothing pruned from the first layer (Evci et al. 2020, uniform).

    The other layers lose as much more as it takes to prune the fraction `sparsity` of all weights, if they can.
    """
    first, *others = weights
    rest = {name: weights[name] for name in others}
    total = sum(weight.numel() for weight in weights.values())
    return {first: 0.0, **rule(rest, min(1.0, sparsity * total / (total - weights[first].numel())))}


def choose(
    rule: Allocation,
    weights: Mapping[str, Tensor],
    sparsity: float | None,
    curves: Mapping[str, Curve],
    accuracy: float,
    budget: float,
    keep_first_layer: bool = False,
    given: Sparsities | None = None,
) -> Sparsities:
    """Returns the sparsity that `rule` gives each layer of the dense network.

    `weights` are the weights or their scores (`pruning/criteria.py`): a rule with one threshold compares the absolute
    values. Without an overall `sparsity` a rule prunes as many weights as `reference`, but `scan` prunes what the
    accuracy `budget` allows. Only `scan` reads the `curves` and the dense network's `accuracy`, both on held-out
    images. `keep_first_layer` prunes nothing there; `reference`, `given`, and `random` without a `sparsity`, do not
    heed it. `given` are the sparsities of the rule of that name.
    """
    overall = overall_sparsity(weights, reference(weights)) if sparsity is None else sparsity

    def scanned(weights: Mapping[str, Tensor], sparsity: float) -> Sparsities:
        return scan_for_sparsity(weights, curves, accuracy, sparsity)

    match rule:
        case "reference":
            return reference(weights)
        case "given":
            if given is None or given.keys() != weights.keys():
                raise RunError(f"--sparsities-from: not the layers {', '.join(weights)}")
            return _whole_weights(weights, given)
        case "random" if sparsity is None:
            return reference(weights)
        case "scan" if sparsity is None:
            chosen = scan_for_budget(weights, curves, accuracy, budget)
            return {**chosen, next(iter(weights)): 0.0} if keep_first_layer else chosen
        case "scan":
            function: Rule = scanned
        case "random":
            function = uniform
        case _:
            function = RULES[rule]
    return first_layer_dense(function, weights, overall) if keep_first_layer else function(weights, overall)


def sparsities_of(run: Path) -> Sparsities:
    """Returns the layers' sparsities in a finished run's metrics.json.

    Raises:
        UsageError: there is no such folder.
        RunError: it holds no finished run of pruning/run.py.
    """
    layers = finished_metrics(run, "layers", "pruning/run.py")["layers"]
    try:
        return {str(layer["name"]): 1 - layer["nonzero"] / layer["weights"] for layer in layers}
    except (TypeError, LookupError, ArithmeticError) as error:
        raise RunError(f"{run / 'metrics.json'}: damaged (layers: {error!r})") from None


def sparsities_at(masks: Masks) -> Sparsities:
    """Returns the sparsity of each mask."""
    return {name: 1 - int(mask.count_nonzero()) / mask.numel() for name, mask in masks.items()}


def overall_sparsity(weights: Mapping[str, Tensor], sparsities: Sparsities) -> float:
    """Returns the fraction of all weights that these sparsities prune."""
    total = sum(weight.numel() for weight in weights.values())
    return sum(sparsities[name] * weight.numel() for name, weight in weights.items()) / total


def scan_for_budget(
    weights: Mapping[str, Tensor], curves: Mapping[str, Curve], accuracy: float, budget: float
) -> Sparsities:
    """Returns the highest sparsities that cost at most `budget` of accuracy, each when its layer alone is pruned.

    `curves` hold held-out accuracies by layer and sparsity; `accuracy` is that of the dense network.
    """
    return _whole_weights(weights, {name: _tolerated(curves[name], accuracy, budget) for name in weights})


def scan_for_sparsity(
    weights: Mapping[str, Tensor], curves: Mapping[str, Curve], accuracy: float, sparsity: float
) -> Sparsities:
    """Returns the sparsities that reach `sparsity` together and cost each layer, pruned alone, the same accuracy."""

    def overall(drop: float) -> float:
        return overall_sparsity(weights, {name: _tolerated(curves[name], accuracy, drop) for name in weights})

    low, high = -1.0, 1.0  # drops: a negative one allows no pruning; 1 is more than any accuracy and allows everything
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overall(middle) < sparsity else (low, middle)
    below = {name: _tolerated(curves[name], accuracy, low) for name in weights}
    above = {name: _tolerated(curves[name], accuracy, high) for name in weights}
    # Where a curve is flat, its sparsity jumps at that drop: all layers go the same fraction of their jumps.
    missing, step = sparsity - overall(low), overall(high) - overall(low)
    share = missing / step if step > 0 else 0.0
    return _whole_weights(weights, {name: below[name] + share * (above[name] - below[name]) for name in weights})


def _tolerated(curve: Curve, accuracy: float, drop: float) -> float:
    """Returns the sparsity at which the curve first loses `drop`.

    The curve is linear between its points, and its accuracy is 0 at sparsity 1. Where it has no point at 0, it begins
    at `accuracy`.
    """
    points = sorted({0.0: accuracy, **{float(sparsity): value for sparsity, value in curve.items()}, 1.0: 0.0}.items())
    sparsity, measured = (np.array(of) for of in zip(*points, strict=True))
    lost = np.maximum.accumulate(measured[0] - measured)
    if drop < 0:
        return 0.0
    first_over = int(np.searchsorted(lost, drop, side="right"))
    if first_over == len(lost):
        return 1.0
    before = first_over - 1
    part = (drop - lost[before]) / (lost[first_over] - lost[before])
    return float(sparsity[before] + part * (sparsity[first_over] - sparsity[before]))


def _by_score(weights: Mapping[str, Tensor], sparsity: float, score: Callable[[Tensor], Tensor]) -> Sparsities:
    """Returns the sparsities that drop the lowest scores of all layers; `score` maps a flat weight to its scores."""
    with torch.no_grad():
        scores = torch.cat([score(weight.flatten()) for weight in weights.values()])
        layer = torch.cat([torch.full((w.numel(),), i, device=w.device) for i, w in enumerate(weights.values())])
        lowest = scores.topk(pruned_count(len(scores), sparsity), largest=False, sorted=False).indices
        counts = layer[lowest].bincount(minlength=len(weights)).tolist()
    return _whole_weights(weights, {n: c / w.numel() for c, (n, w) in zip(counts, weights.items(), strict=True)})


def _whole_weights(weights: Mapping[str, Tensor], sparsities: Sparsities) -> Sparsities:
    """Returns the sparsities rounded to whole weights, with at least one weight left in each layer."""
    return {
        name: min(pruned_count(weight.numel(), sparsities[name]), weight.numel() - 1) / weight.numel()
        for name, weight in weights.items()
    }
