"""Whole filters: what ranks them, their masks, and that a dropped filter stays silent while the network trains."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.experiment import Run
from common.training import TrainState
from pruning import train as training
from pruning.allocation import RULES, overall_sparsity
from pruning.filters import (
    Importance,
    clear_filters,
    filter_counts,
    filter_importance,
    filter_mask,
    kept_filters,
    ranked,
    ranked_masks,
    weight_masks,
)
from pruning.masks import Masks, magnitude_masks
from pruning.schedule import MaskSchedule
from pruning.sensitivity import scan
from pruning.smaller import smaller_network
from pruning.train import fine_tune
from pruning.vgg import VGG11, prunable_layers, prunable_weights, widths_of
from tests.pruning.small import few_digits, settings

CPU = torch.device("cpu")
WIDTHS = (6, 8, 8, 8, 10, 8, 8, 12)


@pytest.fixture
def narrow() -> VGG11:
    """A narrow network as after some training: no parameter is 0, and its batch-norm statistics are those of images."""
    torch.manual_seed(0)
    network = VGG11(initialisation="default", widths=WIDTHS)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.3, 1.5) if name.endswith("weight") else parameter.normal_()
    network(torch.randn(32, 3, 32, 32))
    return network.eval()


def masks_at(network: VGG11, sparsity: float, importance: Importance = "l2", rule: str = "uniform") -> Masks:
    scores = ranked(network, importance)
    return weight_masks(network, magnitude_masks(scores, RULES[rule](scores, sparsity)), importance)


def test_importances_by_hand() -> None:
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 1.0]]).view(2, 2, 1, 1))
        norm.weight.copy_(torch.tensor([-0.5, 1.5]))
    of = {name: filter_importance(conv, norm, name) for name in ("l2", "l1", "batch-norm")}  # type: ignore[arg-type]
    torch.testing.assert_close(of["l2"], torch.tensor([5.0, 1.0]) / 3)
    torch.testing.assert_close(of["l1"], torch.tensor([7.0, 1.0]) / 4)
    torch.testing.assert_close(of["batch-norm"], torch.tensor([0.5, 1.5]) / 1)
    torch.nn.init.zeros_(conv.weight)
    assert torch.equal(filter_importance(conv, norm, "l2"), torch.zeros(2))


def test_single_weights_are_ranked_as_they_are(narrow: VGG11) -> None:
    weights = prunable_weights(narrow)
    assert all(weight is weights[name] for name, weight in ranked(narrow, None).items())
    masks = magnitude_masks(weights, dict.fromkeys(weights, 0.5))
    assert weight_masks(narrow, masks, None) is masks is ranked_masks(masks, None)


@pytest.mark.parametrize("importance", ["l2", "l1", "batch-norm"])
@pytest.mark.parametrize("rule", ["uniform", "global", "lamp"])
def test_masks_drop_whole_filters_and_their_inputs_to_the_next_layer(
    narrow: VGG11, importance: Importance, rule: str
) -> None:
    scores = ranked(narrow, importance)
    masks = masks_at(narrow, 0.5, importance, rule)
    inputs = torch.ones(3, dtype=torch.bool)
    for name, weight in prunable_weights(narrow).items():
        assert masks[name].shape == weight.shape
        assert masks[name].stride() == weight.stride()
        outputs = kept_filters(masks)[name]
        assert 1 <= outputs.sum() < len(outputs) or rule != "uniform"
        assert torch.equal(masks[name], (outputs[:, None] & inputs)[..., None, None].expand_as(weight))
        if outputs.any() and not outputs.all():
            assert scores[name][outputs].min() >= scores[name][~outputs].max()
        inputs = outputs
    assert ranked_masks(masks, importance).keys() == masks.keys()
    counts = filter_counts(masks.values())
    assert counts["filters"] == sum(WIDTHS)
    assert counts["filters_left"] == sum(WIDTHS) - round(0.5 * sum(WIDTHS)) or rule != "global"
    assert counts["filter_sparsity"] == 1 - counts["filters_left"] / sum(WIDTHS)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
def test_a_filter_always_stays(narrow: VGG11, sparsity: float) -> None:
    assert all(filter_mask(scores, sparsity).any() for scores in ranked(narrow, "l2").values())
    for rule in ("uniform", "global", "lamp"):
        kept = kept_filters(masks_at(narrow, min(sparsity, 0.99), rule=rule))
        assert all(of.any() for of in kept.values())


def test_one_threshold_does_not_take_a_layer_for_its_small_fan_in() -> None:
    """Filters of the first layer have 27 weights, so their norms are smaller; all layers are drawn alike."""
    network = VGG11(initialisation="default", widths=[64] * 8)
    for weight in prunable_weights(network).values():
        torch.nn.init.normal_(weight)
    scores = ranked(network, "l2")
    assert overall_sparsity(scores, RULES["global"](scores, 0.4)) == pytest.approx(0.4, abs=0.01)
    assert RULES["global"](scores, 0.4)["features.0"] == pytest.approx(0.4, abs=0.15)


def test_a_dropped_filter_puts_out_exactly_zero_and_has_no_gradient(narrow: VGG11) -> None:
    masks = masks_at(narrow, 0.5)
    clear_filters(narrow, masks)
    maps = torch.randn(4, 3, 32, 32)
    kept = list(kept_filters(masks).values())
    layers = iter(kept)
    for module in narrow.features:
        maps = module(maps)
        if isinstance(module, nn.ReLU):
            dropped = ~next(layers)
            assert not maps[:, dropped].any()
            assert maps[:, ~dropped].any()
    narrow.head(maps).square().sum().backward()
    assert not narrow.classifier.weight[:, ~kept[-1]].any()
    for name, conv in prunable_layers(narrow).items():
        gone = ~kept_filters(masks)[name]
        norm = narrow.features[int(name.removeprefix("features.")) + 1]
        for parameter in (conv.weight, conv.bias, norm.weight, norm.bias):
            assert isinstance(parameter, Tensor)
            assert not parameter[gone].any()
            assert parameter.grad is not None
            assert not parameter.grad[gone].any()


@pytest.mark.parametrize("importance", ["l1", "batch-norm"])
def test_the_scan_is_that_of_networks_without_the_filters(narrow: VGG11, importance: Importance) -> None:
    """The reference removes the filters of one layer from a copy, and passes the images through what is left."""
    images = torch.randn(60, 3, 32, 32)
    labels = narrow(images).argmax(1)  # so every prediction that pruning changes counts
    before = copy.deepcopy(narrow.state_dict())
    curves = scan(narrow, lambda rows: images[rows], labels, sparsities=(0.25, 0.99), importance=importance)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.state_dict().items())
    for layer, curve in curves.items():
        for sparsity, accuracy in curve.items():
            kept = {name: torch.ones(len(w), dtype=torch.bool) for name, w in prunable_weights(narrow).items()}
            kept[layer] = filter_mask(ranked(narrow, importance)[layer], float(sparsity))
            smaller = smaller_network(narrow, weight_masks(narrow, kept, importance))
            assert accuracy == pytest.approx(float((smaller(images).argmax(1) == labels).float().mean()))
    assert min(curve["0.99"] for curve in curves.values()) < 1


@pytest.mark.parametrize(("schedule", "allocation"), [("one-shot", "uniform"), ("gradual", "global")])
def test_dropped_filters_stay_silent_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, allocation: str
) -> None:
    digits = few_digits()
    chosen = settings(
        tmp_path, granularity="filter", schedule=schedule, allocation=allocation, sparsity=0.5, ema_decay=0.9
    )
    network = VGG11(widths=WIDTHS)
    scores = ranked(network, "l2")
    seen: list[Masks] = []
    original = training.fit

    def watched_fit(*arguments, after_step, **more):  # type: ignore[no-untyped-def]
        def watch(state: TrainState) -> None:
            after_step(state)
            kept = kept_filters(state.carried)
            for of in (state.model, state.average):
                assert isinstance(of, VGG11)
                if schedule == "one-shot":  # trained without the filters
                    assert widths_of(of.state_dict()) == tuple(int(left.sum()) for left in kept.values())
                    continue
                cleared = copy.deepcopy(of)
                clear_filters(cleared, state.carried)
                assert all(torch.equal(a, b) for a, b in zip(of.parameters(), cleared.parameters(), strict=True))
            seen.append(kept)

        return original(*arguments, after_step=watch, **more)

    monkeypatch.setattr(training, "fit", watched_fit)
    plan = MaskSchedule.from_settings(chosen, RULES[allocation](scores, 0.5))
    masks = fine_tune(Run(chosen, "pruning", "x", CPU), chosen, digits, network, plan)
    assert filter_counts(masks.values())["filters_left"] == pytest.approx(sum(WIDTHS) / 2, abs=2)
    assert all(not (b[n] & ~a[n]).any() for a, b in itertools.pairwise(seen) for n in a)  # none comes back
    left = [sum(int(kept.sum()) for kept in step.values()) for step in seen]
    assert len(left) == 8
    assert len(set(left)) == 1 if schedule == "one-shot" else len(set(left)) > 3
    cleared = copy.deepcopy(network)
    clear_filters(cleared, masks)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), cleared.parameters(), strict=True))
    for name, weight in prunable_weights(network).items():
        kept = masks[name].flatten(1).any(1)  # one behind silent filters has a constant input, which teaches it nothing
        assert weight[kept].flatten(1).any(1).all()
