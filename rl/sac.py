"""Soft actor-critic with automatic temperature (Haarnoja et al. 2018b), for all agents at once.

The targets and losses are functions of tensors, one value for each agent. `SAC` holds the networks and takes the steps
in the paper's order: critics (and curiosity) with their targets, actor and temperature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from common.device import resolve_precision
from common.fast.adam import Adam
from rl.bonus import scaled, share, weight_at
from rl.icm import IntrinsicCuriosity, RandomDistillation, RunningMoments, Surprise
from rl.networks import Actor, TwinCritic
from rl.replay import Batch, Trajectories
from rl.returns import whole
from rl.settings import Settings
from rl.streams import Noise


def soft_bellman_target(
    reward: Tensor,
    terminated: Tensor,
    next_values: Tensor,
    next_log_probability: Tensor,
    temperature: Tensor,
    discount: float | Tensor,
) -> Tensor:
    """Returns r + γ(1 − d)(min Q̄(s′, a′) − α log π(a′|s′)), `(agents, batch)` (Eqs. 3 and 6).

    `next_values` `(2, agents, batch)` are those of the target critics, `temperature` is `(agents,)`. After m rewards
    `discount` is γᵐ, `(agents, batch)`.
    """
    value = next_values.amin(0) - temperature[:, None] * next_log_probability
    return reward + discount * (1 - terminated) * value


def intrinsic_target(bonus: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """Returns b + γ min Q̄(s″, a″), `(agents, batch)`, which goes on after a termination (Burda et al. 2018).

    s″ is the next state, or the first of the next episode. `next_values` are those of the target critics' second head,
    `(2, agents, batch)`. The entropy is no part of it: it ends with the episode, as in plain SAC, and does not lose
    its weight where the bonus does.
    """
    return bonus + discount * next_values.amin(0)


def soft_bellman_residual(values: Tensor, td_target: Tensor) -> Tensor:
    """Returns ½(Q − y)², `(agents,)`: mean over the batch, sum over both critics `(2, agents, batch)` (Eq. 5)."""
    return 0.5 * (values - td_target).square().mean(-1).sum(0)


def policy_objective(log_probability: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
    """Returns the mean of α log π(a|s) − min Q(s, a) over the batch, `(agents,)` (Eq. 7)."""
    return (temperature[:, None] * log_probability - values.amin(0)).mean(-1)


def temperature_objective(log_temperature: Tensor, log_probability: Tensor, target_entropy: float) -> Tensor:
    """Returns the mean of −log α·(log π(a|s) + H̄) over the batch, `(agents,)`.

    Eq. 18 with log α in place of the factor α, as in the authors' code: the sign is the same, and the steps of log α do
    not become small with α.
    """
    return -log_temperature * (log_probability.detach().mean(-1) + target_entropy)


class Rewards(NamedTuple):
    """What a batch gives to learn from; of trajectories each reward has a third axis, their n steps."""

    weighted: Tensor  # (agents, batch), the task's, weighted
    bonus: Tensor | None  # (agents, batch), the intrinsic one, in running deviations, not weighted; None without one
    curiosity_loss: Tensor | float  # (agents,)
    measured: dict[str, Tensor]  # name → (agents,)


class SAC(nn.Module):
    """All agents: actor, critics, target critics, temperature, curiosity, their optimisers, and the update."""

    bonus_weight: Tensor  # (), the weight of the intrinsic reward now

    def __init__(
        self,
        settings: Settings,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        """Draws each agent's weights with its own generator."""
        super().__init__()
        agents = len(generators)
        self.settings = settings
        self.hidden_dtype = getattr(torch, resolve_precision(settings.precision, device))
        self.target_entropy = -float(action_dim) if settings.target_entropy is None else settings.target_entropy
        self.actor = Actor(obs_dim, action_dim, settings.hidden, settings.log_std_range, generators)
        heads = 1 if settings.bonus_episodic else 2  # of the task's reward, and of the bonus
        self.critic = TwinCritic(obs_dim, action_dim, settings.hidden, generators, heads)
        self.target_critic = TwinCritic(obs_dim, action_dim, settings.hidden, generators, heads).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        initial = torch.tensor(settings.initial_temperature).log()
        self.log_temperature = nn.Parameter(initial.repeat(agents))
        self.seen = settings.seen_by_icm(obs_dim)
        self.curiosity = build_curiosity(settings, self.seen, action_dim, generators)
        self.intrinsic = RunningMoments(agents, horizon=settings.deviation_horizon)
        # Not saved: a function of the step. A tensor, since a CUDA graph reads it anew at each replay.
        self.register_buffer("bonus_weight", torch.tensor(settings.intrinsic_weight), persistent=False)
        self.to(device)

        critic_rate = settings.critic_learning_rate or settings.learning_rate
        critic_groups: list[tuple[Iterable[nn.Parameter], float]] = [(self.critic.parameters(), critic_rate)]
        if self.curiosity is not None:
            learned = [p for p in self.curiosity.parameters() if p.requires_grad]
            critic_groups.append((learned, settings.icm_learning_rate))
        self.critic_optimizer = Adam(*critic_groups)
        self.actor_optimizer = Adam(([*self.actor.parameters(), self.log_temperature], settings.learning_rate))
        self.optimizers = (self.critic_optimizer, self.actor_optimizer)

    def update(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of everything and returns what it measured, name → `(agents,)`."""
        return self.update_critics(batch, noise) | self.update_policy(batch, noise)

    def update_critics(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of critics, curiosity and target critics; returns what it measured, name → `(agents,)`."""
        dtype, temperature = self.hidden_dtype, self.log_temperature.detach().exp()
        rewards = self.rewards(batch, noise.shuffle)
        transition, reward, discount = whole(batch, self.total_reward(rewards), self.settings.discount)

        # Critics, and beside them the curiosity module
        with torch.no_grad():
            next_action, next_log_probability = self.actor(transition.following, noise.next_action, dtype)
            next_values = self.target_critic(transition.following, next_action, dtype)
            td_target = soft_bellman_target(
                reward, transition.terminated, next_values[0], next_log_probability, temperature, discount
            )
        values = self.critic(transition.observation, transition.action, dtype)
        critic_loss = soft_bellman_residual(values[0], td_target)
        measured = rewards.measured
        if not self.settings.bonus_episodic and rewards.bonus is not None:
            bonus_target = intrinsic_target(rewards.bonus, next_values[1], self.settings.intrinsic_discount)
            critic_loss = critic_loss + soft_bellman_residual(values[1], bonus_target)
            measured["bonus_value"] = values[1][0].mean(1)
        self.critic_optimizer.descend((critic_loss + rewards.curiosity_loss).sum())

        # Target critics: Q̄ ← (1 − τ) Q̄ + τ Q, Polyak averaging
        with torch.no_grad():
            target_weights: list[Tensor] = list(self.target_critic.parameters())
            torch._foreach_lerp_(target_weights, list[Tensor](self.critic.parameters()), self.settings.target_rate)
        measured |= {"critic_loss": critic_loss, "value": values[0][0].mean(1), "temperature": temperature}
        return {name: value.detach() for name, value in measured.items()}

    def update_policy(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of actor and temperature; returns what it measured, name → `(agents,)`.

        Both in one step of one optimiser: neither loss depends on what the other one changes.
        """
        dtype, temperature = self.hidden_dtype, self.log_temperature.detach().exp()
        observation = batch.first.observation
        action, log_probability = self.actor(observation, noise.action, dtype)
        action_values = self.critic(observation, action, dtype, frozen=True)
        actor_loss = policy_objective(log_probability, action_values[0], temperature)
        if not self.settings.bonus_episodic:  # the policy maximises min Q + w·min Q of the bonus
            actor_loss = actor_loss - self.bonus_weight * action_values[1].amin(0).mean(-1)
        temperature_loss = temperature_objective(self.log_temperature, log_probability, self.target_entropy)
        self.actor_optimizer.descend((actor_loss + temperature_loss).sum())
        return {"actor_loss": actor_loss.detach(), "entropy": -log_probability.detach().mean(1)}

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
        """Returns w_e·extrinsic + w_i·intrinsic, or the first alone where the second has a value head of its own."""
        if rewards.bonus is None or not self.settings.bonus_episodic:
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

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights, also of files in which `target_critic` has its earlier name `target`."""
        renamed = {re.sub(r"^target\.", "target_critic.", name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict, assign)


def of_first(values: Tensor) -> Tensor:
    """Returns the values of the transitions sampled, `(agents, batch)`, of trajectories' `(agents, batch, n)` too."""
    return values if values.ndim == 2 else values[..., 0]


def build_curiosity(
    settings: Settings, obs_dim: int, action_dim: int, generators: Sequence[torch.Generator]
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
