"""Soft actor-critic with automatic temperature (Haarnoja et al. 2018b), for all agents at once.

The losses are functions of tensors, one value an agent. `SAC` holds what they change and takes the steps in the
paper's order: critics (and curiosity), actor, temperature, targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn

from common.device import resolve_precision
from common.fast.adam import Adam
from rl.icm import IntrinsicCuriosity, RandomDistillation, RunningMoments, Surprise
from rl.networks import Actor, TwinCritic
from rl.replay import Batch
from rl.settings import Settings


class Noise(NamedTuple):
    """The standard normal numbers of one update."""

    next_action: Tensor  # (agents, batch, action)
    action: Tensor  # (agents, batch, action)
    shuffle: Tensor  # (agents, batch), whose ranks order the rewards of `--icm random`


def critic_target(
    reward: Tensor,
    terminated: Tensor,
    next_values: Tensor,
    next_log_probability: Tensor,
    temperature: Tensor,
    discount: float,
) -> Tensor:
    """Returns r + γ(1 − d)(min Q̄(s′, a′) − α log π(a′|s′)), `(agents, batch)` (Eqs. 3 and 6).

    `next_values` `(2, agents, batch)` are the targets' values, `temperature` is `(agents,)`.
    """
    value = next_values.amin(0) - temperature[:, None] * next_log_probability
    return reward + discount * (1 - terminated) * value


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Returns ½(Q − y)², `(agents,)`: mean over the batch, sum over both critics `(2, agents, batch)` (Eq. 5)."""
    return 0.5 * (values - target).square().mean(-1).sum(0)


def actor_loss(log_probability: Tensor, values: Tensor, temperature: Tensor) -> Tensor:
    """Returns the mean of α log π(a|s) − min Q(s, a) over the batch, `(agents,)` (Eq. 7)."""
    return (temperature[:, None] * log_probability - values.amin(0)).mean(-1)


def temperature_loss(log_temperature: Tensor, log_probability: Tensor, target_entropy: float) -> Tensor:
    """Returns the mean of −log α·(log π(a|s) + H̄) over the batch, `(agents,)`.

    Eq. 18 with log α in place of the factor α, as in the authors' code: the same sign, and no slower when α is small.
    """
    return -log_temperature * (log_probability.detach().mean(-1) + target_entropy)


