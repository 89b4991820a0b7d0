"""n-step returns: the rewards of several transitions in a row before a target bootstraps (Sutton & Barto, chapter 7).

y = Σᵢ γⁱ rₜ₊ᵢ + γᵐ (1 − d)(min Q̄(sₜ₊ₘ, a′) − α log π(a′|sₜ₊ₘ)),  i < m ≤ n   (of DQN with its own value there)

m is n, or less where the episode ends before: at a termination nothing follows (d = 1), at a time limit the target
bootstraps there. The actions between are those of the replay, without correction, and the entropy of the policy counts
at sₜ₊ₘ alone. The intrinsic rewards of all m transitions count, each computed anew: with that of the first one alone, a
bonus would count at every n-th step only, and so n would change what `--intrinsic-weight` means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.replay import Batch, Replay, Trajectories
from rl.settings import AgentSettings


def sampled(
    replay: Replay, indices: Tensor, settings: AgentSettings, upcoming: Tensor | None = None
) -> Batch | Trajectories:
    """Returns what an update learns from: the transitions at `indices` `(agents, batch)` and what their targets need.

    `upcoming` `(agents, obs)`, the states to act on next, is for targets that go on after an episode's end.
    """
    if settings.n_step > 1:
        return replay.sample_trajectories(indices, settings.window, settings.n_step)
    return replay.sample(indices, settings.window, upcoming)


def whole(batch: Batch | Trajectories, reward: Tensor, discount: float) -> tuple[Batch, Tensor, float | Tensor]:
    """Returns the batch as its targets see it, the rewards in them `(agents, batch)`, and the discount after them.

    Of trajectories: a transition from the first state to the last one, Σᵢ γⁱ rᵢ of `reward` `(agents, batch, n)`, and
    γᵐ `(agents, batch)`. A batch of single transitions is as it was.
    """
    if isinstance(batch, Batch):
        return batch, reward, discount
    terminated, reached = (at_the_end(field, batch.steps) for field in (batch.terminated, batch.next_observation))
    whole_way = batch.first._replace(terminated=terminated, following=reached)
    return whole_way, discounted_sum(reward, batch.steps, discount), discount**batch.steps


def discounted_sum(rewards: Tensor, steps: Tensor, discount: float) -> Tensor:
    """Returns Σᵢ γⁱ rᵢ over the first `steps` `(agents, batch)` of `rewards` `(agents, batch, n)`."""
    ahead = torch.arange(rewards.shape[-1], device=rewards.device)
    return torch.where(ahead < steps[..., None], discount**ahead * rewards, 0.0).sum(-1)


def at_the_end(values: Tensor, steps: Tensor) -> Tensor:
    """Returns the last of the first `steps` `(agents, batch)` values of `(agents, batch, n)` or `(…, n, obs)`."""
    last = (steps - 1)[(..., *[None] * (values.ndim - 2))]
    return values.take_along_dim(last, dim=2).squeeze(2)
