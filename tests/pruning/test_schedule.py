"""The schedule of masks: when prunings are due, how much they prune, and that it is what a naive version does."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.device import stream_seed
from pruning.allocation import RULES, Sparsities, choose, overall_sparsity, uniform
from pruning.masks import Masks, apply_masks, magnitude_mask, magnitude_masks, mask_from_scores, random_masks
from pruning.schedule import MaskSchedule, cosine_share, cubic_sparsity
from pruning.settings import Settings
from tests.pruning.schedules import SHAPES, dropped, random_step, schedule_of, scores_of, some_weights, trained


def due_steps(schedule: MaskSchedule, total_steps: int) -> list[int]:
    return [step for step in range(1, total_steps + 1) if schedule.is_due(step, total_steps)]


# -- when ------------------------------------------------------------------------------------------------------------


def test_prunings_come_every_k_steps_and_at_the_last_step_of_the_phase(generator: torch.Generator) -> None:
    schedule = schedule_of(some_weights(generator), gradual_every=50, gradual_fraction=0.7)
    assert due_steps(schedule, 1000) == [*range(50, 701, 50)]
    assert due_steps(schedule, 1100) == [*range(50, 770, 50), 770]  # the last one is no multiple of 50


@pytest.mark.parametrize(
    ("total_steps", "fraction", "due"),
    [
        (40, 0.7, [*range(2, 29, 2)]),  # 28 steps: 50 would be too seldom, ten prunings at least
        (8, 0.7, [1, 2, 3, 4, 5, 6]),  # fewer than ten steps: one after each
        (1, 0.7, [1]),
        (30, 1.0, [*range(3, 31, 3)]),
        (1000, 1e-6, [1]),
    ],
)
def test_short_trainings(total_steps: int, fraction: float, due: list[int], generator: torch.Generator) -> None:
    schedule = schedule_of(some_weights(generator), gradual_fraction=fraction)
    assert due_steps(schedule, total_steps) == due


@given(total=st.integers(1, 3000), every=st.integers(1, 200), fraction=st.floats(0.01, 1))
def test_due_steps_in_closed_form(total: int, every: int, fraction: float) -> None:
    schedule = MaskSchedule("uniform", {}, True, fraction, every, 0.0, 0)
    last = math.ceil(fraction * total)
    due = due_steps(schedule, total)
    assert due[-1] == last
    assert len(due) >= min(10, last)
    gaps = {after - before for before, after in zip([0, *due[:-1]], due[:-1], strict=False)}
    assert len(gaps) <= 1  # evenly spaced, but for the last one
    assert all(gap <= every for gap in gaps)
    if last >= 10 * every:
        assert due == sorted({*range(every, last + 1, every), last})


def test_one_shot_is_never_due(generator: torch.Generator) -> None:
    weights = some_weights(generator)
    schedule = schedule_of(weights, schedule="one-shot")
    assert due_steps(schedule, 100) == []
    assert schedule.masks_at(70, 100, weights, {}) is None
    assert schedule.regrown_at(70, 100, weights, {}) is None
    final = magnitude_masks(weights, schedule.sparsities)
    assert all(torch.equal(mask, final[name]) for name, mask in schedule.first_masks(scores_of(weights)).items())


@pytest.mark.parametrize("allocation", ["global", "lamp", "uniform", "random"])
def test_a_first_layer_kept_dense_is_never_pruned(allocation: str, generator: torch.Generator) -> None:
    weights = some_weights(generator)
    settings = Settings(schedule="gradual", allocation=allocation, keep_first_layer=True)  # type: ignore[arg-type]
    sparsities = choose(settings.allocation, weights, 0.9, {}, 0.9, 0.01, keep_first_layer=True)
    steps = list(trained(MaskSchedule.from_settings(settings, sparsities), weights, 20))
    assert all(masks["a"].all() for _, masks in steps)
    total = sum(weight.numel() for weight in weights.values())
    assert dropped(steps[-1][1]) == pytest.approx(0.9 * total, abs=len(weights))


# -- how much --------------------------------------------------------------------------------------------------------


def test_cubic_schedule() -> None:
    assert cubic_sparsity(0) == 0
    assert cubic_sparsity(0.5) == pytest.approx(0.875)  # Zhu & Gupta 2017, Eq. 1, at half time
    assert cubic_sparsity(1) == cubic_sparsity(1.4) == 1


def test_exchanges_fade() -> None:
    assert [cosine_share(done) for done in (0, 0.5, 1, 2)] == pytest.approx([1, 0.5, 0, 0])


def test_sparsity_follows_the_cubic_curve_to_the_last_weight(generator: torch.Generator) -> None:
    weights = some_weights(generator)
    schedule = schedule_of(weights, gradual_every=2, gradual_fraction=0.5)
    for step, masks in trained(schedule, weights, 40):
        done = min(step - step % 2, 20) / 20
        for name, mask in masks.items():
            assert int((~mask).sum()) == round((1 - (1 - done) ** 3) * schedule.sparsities[name] * mask.numel())


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp", "erk", "random"])
def test_masks_are_nested(allocation: str, generator: torch.Generator) -> None:
    weights = some_weights(generator)
    schedule = schedule_of(weights, allocation=allocation, gradual_every=3)
    before, counts = schedule.first_masks(weights), set[int]()
    assert dropped(before) == 0
    for _, masks in trained(schedule, weights, 30):
        assert not any((masks[name] & ~before[name]).any() for name in masks)
        counts.add(dropped(masks))
        before = masks
    assert len(counts) > 5
    total = sum(mask.numel() for mask in before.values())
    assert dropped(before) == pytest.approx(0.9 * total, abs=len(before))


@pytest.mark.parametrize("schedule_name", ["one-shot", "gradual"])
def test_random_masks_ignore_the_weights_and_differ_by_seed(schedule_name: str, generator: torch.Generator) -> None:
    weights = some_weights(generator)
    more: dict[str, Any] = {"allocation": "random", "schedule": schedule_name}
    schedule = schedule_of(weights, **more)
    expected = random_masks(weights, schedule.sparsities, stream_seed(0, "random masks"))
    for _, masks in trained(schedule, weights, 20):
        last = masks
    assert all(torch.equal(last[name], mask) for name, mask in expected.items())
    other = schedule_of(weights, **more, seed=1).final_masks(weights)
    assert not all(torch.equal(other[name], mask) for name, mask in expected.items())


def test_regrowth_exchanges_the_cosine_share_and_leaves_the_counts(generator: torch.Generator) -> None:
    weights = some_weights(generator)
    schedule = schedule_of(weights, regrow=0.5, gradual_every=2, gradual_fraction=1.0)
    random_step(weights, generator)
    for step in (10, 14, 18, 20):
        scores = scores_of(weights)
        pruned = schedule.masks_at(step, 20, scores, schedule.first_masks(scores))
        assert pruned is not None
        after = schedule.regrown_at(step, 20, weights, pruned)
        assert after is not None
        for name, mask in pruned.items():
            kept, gone = int(mask.sum()), int((~mask).sum())
            leaving = min(round(0.5 * (1 + math.cos(math.pi * step / 20)) / 2 * kept), gone)
            assert int(after[name].sum()) == kept
            assert int((mask & ~after[name]).sum()) <= leaving  # some may have come back at once
            assert bool((mask & ~after[name]).any()) == (leaving > 0)
        assert schedule.regrown_at(step - 1, 20, weights, pruned) is None
        assert dataclasses.replace(schedule, regrow=0.0).regrown_at(step, 20, weights, pruned) is None


@pytest.mark.parametrize("allocation", ["global", "lamp", "erk"])
def test_one_threshold_follows_the_weights(allocation: str, generator: torch.Generator) -> None:
    """Between two prunings one layer grows: one threshold spares it, a layer's own sparsity does not."""
    chosen = Settings(allocation=allocation, sparsity=0.9, schedule="gradual")  # type: ignore[arg-type]
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    sparsities = choose(chosen.allocation, weights, chosen.sparsity, {}, 0.9, chosen.accuracy_budget)
    schedule = MaskSchedule.from_settings(chosen, sparsities)
    dense = schedule.final_masks(scores_of(weights))
    assert {name: int((~mask).sum()) / mask.numel() for name, mask in dense.items()} == sparsities
    half = schedule.masks_at(14, 100, scores_of(weights), schedule.first_masks(weights))
    assert half is not None
    apply_masks(weights, half)
    grown = "b"
    weights[grown] *= 3 if allocation == "global" else weights[grown].abs()  # LAMP's score is blind to a layer's scale
    after = schedule.masks_at(70, 100, scores_of(weights), half)
    assert after is not None
    assert all(not (after[name] & ~half[name]).any() for name in after)
    total = sum(mask.numel() for mask in after.values())
    assert dropped(after) == pytest.approx(0.9 * total, abs=len(after))
    moved = int(after[grown].sum()) != int(dense[grown].sum())
    assert moved == (allocation != "erk")


