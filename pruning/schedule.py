"""Which masks apply at which step: one-shot before the fine-tuning, gradually while it runs, or in rounds.

A schedule only answers. `pruning/train.py` asks it before every round and after every step, and applies the masks that
it returns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from common.device import stream_seed
from pruning.allocation import (
    ONE_THRESHOLD,
    RULES,
    Allocation,
    Sparsities,
    first_layer_dense,
    overall_sparsity,
    sparsities_at,
)
from pruning.masks import Masks, exchange, masks_from_scores, random_masks
from pruning.settings import Settings


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """The masks of a run.

    One-shot: the final masks apply from the start of the fine-tuning. Gradual: the weights that the run began with are
    kept at its start, and a pruning follows every `every` steps, or more often if there would be fewer than ten. The
    last one comes after the fraction `gradual_fraction` of all steps and reaches the final sparsities. Iterative: each
    of the `rounds` prunes the same fraction of what is left, and the last one reaches the final sparsities.
    """

    allocation: Allocation
    sparsities: Sparsities  # the final ones, by layer
    gradual: bool
    gradual_fraction: float
    every: int
    regrow: float  # fraction of each layer's kept weights to exchange; a pruning exchanges its `cosine_share`
    seed: int  # of the random masks
    keep_first_layer: bool = False
    random: bool = False  # masks that heed no scores
    rounds: int = 1
    start: Masks | None = None  # what a network that was given sparse had kept; its zeros never come back

    @classmethod
    def from_settings(cls, settings: Settings, sparsities: Sparsities, start: Masks | None = None) -> MaskSchedule:
        """Returns the schedule that `settings` describe, with these final sparsities, from the masks `start` on."""
        return cls(
            allocation=settings.allocation,
            sparsities=sparsities,
            random="random" in (settings.allocation, settings.criterion),
            gradual=settings.schedule == "gradual",
            gradual_fraction=settings.gradual_fraction,
            every=settings.gradual_every,
            regrow=settings.regrow,
            seed=stream_seed(settings.seed, "random masks"),
            keep_first_layer=settings.keep_first_layer,
            rounds=settings.rounds if settings.schedule == "iterative" else 1,
            start=start,
        )

    def first_masks(self, scores: Mapping[str, Tensor], number: int = 1, kept: Masks | None = None) -> Masks:
        """Returns the masks before the first step of round `number`, counted from 1, nested in the masks `kept`.

        `scores`, here and below, are those of the weights as they are (`pruning/criteria.py`): the lowest are dropped.
        """
        kept = self.start if kept is None else kept
        if self.gradual:
            return kept or {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
        return self._masks(lambda first, last: geometric_sparsity(first, last, number / self.rounds), scores, kept)

    def final_masks(self, scores: Mapping[str, Tensor]) -> Masks:
        """Returns the masks that prune to the final sparsities at once."""
        return self._masks(lambda first, last: last, scores, self.start)

    def is_due(self, step: int, total_steps: int) -> bool:
        """Returns whether a pruning follows step `step`, counted from 1, of a fine-tuning of `total_steps`."""
        last = self._last_pruning(total_steps)
        every = max(1, min(self.every, last // 10))
        return self.gradual and step <= last and (step % every == 0 or step == last)

    def masks_at(self, step: int, total_steps: int, scores: Mapping[str, Tensor], kept: Masks) -> Masks | None:
        """Returns the masks of the pruning that follows `step`, nested in the masks `kept` so far; None if none is due.

        The scores are those after the step, with the dropped weights at zero.
        """
        if not self.is_due(step, total_steps):
            return None
        share = cubic_sparsity(step / self._last_pruning(total_steps))
        return self._masks(lambda first, last: first + share * (last - first), scores, kept)

    def regrown_at(self, step: int, total_steps: int, weights: Mapping[str, Tensor], kept: Masks) -> Masks | None:
        """Returns the masks after the exchange that follows the pruning at `step` (GraNet, Liu et al. 2021).

        `kept` are the masks of that pruning; `weights` hold the step's gradients. None if no exchange is due.
        """
        if not self.regrow or not self.is_due(step, total_steps):
            return None
        share = self.regrow * cosine_share(step / self._last_pruning(total_steps))
        return exchange(kept, weights, share, self.start)

    def _last_pruning(self, total_steps: int) -> int:
        return math.ceil(self.gradual_fraction * total_steps)

    def _masks(
        self, between: Callable[[float, float], float], scores: Mapping[str, Tensor], kept: Masks | None
    ) -> Masks:
        """Returns the masks at the sparsities `between` the first ones and the final ones, nested in `kept`.

        A rule with one threshold for the whole network finds it anew on the scores as they are now, so each layer's
        sparsity follows the training. Under every other rule, and with random masks, each layer goes to its own final
        sparsity.
        """
        first = dict.fromkeys(scores, 0.0) if self.start is None else sparsities_at(self.start)
        if self.allocation in ONE_THRESHOLD and not self.random:
            rule = RULES[self.allocation]
            overall = between(overall_sparsity(scores, first), overall_sparsity(scores, self.sparsities))
            sparsities = first_layer_dense(rule, scores, overall) if self.keep_first_layer else rule(scores, overall)
        else:
            sparsities = {name: between(first[name], last) for name, last in self.sparsities.items()}
        if self.random:  # the same random numbers at each pruning, so the masks are nested
            return random_masks(scores, sparsities, self.seed, self.start)
        return masks_from_scores(scores, sparsities, kept)


def cubic_sparsity(done: float) -> float:
    """Returns the fraction of the final sparsity that is due when the fraction `done` of the pruning phase is over.

    s(t) = s_f + (s_i − s_f)(1 − t)³ with s_i = 0 (Zhu & Gupta 2017, Eq. 1).
    """
    return 1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** 3


def geometric_sparsity(first: float, last: float, done: float) -> float:
    """Returns the sparsity after the fraction `done` of the rounds, if each keeps the same fraction of what is left.

    1 − s = (1 − s_i) ((1 − s_f) / (1 − s_i))^done (Frankle & Carbin 2019, section 1, with s_i = 0).
    """
    return last if done >= 1 or first >= last else 1 - (1 - first) * ((1 - last) / (1 - first)) ** done


def cosine_share(done: float) -> float:
    """Returns the size of an exchange relative to the first one: 1 at the start of the pruning phase, 0 at its end."""
    return (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
