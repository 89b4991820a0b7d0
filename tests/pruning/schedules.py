"""Three small layers, schedules of masks for them, and a training that moves their weights at random."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pruning.allocation import uniform
from pruning.masks import Masks, apply_masks
from pruning.schedule import MaskSchedule
from pruning.settings import Settings

SHAPES = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (32, 16, 3, 3)}


def some_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """Three small layers, the later ones with larger weights."""
    return {name: torch.randn(shape, generator=generator) * (i + 1) for i, (name, shape) in enumerate(SHAPES.items())}


def schedule_of(weights: dict[str, Tensor], sparsity: float = 0.9, **settings: Any) -> MaskSchedule:
    chosen = Settings(**{"schedule": "gradual", "allocation": "uniform", **settings})
    return MaskSchedule.from_settings(chosen, uniform(weights, sparsity))


def scores_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.abs() for name, weight in weights.items()}


def trained(schedule: MaskSchedule, weights: dict[str, Tensor], total_steps: int) -> Iterator[tuple[int, Masks]]:
    """The masks after every step of a training that moves the weights at random, as a fine-tuning applies them."""
    generator = torch.Generator().manual_seed(1)
    masks = schedule.first_masks(scores_of(weights))
    for step in range(1, total_steps + 1):
        random_step(weights, generator)
        apply_masks(weights, masks)
        masks = schedule.masks_at(step, total_steps, scores_of(weights), masks) or masks
        apply_masks(weights, masks)
        masks = schedule.regrown_at(step, total_steps, weights, masks) or masks
        apply_masks(weights, masks)
        yield step, copy.deepcopy(masks)


def random_step(weights: dict[str, Tensor], generator: torch.Generator) -> None:
    for weight in weights.values():
        weight += torch.randn(weight.shape, generator=generator)
        weight.grad = torch.randn(weight.shape, generator=generator)


def dropped(masks: Masks) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())
