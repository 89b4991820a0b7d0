"""Which masks apply at which step of the fine-tuning: one-shot before its first step, or gradually while it runs.

A schedule only answers. `pruning/train.py` asks it after every step and applies the masks that it returns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from common.device import stream_seed
from pruning.allocation import ONE_THRESHOLD, RULES, Allocation, Sparsities, first_layer_dense, overall_sparsity
from pruning.masks import Masks, exchange, magnitude_masks, random_masks
from pruning.settings import Settings


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """The masks of one fine-tuning.

    One-shot: the final masks apply from the start. Gradual: all weights are kept at the start, and a pruning follows
    every `every` steps, or more often if there would be fewer than ten. The last one comes after the fraction
    `gradual_fraction` of all steps and reaches the final sparsities.
    """

    allocation: Allocation
    sparsities: Sparsities  # the final ones, by layer
    gradual: bool
    gradual_fraction: float
    every: int
    regrow: float  # fraction of each layer's kept weights to exchange; a pruning exchanges its `cosine_share`
    seed: int  # of the random masks
    keep_first_layer: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, sparsities: Sparsities) -> MaskSchedule:
        """Returns the schedule that `settings` describe, with these final sparsities."""
        return cls(
            allocation=settings.allocation,
            sparsities=sparsities,
            gradual=settings.schedule == "gradual",
            gradual_fraction=settings.gradual_fraction,
            every=settings.gradual_every,
            regrow=settings.regrow,
            seed=stream_seed(settings.seed, "random masks"),
            keep_first_layer=settings.keep_first_layer,
        )

    def first_masks(self, weights: Mapping[str, Tensor]) -> Masks:
        """Returns the masks before the first step of the fine-tuning."""
        if self.gradual:
            return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        return self.final_masks(weights)

    def final_masks(self, weights: Mapping[str, Tensor]) -> Masks:
        """Returns the masks that prune `weights` to the final sparsities at once."""
        return self._masks(1.0, weights, None)

    def is_due(self, step: int, total_steps: int) -> bool:
        """Returns whether a pruning follows step `step`, counted from 1, of a fine-tuning of `total_steps`."""
        last = self._last_pruning(total_steps)
        every = max(1, min(self.every, last // 10))
        return self.gradual and step <= last and (step % every == 0 or step == last)

    def masks_at(self, step: int, total_steps: int, weights: Mapping[str, Tensor], kept: Masks) -> Masks | None:
        """Returns the masks of the pruning that follows `step`, nested in the masks `kept` so far; None if none is due.

        `weights` are those after the step, with the dropped ones at zero.
        """
        if not self.is_due(step, total_steps):
            return None
        return self._masks(cubic_sparsity(step / self._last_pruning(total_steps)), weights, kept)

    def regrown_at(self, step: int, total_steps: int, weights: Mapping[str, Tensor], kept: Masks) -> Masks | None:
        """Returns the masks after the exchange that follows the pruning at `step` (GraNet, Liu et al. 2021).

        `kept` are the masks of that pruning; `weights` hold the step's gradients. None if no exchange is due.
        """
        if not self.regrow or not self.is_due(step, total_steps):
            return None
        return exchange(kept, weights, self.regrow * cosine_share(step / self._last_pruning(total_steps)))

    def _last_pruning(self, total_steps: int) -> int:
        return math.ceil(self.gradual_fraction * total_steps)

    def _masks(self, share: float, weights: Mapping[str, Tensor], kept: Masks | None) -> Masks:
        """Returns the masks for the fraction `share` of the final sparsities.

        A rule with one threshold for the whole network finds it anew on the weights as they are now, so each layer's
        sparsity follows the training. Under every other rule each layer keeps its own final sparsity.
        """
        if self.allocation in ONE_THRESHOLD:
            rule, overall = RULES[self.allocation], share * overall_sparsity(weights, self.sparsities)
            keep = self.keep_first_layer
            sparsities = first_layer_dense(rule, weights, overall) if keep else rule(weights, overall)
        else:
            sparsities = {name: share * sparsity for name, sparsity in self.sparsities.items()}
        if self.allocation == "random":
            return random_masks(weights, sparsities, self.seed)
        return magnitude_masks(weights, sparsities, kept)


def cubic_sparsity(done: float) -> float:
    """Returns the fraction of the final sparsity that is due when the fraction `done` of the pruning phase is over.

    s(t) = s_f + (s_i − s_f)(1 − t)³ with s_i = 0 (Zhu & Gupta 2017, Eq. 1).
    """
    return 1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** 3


def cosine_share(done: float) -> float:
    """Returns the size of an exchange relative to the first one: 1 at the start of the pruning phase, 0 at its end."""
    return (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
