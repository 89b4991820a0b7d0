"""Allocation rules: the target is met within one weight a layer, no layer vanishes, each rule is its paper's."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import RunError
from pruning import allocation
from pruning.masks import magnitude_masks
from pruning.sensitivity import SPARSITIES
from pruning.vgg import VGG11, prunable_weights

SHAPES = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (32, 16, 3, 3), "d": (32, 32, 3, 3)}


def some_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * (i + 1) for i, (name, shape) in enumerate(SHAPES.items())}


def falling_curves() -> dict[str, dict[str, float]]:
    """Layers from robust to sensitive, one of them with a flat stretch."""
    return {
        name: {str(s): max(0.9 - 0.9 * s ** (5 - i), 0.1) if name != "c" or s > 0.5 else 0.9 for s in SPARSITIES}
        for i, name in enumerate(SHAPES)
    }


def pruned_weights(weights: dict[str, Tensor], sparsities: dict[str, float]) -> float:
    return sum(sparsities[name] * weight.numel() for name, weight in weights.items())


RULES = {
    **allocation.RULES,
    "scan": lambda weights, s: allocation.scan_for_sparsity(weights, falling_curves(), 0.9, s),
}


@given(rule=st.sampled_from(sorted(RULES)), sparsity=st.floats(0, 0.995))
@settings(deadline=None, max_examples=150)
def test_target_is_met_within_one_weight_a_layer(rule: str, sparsity: float) -> None:
    weights = some_weights()
    sparsities = RULES[rule](weights, sparsity)
    target = sparsity * sum(weight.numel() for weight in weights.values())
    assert abs(pruned_weights(weights, sparsities) - target) <= len(weights)
    for name, mask in magnitude_masks(weights, sparsities).items():
        assert mask.any()
        assert int((~mask).sum()) == pytest.approx(sparsities[name] * mask.numel())


@given(rule=st.sampled_from(["uniform", "erk", "global", "lamp", "scan", "random"]), sparsity=st.floats(0, 0.98))
@settings(deadline=None, max_examples=60)
def test_the_first_layer_may_be_kept_dense(rule: allocation.Allocation, sparsity: float) -> None:
    """The target is met all the same, and the other layers keep the shares that the rule gives them alone."""
    weights = some_weights()
    chosen = allocation.choose(rule, weights, sparsity, falling_curves(), 0.9, 0.1, keep_first_layer=True)
    assert list(chosen) == list(weights)
    assert chosen["a"] == 0.0
    target = sparsity * sum(weight.numel() for weight in weights.values())
    assert abs(pruned_weights(weights, chosen) - target) <= len(weights)
    if rule in ("uniform", "random"):
        assert max(chosen.values()) - sorted(chosen.values())[1] <= 1 / 500  # a weight of the smallest other layer


def test_the_first_layer_kept_dense_at_the_ends() -> None:
    weights = some_weights()
    most = allocation.choose("uniform", weights, 0.9999, {}, 0.9, 0.1, keep_first_layer=True)
    assert [round((1 - most[name]) * weights[name].numel()) for name in weights] == [216, 1, 1, 1]
    whole = prunable_weights(VGG11())
    curves = {name: {"0.5": 0.9, "0.9": 0.7} for name in whole}
    free, kept = (allocation.choose("scan", whole, None, curves, 0.9, 0.1, k) for k in (False, True))
    assert free["features.0"] == pytest.approx(0.7, abs=1e-3)
    assert kept == free | {"features.0": 0.0}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_layer_loses_its_last_weight(rule: str) -> None:
    weights = some_weights()
    weights["a"] *= 1e-6  # a layer that global magnitude would erase
    for name, mask in magnitude_masks(weights, RULES[rule](weights, 0.9999)).items():
        assert mask.any(), name


def test_reference_keeps_22_97_percent() -> None:
    weights = prunable_weights(VGG11())
    masks = magnitude_masks(weights, allocation.reference(weights))
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert (kept, total) == (2_117_548, 9_217_728)


def test_global_is_one_threshold_for_the_whole_network() -> None:
    weights = some_weights()
    masks = magnitude_masks(weights, allocation.global_magnitude(weights, 0.5))
    kept = torch.cat([weights[n][m].abs() for n, m in masks.items()])
    dropped = torch.cat([weights[n][~m].abs() for n, m in masks.items()])
    assert kept.min() >= dropped.max()


def test_lamp_matches_the_definition() -> None:
    """Scores computed weight by weight from Eq. 1 of Lee et al. 2021, on a small network."""
    weights = {"a": torch.tensor([[0.1, -2.0], [0.5, 1.0]]), "b": torch.tensor([3.0, 0.2, -0.3])}
    scores = []
    for name, weight in weights.items():
        flat = weight.flatten().tolist()
        scores += [(w * w / sum(v * v for v in flat if v * v >= w * w), name) for w in flat]
    for dropped in range(1, 5):
        lowest = [name for _, name in sorted(scores)[:dropped]]
        sparsities = allocation.lamp(weights, dropped / 7)
        assert {n: round(sparsities[n] * w.numel()) for n, w in weights.items()} == {
            name: lowest.count(name) for name in weights
        }


def test_erk_densities_are_proportional_until_they_reach_one() -> None:
    weights = some_weights()
    sparsities = allocation.erk(weights, 0.8)
    density = {name: 1 - s for name, s in sparsities.items()}
    raw = {name: sum(w.shape) / w.numel() for name, w in weights.items()}
    open_layers = [name for name in weights if density[name] < 1]
    assert len(open_layers) >= 2
    for one, other in itertools.combinations(open_layers, 2):
        rounding = 1 / weights[one].numel() + 1 / weights[other].numel()
        assert density[one] / density[other] == pytest.approx(raw[one] / raw[other], abs=20 * rounding)
    assert density["a"] == 1  # the smallest layer would exceed one, and is left dense


def test_scan_budget_reads_the_curve() -> None:
    weights = {"a": torch.randn(1000), "b": torch.randn(1000)}
    curves = {
        "a": {str(s): 0.9 if s <= 0.5 else 0.5 for s in SPARSITIES},
        "b": {str(s): 0.9 - 0.1 * s for s in SPARSITIES},
    }
    sparsities = allocation.scan_for_budget(weights, curves, accuracy=0.9, budget=0.05)
    assert sparsities["a"] == pytest.approx(0.5 + 0.1 * 0.05 / 0.4, abs=1e-3)  # linear between 0.5 and 0.6
    assert sparsities["b"] == pytest.approx(0.5, abs=1e-3)


def test_a_curve_that_has_a_point_at_0_is_measured_from_it() -> None:
    """That of a network trained anew: a point below the dense one, it loses nothing all the same."""
    weights = {"a": torch.randn(1000)}
    own = {"a": {"0.0": 0.858, **{str(s): 0.858 if s <= 0.9 else 0.5 for s in SPARSITIES}}}
    without = {"a": {name: value for name, value in own["a"].items() if name != "0.0"}}
    ours, other = (allocation.scan_for_budget(weights, curves, 0.87, 0.01)["a"] for curves in (own, without))
    assert ours == pytest.approx(0.9 + 0.05 * 0.01 / 0.358, abs=1e-3)
    assert other < 0.1


def test_scan_spares_the_sensitive_layer() -> None:
    sparsities = allocation.scan_for_sparsity(some_weights(), falling_curves(), 0.9, 0.8)
    assert sparsities["d"] < sparsities["b"] < sparsities["a"]


def test_scan_with_accuracies_above_the_dense_one() -> None:
    curves = {name: {str(s): 0.95 for s in SPARSITIES} for name in SHAPES}
    sparsities = allocation.scan_for_budget(some_weights(), curves, accuracy=0.9, budget=0.01)
    assert all(0.9 < s < 1 for s in sparsities.values())


@pytest.mark.parametrize(
    "rule", sorted({*get_args(allocation.Allocation)} - {"reference", "given"})
)  # a new rule as well
@pytest.mark.parametrize("sparsity", [None, 0.95])
def test_every_allocation_reaches_its_target(
    network: VGG11, rule: allocation.Allocation, sparsity: float | None
) -> None:
    weights = prunable_weights(network)
    curves = {name: {str(s / 10): 0.9 - 0.08 * s for s in range(1, 10)} for name in weights}
    sparsities = allocation.choose(rule, weights, sparsity, curves, accuracy=0.9, budget=0.01)
    overall = allocation.overall_sparsity(weights, sparsities)
    if rule == "scan" and sparsity is None:
        assert all(s == pytest.approx(0.0125, abs=1e-3) for s in sparsities.values())  # 1 % of accuracy on these lines
    else:
        assert overall == pytest.approx(sparsity or 1 - 2_117_548 / 9_217_728, abs=1e-6)


def test_given_sparsities_are_those_of_a_run(tmp_path: Path) -> None:
    layers = [{"name": name, "weights": math.prod(shape), "nonzero": 5} for name, shape in SHAPES.items()]
    (tmp_path / "metrics.json").write_text(json.dumps({"layers": layers}))
    given = allocation.sparsities_of(tmp_path)
    chosen = allocation.choose("given", some_weights(), 0.5, {}, 0.9, 0.01, given=given)
    assert {name: round((1 - s) * math.prod(SHAPES[name])) for name, s in chosen.items()} == dict.fromkeys(SHAPES, 5)
    with pytest.raises(RunError, match="not the layers a, b"):
        allocation.choose("given", some_weights(), 0.5, {}, 0.9, 0.01, given={"x": 0.5})
    (tmp_path / "metrics.json").write_text(json.dumps({"layers": [{"name": "a"}]}))
    with pytest.raises(RunError, match=r"metrics.json: damaged \(layers"):
        allocation.sparsities_of(tmp_path)


def test_overall_sparsity_weighs_layers_by_their_size() -> None:
    weights = {"a": torch.ones(10), "b": torch.ones(30)}
    assert allocation.overall_sparsity(weights, {"a": 0.5, "b": 0.9}) == pytest.approx((5 + 27) / 40)


def test_a_new_rule_as_the_docs_show_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    example = re.search(r"^def spread\(.*\n.*\n", page, re.MULTILINE)
    assert example
    names = dict(vars(allocation))
    exec(example[0], names)
    weights = some_weights()
    sparsities = names["spread"](weights, 0.9)
    target = 0.9 * sum(weight.numel() for weight in weights.values())
    assert abs(pruned_weights(weights, sparsities) - target) <= len(weights)