class SAC(nn.Module):
    """All agents: actor, critics, targets, temperature, curiosity, their optimisers, and the update."""

    def __init__(
        self,
        settings: Settings,
        observation: int,
        action: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        super().__init__()
        agents = len(generators)
        self.settings = settings
        self.hidden_dtype = getattr(torch, resolve_precision(settings.precision, device))
        self.target_entropy = -float(action) if settings.target_entropy is None else settings.target_entropy
        self.actor = Actor(observation, action, settings.hidden, settings.log_std_range, generators)
        self.critic = TwinCritic(observation, action, settings.hidden, generators)
        self.target = TwinCritic(observation, action, settings.hidden, generators).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        initial = torch.tensor(settings.initial_temperature).log()
        self.log_temperature = nn.Parameter(initial.repeat(agents))
        self.curiosity = build_curiosity(settings, observation, action, generators)
        self.intrinsic = RunningMoments(agents, horizon=settings.deviation_horizon)
        self.to(device)

        critic_groups: list[tuple[Iterable[nn.Parameter], float]] = [(self.critic.parameters(), settings.learning_rate)]
        if self.curiosity is not None:
            learned = [p for p in self.curiosity.parameters() if p.requires_grad]
            critic_groups.append((learned, settings.icm_learning_rate))
        self.critic_optimizer = Adam(*critic_groups)
        self.actor_optimizer = Adam(([*self.actor.parameters(), self.log_temperature], settings.learning_rate))
        self.optimizers = (self.critic_optimizer, self.actor_optimizer)

    def update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Takes one step of everything and returns what it measured, name → `(agents,)`."""
        observation, dtype = batch.observation, self.hidden_dtype
        temperature = self.log_temperature.detach().exp()
        measured: dict[str, Tensor] = {"extrinsic_reward": batch.reward.mean(1)}

        reward = self.settings.extrinsic_weight * batch.reward
        curiosity_loss: Tensor | float = 0.0
        if self.curiosity is not None:
            surprise: Surprise = self.curiosity(batch)
            intrinsic = self.intrinsic_reward(surprise.error, noise.shuffle)
            reward = reward + self.settings.intrinsic_weight * intrinsic
            curiosity_loss = surprise.loss
            measured |= surprise.measured | {"intrinsic_reward": intrinsic.mean(1)}

        with torch.no_grad():
            following = self.actor(batch.next_observation, noise.next_action, dtype)
            next_values = self.target(batch.next_observation, following.action, dtype)
            target = critic_target(
                reward, batch.terminated, next_values, following.log_probability, temperature, self.settings.discount
            )
        values = self.critic(observation, batch.action, dtype)
        value_loss = critic_loss(values, target)
        self.critic_optimizer.descend((value_loss + curiosity_loss).sum())

        chosen = self.actor(observation, noise.action, dtype)
        policy_loss = actor_loss(
            chosen.log_probability, self.critic(observation, chosen.action, dtype, frozen=True), temperature
        )
        heat_loss = temperature_loss(self.log_temperature, chosen.log_probability, self.target_entropy)
        self.actor_optimizer.descend((policy_loss + heat_loss).sum())

        with torch.no_grad():
            targets: list[Tensor] = list(self.target.parameters())
            torch._foreach_lerp_(targets, list[Tensor](self.critic.parameters()), self.settings.target_rate)
        measured |= {
            "critic_loss": value_loss,
            "value": values[0].mean(1),
            "actor_loss": policy_loss,
            "temperature": temperature,
            "entropy": -chosen.log_probability.mean(1),
        }
        return {name: value.detach() for name, value in measured.items()}

    def intrinsic_reward(self, error: Tensor, shuffle: Tensor) -> Tensor:
        """Returns errors `(agents, batch)` in running deviations; `--icm random` shuffles them by `shuffle`."""
        self.intrinsic.update(error)
        if self.settings.icm == "random":
            error = error.gather(1, shuffle.argsort(1))
        return error / self.intrinsic.deviation


def build_curiosity(
    settings: Settings, observation: int, action: int, generators: Sequence[torch.Generator]
) -> nn.Module | None:
    """Returns the curiosity module that `--icm` names; a new one is a class in `rl/icm.py` and a line here."""
    match settings.icm:
        case "none":
            return None
        case "rnd":
            return RandomDistillation(observation, settings.feature_size, settings.icm_width, generators)
        case "single" | "stacked" | "random":
            return IntrinsicCuriosity(
                observation,
                action,
                settings.window,
                settings.feature_size,
                settings.icm_width,
                settings.forward_width or settings.icm_width,
                settings.forward_share,
                generators,
            )
        case _:
            assert_never(settings.icm)


class CapturedUpdate:
    """`SAC.update` as a CUDA graph: some 300 kernel launches become one. The same numbers, for a GPU only."""

    WARM_UP = 3  # real updates on a side stream before the capture, as PyTorch asks for

    def __init__(self, sac: SAC) -> None:
        self.sac, self.calls = sac, 0
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Takes one step; what it returns holds until the next call."""
        self.calls += 1
        if self.calls <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                outputs = self.sac.update(batch, noise)
            torch.cuda.current_stream().wait_stream(side)
            return outputs
        if not self.inputs:
            self.inputs = tuple(tensor.clone() for tensor in (*batch, *noise))
            size = len(batch)
            with torch.cuda.graph(self.graph):
                self.outputs = self.sac.update(Batch(*self.inputs[:size]), Noise(*self.inputs[size:]))
        for static, tensor in zip(self.inputs, (*batch, *noise), strict=True):
            static.copy_(tensor)
        self.graph.replay()
        return self.outputs
