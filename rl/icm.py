"""Curiosity: intrinsic rewards from what a model fails to predict (Pathak et al. 2017; Burda et al. 2018).

Every module here maps a batch to a `Surprise`. The reward is computed anew for every sampled batch: the module learns,
so that a stored reward would soon be out of date.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl.networks import StackedMLP
from rl.replay import Batch


class Surprise(NamedTuple):
    """What a module returns for a batch."""

    loss: Tensor  # (agents,), which the module learns to reduce
    error: Tensor  # (agents, batch), the raw intrinsic reward, without gradient
    measured: dict[str, Tensor]  # name → (agents,), without gradient


class RunningMoments(nn.Module):
    """Mean and standard deviation of all batches so far, for each agent; with a `horizon`, old batches count less."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, agents: int, *shape: int, horizon: float = float("inf")) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("mean", torch.zeros(agents, 1, *shape))
        self.register_buffer("square", torch.zeros(agents, 1, *shape))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Adds `values` `(agents, batch, *shape)`."""
        self.count += 1
        share = 1 / self.count.clamp(max=self.horizon)
        self.mean.lerp_(values.mean(1, keepdim=True), share)
        self.square.lerp_(values.square().mean(1, keepdim=True), share)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, `(agents, 1, *shape)`, at least 1e-4."""
        return (self.square - self.mean.square()).clamp(min=1e-8).sqrt()


class IntrinsicCuriosity(nn.Module):
    """The Intrinsic Curiosity Module on state vectors: encoder φ, inverse model, forward model on a stack of encodings.

    L = (1 − β)·L_inverse + β·L_forward    (Eq. 7, Pathak et al. 2017, without its policy term)
    L_inverse = mean squared error of the action between φ(s) and φ(s′): actions are continuous here
    L_forward = ½‖φ̂(s′) − φ(s′)‖², φ̂ from the encodings of the last `stack` states and the action (Eq. 5)
    error = ½‖φ̂(s′) − φ(s′)‖²                                       (Eq. 6; its factor η is `--intrinsic-weight`)

    The forward loss sends no gradient into φ(s′): else φ could make itself easy to predict by saying nothing.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        stack: int,
        feature_size: int,
        width: int,
        forward_width: int,
        forward_share: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.forward_share = forward_share
        self.moments = RunningMoments(len(generators), obs_dim)
        self.encoder = StackedMLP([obs_dim, width, feature_size], generators)
        self.inverse_model = StackedMLP([2 * feature_size, width, action_dim], generators)
        self.forward_model = StackedMLP([stack * feature_size + action_dim, forward_width, feature_size], generators)

    def forward(self, batch: Batch) -> Surprise:
        """Returns loss, errors and measurements of the batch."""
        self.moments.update(batch.next_observation)
        window, encoding, next_encoding = self.encode(batch)
        predicted_action = self.inverse_model(torch.cat([encoding, next_encoding], dim=-1))
        inverse_error = (predicted_action - batch.action).square().mean(-1)  # (agents, batch)
        error = self._prediction_error(window, batch.action, next_encoding.detach())
        inverse_loss, forward_loss = inverse_error.mean(1), error.mean(1)
        loss = (1 - self.forward_share) * inverse_loss + self.forward_share * forward_loss
        measured = {"inverse_loss": inverse_loss.detach(), "forward_loss": forward_loss.detach()}
        return Surprise(loss, error.detach(), measured)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns φ of the window `(agents, batch, stack·feature)`, φ(s) and φ(s′), both `(agents, batch, feature)`."""
        agents, examples, stack, _ = batch.window.shape
        states = torch.cat([batch.window, batch.next_observation[:, :, None]], dim=2).flatten(1, 2)
        features = self.encoder(normalised(states, self.moments)).view(agents, examples, stack + 1, -1)
        return features[:, :, :stack].flatten(2), features[:, :, stack - 1], features[:, :, stack]

    @torch.no_grad()
    def error(self, batch: Batch) -> Tensor:
        """Returns the errors of `forward`, `(agents, batch)`, and learns nothing of the batch."""
        window, _, next_encoding = self.encode(batch)
        return self._prediction_error(window, batch.action, next_encoding)

    def _prediction_error(self, window: Tensor, action: Tensor, next_encoding: Tensor) -> Tensor:
        """Returns ½‖φ̂(s′) − φ(s′)‖², `(agents, batch)` (Eq. 5, Pathak et al. 2017)."""
        predicted: Tensor = self.forward_model(torch.cat([window, action], dim=-1))
        return 0.5 * (predicted - next_encoding).square().sum(-1)

    @torch.no_grad()
    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns what shows a collapse of φ, each `(agents,)`.

        `feature_variance` is the variance of φ(s) over the batch, averaged over features; `inverse_r2` is the inverse
        model's R² against the mean action: 0 means that φ holds no information about the action. `forward_r2` is the
        forward model's R² against the mean of φ(s′).
        """
        window, encoding, next_encoding = self.encode(batch)
        predicted = self.inverse_model(torch.cat([encoding, next_encoding], dim=-1))
        residual = (predicted - batch.action).square().sum((1, 2))
        total = (batch.action - batch.action.mean(1, keepdim=True)).square().sum((1, 2))
        unforeseen = self.forward_model(torch.cat([window, batch.action], dim=-1)) - next_encoding
        spread = (next_encoding - next_encoding.mean(1, keepdim=True)).square().sum((1, 2))
        return {
            "feature_variance": encoding.var(1).mean(-1),
            "inverse_r2": 1 - residual / total.clamp(min=1e-12),
            "forward_r2": 1 - unforeseen.square().sum((1, 2)) / spread.clamp(min=1e-12),
        }


class RandomDistillation(nn.Module):
    """Random network distillation (Burda et al. 2018): a predictor learns the output of a fixed random network for s′.

    error = loss = ½‖f̂(s′) − f(s′)‖²: large for states unlike those seen so far
    """

    def __init__(self, obs_dim: int, feature_size: int, width: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.moments = RunningMoments(len(generators), obs_dim)
        self.target = StackedMLP([obs_dim, width, feature_size], generators).requires_grad_(False)
        self.predictor = StackedMLP([obs_dim, width, width, feature_size], generators)

    def forward(self, batch: Batch) -> Surprise:
        """Returns loss, errors and measurements of the batch."""
        self.moments.update(batch.next_observation)
        states = normalised(batch.next_observation, self.moments)
        error = 0.5 * (self.predictor(states) - self.target(states)).square().sum(-1)
        loss = error.mean(1)
        return Surprise(loss, error.detach(), {"distillation_loss": loss.detach()})

    @torch.no_grad()
    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the variance of the target's output over the batch, `(agents,)`."""
        features = self.target(normalised(batch.next_observation, self.moments))
        return {"feature_variance": features.var(1).mean(-1)}


def normalised(states: Tensor, moments: RunningMoments) -> Tensor:
    """Returns (states − running mean) / running deviation, clipped to ±5, for `states` `(agents, n, obs)`."""
    return ((states - moments.mean) / moments.deviation).clamp(-5, 5)
