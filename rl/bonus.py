"""The bonus: what SAC gets of the curiosity module's raw error, and how much of it.

A plain bonus is never negative, so with one value for both rewards it pays for staying alive as such. Two ways out:

- `--no-bonus-episodic`: a second value head, in which the intrinsic return goes on after a termination, with the first
  state of the next episode, while the extrinsic one stops (Burda et al. 2018, section 2.3; `rl.sac.intrinsic_target`).
- `--bonus centred`, for one critic: bonuses b − b̄ that end at a termination have, up to the constant b̄/(1 − γ), the
  values of bonuses b that go on with b̄ a step for ever.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from rl.icm import RunningMoments
from rl.settings import BonusKind


def scaled(error: Tensor, moments: RunningMoments, kind: BonusKind) -> Tensor:
    """Returns the bonus `(agents, batch)` for raw errors of that shape, in running deviations.

    plain: error / deviation, never negative. centred: (error − mean) / deviation, clipped to ±1.
    """
    match kind:
        case "plain":
            return error / moments.deviation
        case "centred":
            return ((error - moments.mean) / moments.deviation).clamp(-1, 1)
        case _:
            assert_never(kind)


def weight_at(step: int, weight: float, decay: float, env_steps: int) -> float:
    """Returns the bonus's weight in environment step `step`, counted from 1.

    It falls linearly from `weight` to 0 over the first `decay` of all `env_steps`, a share; `decay` 0 keeps it.
    """
    if decay == 0:
        return weight
    return weight * max(0.0, 1 - (step - 1) / (decay * env_steps))


def share(weighted_bonus: Tensor, weighted_reward: Tensor) -> Tensor:
    """Returns mean |bonus| / (mean |bonus| + mean |reward|), `(agents,)`, both weighted and `(agents, batch)`."""
    bonus, reward = weighted_bonus.abs().mean(1), weighted_reward.abs().mean(1)
    return bonus / torch.clamp(bonus + reward, min=1e-12)
