"""Forward models that learn side by side from the same batches, and what they foresee of episodes not seen.

Used by `rl/forward_models.py`, which says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import scipy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.device import random_stream
from common.errors import RunError
from common.fast.adam import Adam
from common.training import progress_bar
from rl.agents import build_curiosity
from rl.icm import IntrinsicCuriosity
from rl.networks import StackedMLP
from rl.replay import Batch, Replay
from rl.settings import Settings

PAIRS = {
    "single again − single": ("single again", "single"),
    "matched − single": ("matched", "single"),
    "stacked − single": ("stacked", "single"),
    "stacked − matched": ("stacked", "matched"),
}
SPACES = {"own": "own φ", "shared": "one frozen φ"}
EVERY = 5  # episodes, of which one is held out
FEWEST = 100  # held-out transitions of a seed


class Models(NamedTuple):
    """The forward models that learn side by side, of all seeds, in one space."""

    modules: dict[str, IntrinsicCuriosity]
    optimizers: dict[str, Adam]


def split(replay: Replay, seeds: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Returns each seed's positions to learn from, and as many held-out ones of each seed, `(agents, count)`.

    Every fifth episode is held out; of a seed that has more such transitions than another, evenly spaced ones.

    Raises:
        RunError: a seed has fewer than a hundred.
    """
    positions = replay.newest(replay.size)
    age = replay.rows[..., -1].gather(1, positions)
    episode = (age == 0).cumsum(1)
    apart = episode % EVERY == 0
    apart &= episode > 0  # the rest of an episode that the ring has half forgotten
    learnt = [row[~held] for row, held in zip(positions, apart, strict=True)]
    held_out = [row[held] for row, held in zip(positions, apart, strict=True)]
    for seed, row in zip(seeds, held_out, strict=True):
        if len(row) < FEWEST:
            raise RunError(f"seed {seed} has {len(row)} held-out transitions, fewer than {FEWEST}; more --env-steps")
    count = min(map(len, held_out))
    return learnt, torch.stack([row[torch.linspace(0, len(row) - 1, count).long()] for row in held_out])


def begin(settings: Settings, replay: Replay, *, shared: bool) -> Models:
    """Returns the models at their start; with `shared`, all have one encoder of random weights that does not learn."""
    seen, action_dim = settings.seen_by_icm(replay.widths[0]), replay.widths[2]
    single = dataclasses.replace(settings, icm="single")
    chosen = {
        "single": single,
        "single again": single,
        "matched": dataclasses.replace(single, forward_width=matched_width(settings, action_dim)),
        "stacked": settings,
    }
    modules = {}
    for name, of in chosen.items():
        streams = [random_stream(seed, f"forward model, {name}") for seed in settings.seeds]
        module = build_curiosity(of, seen, action_dim, streams)
        assert isinstance(module, IntrinsicCuriosity)
        if shared:
            features = [random_stream(seed, "shared features") for seed in settings.seeds]
            module.encoder = StackedMLP([seen, settings.icm_width, settings.feature_size], features)
            module.encoder.requires_grad_(False)
        modules[name] = module
    rate = settings.icm_learning_rate
    learned = {name: [p for p in module.parameters() if p.requires_grad] for name, module in modules.items()}
    return Models(modules, {name: Adam((parameters, rate)) for name, parameters in learned.items()})


def matched_width(settings: Settings, action_dim: int) -> int:
    """Returns the width with which a forward model of one frame has as many parameters as that of the stack."""
    features, width = settings.feature_size, settings.icm_width
    each = [frames * features + action_dim + 1 + features for frames in (settings.stack, 1)]  # a hidden unit's
    return round(width * each[0] / each[1])


def forward_parameters(module: IntrinsicCuriosity) -> int:
    """Returns the parameters of one agent's forward model."""
    weights = list(module.forward_model.parameters())
    return sum(p.numel() for p in weights) // len(weights[0])


def as_seen(batch: Batch, module: IntrinsicCuriosity) -> Batch:
    """Returns the batch with as many frames as the module's forward model takes."""
    inputs, features = module.forward_model.weights[0].shape[1], module.encoder.weights[-1].shape[-1]
    frames = (inputs - batch.action.shape[-1]) // features
    return batch._replace(window=batch.window[:, :, -frames:])


def train(
    models: Mapping[str, Models], replay: Replay, learnt: Sequence[Tensor], settings: Settings, updates: int
) -> None:
    """Takes `updates` steps of every model, all on the same batches."""
    counts = torch.tensor([[len(row)] for row in learnt])
    padded = pad_sequence(list(learnt), batch_first=True)  # (agents, longest)
    streams = [random_stream(seed, "forward models' batches") for seed in settings.seeds]
    seen = settings.seen_by_icm(replay.widths[0])
    with progress_bar("forward models", 0, updates) as bar:
        for _ in range(updates):
            uniform = torch.stack([torch.rand(settings.batch_size, generator=stream) for stream in streams])
            batch = replay.sample(padded.gather(1, (uniform * counts).long()), settings.stack).seeing(seen)
            for modules, optimizers in models.values():
                for name, module in modules.items():
                    optimizers[name].descend(module(as_seen(batch, module)).loss.sum())
            bar.update()


def measured(models: Mapping[str, Models], held_out: Batch) -> dict[str, Any]:
    """Returns, for each space, every model's R² and every pair's rank correlation, lists of a value for each seed."""
    found: dict[str, Any] = {"forward_r2": {}, "rank_correlation": {}}
    for space, (modules, _) in models.items():
        errors = {name: module.error(as_seen(held_out, module)) for name, module in modules.items()}
        found["forward_r2"][space] = {
            name: module.diagnostics(as_seen(held_out, module))["forward_r2"].tolist()
            for name, module in modules.items()
        }
        found["rank_correlation"][space] = {
            pair: [
                float(scipy.stats.spearmanr(a, b).statistic)
                for a, b in zip(errors[one].numpy(), errors[other].numpy(), strict=True)
            ]
            for pair, (one, other) in PAIRS.items()
        }
    return found
