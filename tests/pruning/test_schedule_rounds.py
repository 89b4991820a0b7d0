"""The schedule of masks in rounds, with scores other than magnitude, and from a sparse start."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.allocation import RULES, overall_sparsity, sparsities_at, uniform
from pruning.masks import Masks, apply_masks, magnitude_masks
from pruning.schedule import MaskSchedule
from pruning.settings import Settings
from pruning.sparse_start import not_below
from tests.pruning.schedules import SHAPES, dropped, random_step, schedule_of, scores_of, some_weights, trained


def in_rounds(schedule: MaskSchedule, weights: dict[str, Tensor]) -> list[Masks]:
    """The masks of every round of a training that moves the weights at random."""
    generator, kept, found = torch.Generator().manual_seed(1), None, []
    for number in range(1, schedule.rounds + 1):
        kept = schedule.first_masks(scores_of(weights), number, kept)
        apply_masks(weights, kept)
        random_step(weights, generator)
        apply_masks(weights, kept)
        found.append(kept)
    return found


@pytest.mark.parametrize("more", [{}, {"criterion": "random"}, {"allocation": "global"}])
def test_each_round_prunes_the_same_fraction_of_what_is_left(more: dict[str, Any], generator: torch.Generator) -> None:
    weights = some_weights(generator)
    schedule = schedule_of(weights, schedule="iterative", rounds=3, **more)
    rounds = in_rounds(schedule, weights)
    assert [dropped(masks) for masks in rounds] == sorted({dropped(masks) for masks in rounds})
    total = sum(mask.numel() for mask in rounds[0].values())
    for number, masks in enumerate(rounds, 1):
        assert total - dropped(masks) == pytest.approx(total * 0.1 ** (number / 3), abs=len(masks))
        if schedule.allocation == "uniform":
            assert all(m.sum() == pytest.approx(m.numel() * 0.1 ** (number / 3), abs=1) for m in masks.values())
    for before, after in itertools.pairwise(rounds):
        assert not any((after[name] & ~before[name]).any() for name in after)


def test_one_round_is_one_shot(generator: torch.Generator) -> None:
    weights = some_weights(generator)
    (once,) = in_rounds(schedule_of(weights, schedule="iterative", rounds=1), copy.deepcopy(weights))
    expected = schedule_of(weights, schedule="one-shot").first_masks(scores_of(weights))
    assert all(torch.equal(once[name], mask) for name, mask in expected.items())


@pytest.mark.parametrize("schedule_name", ["one-shot", "gradual"])
def test_the_random_allocation_is_the_random_criterion_at_its_sparsities(
    schedule_name: str, generator: torch.Generator
) -> None:
    weights = some_weights(generator)
    old = schedule_of(weights, schedule=schedule_name, allocation="random", gradual_every=3)
    new = schedule_of(weights, schedule=schedule_name, criterion="random", gradual_every=3)
    pairs = (list(trained(schedule, copy.deepcopy(weights), 10)) for schedule in (old, new))
    for (_, one), (_, other) in zip(*pairs, strict=True):
        assert all(torch.equal(one[name], mask) for name, mask in other.items())


@pytest.mark.parametrize("allocation", ["global", "lamp"])
def test_random_masks_keep_the_sparsities_of_the_dense_network(allocation: str, generator: torch.Generator) -> None:
    """The control of a rule with one threshold: the same number of weights in each layer, but any of them."""
    weights = some_weights(generator)
    sparsities = RULES[allocation](weights, 0.9)
    chosen = Settings(allocation=allocation, schedule="gradual", criterion="random")  # type: ignore[arg-type]
    for _, masks in trained(MaskSchedule.from_settings(chosen, sparsities), weights, 10):
        last = masks
    assert sparsities_at(last) == pytest.approx(sparsities)


def test_one_threshold_over_any_scores(generator: torch.Generator) -> None:
    scores = {name: torch.rand(shape, generator=generator) ** (i + 1) for i, (name, shape) in enumerate(SHAPES.items())}
    chosen = Settings(allocation="global", criterion="taylor", sparsity=0.8)
    masks = MaskSchedule.from_settings(chosen, RULES["global"](scores, 0.8)).final_masks(scores)
    lowest_kept = min(float(scores[name][mask].min()) for name, mask in masks.items())
    assert all(scores[name][~mask].max() <= lowest_kept for name, mask in masks.items())
    assert dropped(masks) == round(0.8 * sum(mask.numel() for mask in masks.values()))


@pytest.mark.parametrize("allocation", ["uniform", "global", "random"])
@pytest.mark.parametrize("schedule_name", ["one-shot", "gradual", "iterative"])
def test_zeros_of_a_sparse_start_never_come_back(
    schedule_name: str, allocation: str, generator: torch.Generator
) -> None:
    weights = some_weights(generator)
    start = magnitude_masks(weights, {"a": 0.1, "b": 0.6, "c": 0.95})  # the last layer sparser than asked for
    apply_masks(weights, start)
    chosen = Settings(allocation=allocation, sparsity=0.9, schedule=schedule_name, rounds=3, gradual_every=2)  # type: ignore[arg-type]
    sparsities = not_below(uniform(weights, 0.9), start)
    assert sparsities["c"] == sparsities_at(start)["c"] > 0.9
    schedule = MaskSchedule.from_settings(chosen, sparsities, start)
    seen = (
        in_rounds(schedule, weights)
        if schedule_name == "iterative"
        else [masks for _, masks in trained(schedule, weights, 20)]
    )
    assert dropped(seen[0]) >= dropped(start)
    for masks in (*seen, schedule.final_masks(scores_of(weights))):
        assert not any((masks[name] & ~start[name]).any() for name in masks)
    total = sum(mask.numel() for mask in start.values())
    assert dropped(seen[-1]) == pytest.approx(overall_sparsity(weights, sparsities) * total, abs=len(start))
