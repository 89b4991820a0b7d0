"""Soft actor-critic with automatic temperature (Haarnoja et al. 2018b), for all agents at once.

The targets and losses are functions of tensors, one value for each agent. `SAC` holds the networks and takes the steps
in the paper's order: critics (and curiosity) with their targets, actor and temperature. `--critic crossq` is CrossQ
(Bhatt et al. 2024): networks that normalise, a joint pass of the critics, and no target critics.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from common.fast.adam import Adam
from rl.agents import Agents
from rl.crossq import RenormalisedMLP
from rl.networks import MLP, Actor, StackedMLP, TwinCritic
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


class SAC(Agents):
    """All agents: actor, critics, target critics, temperature, curiosity, their optimisers, and the update."""

    settings: Settings

    def __init__(
        self,
        settings: Settings,
        obs_dim: int,
        action_dim: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        """Draws each agent's weights with its own generator."""
        super().__init__(settings, obs_dim, device)
        self.target_entropy = -float(action_dim) if settings.target_entropy is None else settings.target_entropy
        mlp = mlp_of(settings)
        self.actor = Actor(obs_dim, action_dim, settings.hidden, settings.log_std_range, generators, mlp)
        heads = 1 if settings.bonus_episodic else 2  # of the task's reward, and of the bonus
        critic = functools.partial(
            TwinCritic, obs_dim, action_dim, settings.critic_hidden or settings.hidden, generators, heads, mlp
        )
        self.critic = critic()
        self.target_critic: TwinCritic | None = None  # CrossQ has none
        if settings.critic == "twin":
            self.target_critic = critic().requires_grad_(False)
            self.target_critic.load_state_dict(self.critic.state_dict())
        initial = torch.tensor(settings.initial_temperature).log()
        self.log_temperature = nn.Parameter(initial.repeat(len(generators)))
        self.begin_curiosity(action_dim, generators)
        self.to(device)

        critic_rate = settings.critic_learning_rate or settings.learning_rate
        self.critic_optimizer = Adam(
            (self.critic.parameters(), critic_rate), *self.curiosity_group(), beta1=settings.adam_beta1
        )
        self.actor_optimizer = Adam(
            ([*self.actor.parameters(), self.log_temperature], settings.learning_rate), beta1=settings.adam_beta1
        )
        self.optimizers = (self.critic_optimizer, self.actor_optimizer)

    @property
    def policy(self) -> Actor:
        """The network that acts."""
        return self.actor

    def act(self, observation: Tensor, exploration: Tensor) -> Tensor:
        """Returns actions `(agents, action)`, drawn with `exploration` `(agents, action)`, see `Actor.act`."""
        return self.actor.act(observation, exploration)

    def update(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of everything and returns what it measured, name → `(agents,)`."""
        return self.update_critics(batch, noise) | self.update_policy(batch, noise)

    def update_critics(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of critics, curiosity and target critics; returns what it measured, name → `(agents,)`."""
        dtype, temperature = self.hidden_dtype, self.log_temperature.detach().exp()
        rewards = self.rewards(batch, noise.shuffle)
        learned_from = self.total_reward(rewards) if self.settings.bonus_episodic else rewards.weighted
        transition, reward, discount = whole(batch, learned_from, self.settings.discount)

        # Critics, and beside them the curiosity module
        with torch.no_grad():
            next_action, next_log_probability = self.actor(transition.following, noise.next_action, dtype)
        pairs = transition.observation, transition.action, transition.following, next_action
        values, next_values = self.values(*pairs)
        td_target = soft_bellman_target(
            reward, transition.terminated, next_values[0], next_log_probability, temperature, discount
        )
        critic_loss = soft_bellman_residual(values[0], td_target)
        measured = rewards.measured
        if not self.settings.bonus_episodic and rewards.bonus is not None:
            bonus_target = intrinsic_target(rewards.bonus, next_values[1], self.settings.intrinsic_discount)
            critic_loss = critic_loss + soft_bellman_residual(values[1], bonus_target)
            measured["bonus_value"] = values[1][0].mean(1)
        self.critic_optimizer.descend((critic_loss + rewards.curiosity_loss).sum())

        # Target critics: Q̄ ← (1 − τ) Q̄ + τ Q, Polyak averaging
        if self.target_critic is not None:
            with torch.no_grad():
                target_weights: list[Tensor] = list(self.target_critic.parameters())
                torch._foreach_lerp_(target_weights, list[Tensor](self.critic.parameters()), self.settings.target_rate)
        measured |= {"critic_loss": critic_loss, "value": values[0][0].mean(1), "temperature": temperature}
        return {name: value.detach() for name, value in measured.items()}

    def values(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, next_action: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns the critics' values of (s, a), and those of (s′, a′) for a target, without gradient.

        The latter are the target critics', or with CrossQ those of the same critics in the same pass.
        """
        if self.target_critic is None:
            pairs = observation, action, next_observation, next_action
            return self.critic.learn_jointly(*pairs, hidden_dtype=self.hidden_dtype)
        with torch.no_grad():
            next_values = self.target_critic(next_observation, next_action, self.hidden_dtype)
        return self.critic(observation, action, self.hidden_dtype), next_values

    def update_policy(self, batch: Batch | Trajectories, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of actor and temperature; returns what it measured, name → `(agents,)`.

        Both in one step of one optimiser: neither loss depends on what the other one changes.
        """
        dtype, temperature = self.hidden_dtype, self.log_temperature.detach().exp()
        observation = batch.first.observation
        action, log_probability = self.actor.learn(observation, noise.action, dtype)
        action_values = self.critic(observation, action, dtype, frozen=True)
        actor_loss = policy_objective(log_probability, action_values[0], temperature)
        if not self.settings.bonus_episodic:  # the policy maximises min Q + w·min Q of the bonus
            actor_loss = actor_loss - self.bonus_weight * action_values[1].amin(0).mean(-1)
        temperature_loss = temperature_objective(self.log_temperature, log_probability, self.target_entropy)
        self.actor_optimizer.descend((actor_loss + temperature_loss).sum())
        return {"actor_loss": actor_loss.detach(), "entropy": -log_probability.detach().mean(1)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights, also of files in which `target_critic` has its earlier name `target`."""
        renamed = {re.sub(r"^target\.", "target_critic.", name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict, assign)


def mlp_of(settings: Settings) -> MLP:
    """Returns what makes the networks of actor and critics."""
    match settings.critic:
        case "twin":
            return StackedMLP
        case "crossq":
            return functools.partial(RenormalisedMLP, warm_up=settings.renorm_warm_up)
        case _:
            assert_never(settings.critic)