# -- against a naive version -----------------------------------------------------------------------------------------


def naive(settings: Settings, sparsities: Sparsities, weights: dict[str, Tensor], total: int) -> Iterator[Masks]:
    """One loop over the steps with every formula in place, and no schedule."""
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    last = math.ceil(settings.gradual_fraction * total)
    every = max(1, min(settings.gradual_every, last // 10))
    for step in range(1, total + 1):
        random_step(weights, generator)
        for name, mask in masks.items():
            weights[name][~mask] = 0
        if step <= last and (step % every == 0 or step == last):
            share = 1 - (1 - step / last) ** 3
            due = {name: share * sparsity for name, sparsity in sparsities.items()}
            if settings.allocation in ("global", "lamp"):
                due = RULES[settings.allocation](weights, share * overall_sparsity(weights, sparsities))
            masks = {name: magnitude_mask(weight, due[name], masks[name]) for name, weight in weights.items()}
            if settings.allocation == "random":
                stream = torch.Generator().manual_seed(stream_seed(settings.seed, "random masks"))
                scores = {name: torch.rand(weight.shape, generator=stream) for name, weight in weights.items()}
                masks = {name: mask_from_scores(score, due[name]) for name, score in scores.items()}
            for name, mask in masks.items():
                weights[name][~mask] = 0
            for name, weight in weights.items() if settings.regrow else ():
                magnitudes, order = weight.abs().flatten(), weight.grad.abs().flatten().argsort(descending=True)  # type: ignore[union-attr]
                kept = sorted(masks[name].flatten().nonzero().flatten().tolist(), key=lambda i: float(magnitudes[i]))
                share = settings.regrow * (1 + math.cos(math.pi * step / last)) / 2
                leaving = min(round(share * len(kept)), weight.numel() - len(kept))
                staying = set(kept[leaving:])
                coming = [i for i in order.tolist() if i not in staying][:leaving]
                mask = torch.zeros(weight.numel(), dtype=torch.bool)
                mask[[*staying, *coming]] = True
                masks[name] = mask.view(weight.shape)
                weight[~masks[name]] = 0
        yield masks


@pytest.mark.parametrize(
    "more",
    [
        {"allocation": "uniform"},
        {"allocation": "global"},
        {"allocation": "random", "seed": 3},
        {"allocation": "lamp", "regrow": 0.5, "gradual_every": 2},
        {"allocation": "erk", "regrow": 0.9, "gradual_fraction": 1.0, "gradual_every": 3},
    ],
)
def test_same_masks_as_a_naive_version_after_every_step(more: dict[str, Any], generator: torch.Generator) -> None:
    weights = some_weights(generator)
    settings = Settings(**{"schedule": "gradual", **more})
    rule = RULES.get(settings.allocation, uniform)
    sparsities = rule(weights, 0.9)
    schedule = MaskSchedule.from_settings(settings, sparsities)
    expected = naive(settings, sparsities, copy.deepcopy(weights), 31)
    for (step, masks), wanted in zip(trained(schedule, weights, 31), expected, strict=True):
        assert all(torch.equal(mask, wanted[name]) for name, mask in masks.items()), step
