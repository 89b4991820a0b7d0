"""What all kinds of agents have in common: the rewards that they learn from, with the curiosity module's share.

SAC and DQN differ in how they value and choose actions; the intrinsic reward, its scale and its weight are the same.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from common.device import resolve_precision
from common.fast.adam import Adam
from rl.bonus import scaled, share, weight_at
from rl.icm import IntrinsicCuriosity, RandomDistillation, RunningMoments, Surprise
from rl.networks import ActingNetwork
from rl.replay import Batch, Trajectories
from rl.settings import AgentSettings


class Rewards(NamedTuple):
    """What a batch gives to learn from; of trajectories each reward has a third axis, their n steps."""

    weighted: Tensor  # (agents, batch), the task's, weighted
    bonus: Tensor | None  # (agents, batch), the intrinsic one, in running deviations, not weighted; None without one
    curiosity_loss: Tensor | float  # (agents,)
    measured: dict[str, Tensor]  # name → (agents,)


class Agents(nn.Module, abc.ABC):
    """All agents of a run: their curiosity, their optimisers, and the network that acts for them."""

    settings: AgentSettings
    optimizers: tuple[Adam, ...]
    bonus_weight: Tensor  # (), the weight of the intrinsic reward now

    def __init__(self, settings: AgentSettings, obs_dim: int, device: torch.device) -> None:
        super().__init__()
        self.settings = settings
        self.seen = settings.seen_by_icm(obs_dim)
        self.hidden_dtype = getattr(torch, resolve_precision(settings.precision, device))

    @property
    @abc.abstractmethod
    def policy(self) -> ActingNetwork:
        """The network that acts."""

    @abc.abstractmethod
    def act(self, *given: Any) -> Tensor:
        """Returns actions `(agents, action)` for observations `(agents, obs)` and numbers that they are drawn with."""

    def begin_curiosity(self, action_dim: int, generators: Sequence[torch.Generator]) -> None:
        """Makes the curiosity module that the settings name; after the networks, whose weights are drawn first."""
        settings = self.settings
        self.curiosity = build_curiosity(settings, self.seen, action_dim, generators)
        self.intrinsic = RunningMoments(len(generators), horizon=settings.deviation_horizon)
        # Not saved: a function of the step. A tensor, since a CUDA graph reads it anew at each replay.
        self.register_buffer("bonus_weight", torch.tensor(settings.intrinsic_weight), persistent=False)

    def curiosity_group(self) -> list[tuple[Iterable[nn.Parameter], float]]:
        """Returns what the curiosity module has to learn, with its learning rate, for `Adam`; nothing without one."""
        if self.curiosity is None:
            return []
        return [([p for p in self.curiosity.parameters() if p.requires_grad], self.settings.icm_learning_rate)]

    def rewards(self, batch: Batch | Trajectories, shuffle: Tensor) -> Rewards:
        """Returns both rewards, the curiosity module's loss and measurements; both of the transitions sampled.

        The intrinsic reward is computed anew for every sampled batch, of trajectories for all their transitions.
        """
        first = batch.first
        weighted = self.settings.extrinsic_weight * batch.reward
        measured = {"extrinsic_reward": first.reward.mean(1)}
        if self.curiosity is None:
            return Rewards(weighted, None, 0.0, measured)
        surprise: Surprise = self.curiosity(first.seeing(self.seen))
        error = surprise.error
        if isinstance(batch, Trajectories):
            with torch.no_grad():
                later = self.curiosity(batch.later.seeing(self.seen)).error
            error = torch.cat([error[..., None], later.unflatten(1, (error.shape[1], -1))], dim=2)
        intrinsic = self.intrinsic_reward(error, shuffle)
        part = share(self.bonus_weight * of_first(intrinsic), of_first(weighted))
        measured |= surprise.measured | {"intrinsic_reward": of_first(intrinsic).mean(1), "bonus_share": part}
        return Rewards(weighted, intrinsic, surprise.loss, measured)

    def total_reward(self, rewards: Rewards) -> Tensor:
        """Returns w_e·extrinsic + w_i·intrinsic; without an intrinsic reward the first alone."""
        if rewards.bonus is None:
            return rewards.weighted
        return rewards.weighted + self.bonus_weight * rewards.bonus

    def weigh_bonus(self, step: int) -> None:
        """Sets the intrinsic reward's weight to that of environment step `step`."""
        if self.settings.bonus_decay > 0:
            chosen = self.settings
            self.bonus_weight.fill_(weight_at(step, chosen.intrinsic_weight, chosen.bonus_decay, chosen.env_steps))

    def intrinsic_reward(self, error: Tensor, shuffle: Tensor) -> Tensor:
        """Returns the bonus for `error` `(agents, batch)`, in running deviations, see `rl.bonus.scaled`.

        With `--icm random` an agent's errors change places within its batch, in the order of `shuffle`'s ranks. Errors
        `(agents, batch, n)` of trajectories change places together.
        """
        self.intrinsic.update(of_first(error))
        if self.settings.icm == "random":
            order = shuffle.argsort(1).view(*shuffle.shape, *[1] * (error.ndim - 2))
            error = error.take_along_dim(order, dim=1)
        return scaled(error.flatten(1), self.intrinsic, self.settings.bonus).view_as(error)

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns what the curiosity module says of itself, name → `(agents,)`; nothing where it has no diagnostics."""
        diagnose = getattr(self.curiosity, "diagnostics", None)
        return diagnose(batch.seeing(self.seen)) if diagnose is not None else {}


def of_first(values: Tensor) -> Tensor:
    """Returns the values of the transitions sampled, `(agents, batch)`, of trajectories' `(agents, batch, n)` too."""
    return values if values.ndim == 2 else values[..., 0]


def build_curiosity(
    settings: AgentSettings, obs_dim: int, action_dim: int, generators: Sequence[torch.Generator]
) -> nn.Module | None:
    """Returns the curiosity module that `--icm` names; a new one needs a class in `rl/icm.py` and a case here."""
    match settings.icm:
        case "none":
            return None
        case "rnd":
            return RandomDistillation(obs_dim, settings.feature_size, settings.icm_width, generators)
        case "single" | "stacked" | "random":
            return IntrinsicCuriosity(
                obs_dim,
                action_dim,
                settings.window,
                settings.feature_size,
                settings.icm_width,
                settings.forward_width or settings.icm_width,
                settings.forward_share,
                generators,
            )
        case _:
            assert_never(settings.icm)
