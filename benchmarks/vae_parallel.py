"""Several VAEs on one machine: one after the other, one process for each core, or in lockstep with stacked weights.

`python benchmarks/vae_parallel.py`; `vae/study.py` runs its models in the way that trains most images a second.
Lockstep uses `torch.func`: the weights of all models are stacked, with one vectorised forward and backward pass and one
fused Adam. Networks, batch, likelihood and number format are the same everywhere. The ways take turns, and the rates
are medians over the rounds.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from common import data
from common.device import autocast, set_up
from vae import models, objective
from vae.priors import kl_divergence
from vae.settings import Settings as VaeSettings


@dataclasses.dataclass(frozen=True)
class Settings:
    """Several VAEs: one after the other, one process for each core, or in lockstep."""

    rounds: int = 5
    """Rounds; in each one, every way runs in turn."""
    steps: int = 60
    """Training steps of each model in a round."""
    at_once: int = 2
    """Models at a time: processes, or models in lockstep."""
    data_dir: Path | None = None
    """Folder with the datasets; none means the variable DATA_DIR, or else ./data."""
    arch: Literal["fc", "conv"] | None = None
    """For the benchmark's own processes: which network."""
    threads: int = 1
    """For the benchmark's own processes: CPU threads."""
    stacked: int = 0
    """For the benchmark's own processes: models in lockstep; 0 trains one alone."""


def one_model(settings: Settings, images: Tensor) -> Callable[[], None]:
    """Returns one training step of one model."""
    vae = _build(settings)
    prior, device = VaeSettings().prior_on(images.device), images.device
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        batch = objective.drawn_binary(images[torch.randint(len(images), (128,), generator=generator)], generator)
        with autocast(device, "auto"):
            reconstruction, kl = objective.training_terms(vae, batch, prior, generator)
        optimizer.zero_grad()
        torch.autograd.backward(reconstruction + kl)
        optimizer.step()

    return step


def lockstep(settings: Settings, images: Tensor) -> Callable[[], None]:
    """Returns one training step of several models with stacked weights `(models, …)`."""
    networks = [_build(settings) for _ in range(settings.stacked)]
    weights, _ = torch.func.stack_module_state(networks)
    prior, device, latent = VaeSettings().prior_on(images.device), images.device, VaeSettings().latent
    optimizer = torch.optim.Adam(list(weights.values()), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    class Loss(torch.nn.Module):
        """The training loss as one module, so that `functional_call` can swap its weights."""

        def __init__(self) -> None:
            super().__init__()
            self.vae = networks[0]

        def forward(self, batch: Tensor, noise: Tensor) -> Tensor:
            """Returns the loss, for images `(B, 1, 28, 28)` and noise `(B, latent)`."""
            mean, log_variance = self.vae.encode(batch)
            logits = self.vae.decode(torch.addcmul(mean, (0.5 * log_variance).exp(), noise))
            cross_entropy = F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            return (cross_entropy + kl_divergence(mean, log_variance, prior).sum()) / len(batch)

    loss = Loss()

    def one(weights: dict[str, Tensor], batch: Tensor, noise: Tensor) -> Tensor:
        named = {f"vae.{name}": tensor for name, tensor in weights.items()}
        result: Tensor = torch.func.functional_call(loss, named, (batch, noise))
        return result

    every = torch.func.vmap(one)

    def step() -> None:
        index = torch.randint(len(images), (settings.stacked, 128), generator=generator)
        batch = objective.drawn_binary(images[index], generator)
        noise = torch.randn(settings.stacked, 128, latent, generator=generator)
        with autocast(device, "auto"):
            total = every(weights, batch, noise).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()

    return step


def _build(settings: Settings) -> models.VAE:
    assert settings.arch is not None
    defaults = VaeSettings()
    return models.build(settings.arch, defaults.latent, hidden=defaults.hidden, channels=defaults.channels)


def serve(settings: Settings) -> None:
    """Runs one process of a way: for every line on standard input it takes the steps and prints their seconds."""
    device = set_up("cpu", settings.threads)
    mnist = data.load("mnist", task_default="mnist", shape=(1, 28, 28), data_dir=settings.data_dir, device=device)
    step = (lockstep if settings.stacked else one_model)(settings, mnist.train.images)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(settings.steps):
            step()
        print(time.perf_counter() - start, flush=True)


class Way:
    """One or more processes that train at the same time."""

    def __init__(self, settings: Settings, arch: str, processes: int, threads: int, stacked: int) -> None:
        options = {"arch": arch, "threads": threads, "stacked": stacked, "steps": settings.steps}
        command = [sys.executable, __file__, *(word for k, v in options.items() for word in (f"--{k}", str(v)))]
        if settings.data_dir is not None:
            command += ["--data-dir", str(settings.data_dir)]
        pipe, self.images = subprocess.PIPE, settings.steps * 128 * max(stacked, 1)
        self.workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]

    def rate(self) -> float:
        """Returns images a second of all processes together in one more round."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return sum(self.images / float(w.stdout.readline()) for w in self.workers if w.stdout is not None)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.communicate()


def main(settings: Settings) -> None:
    """Compares the three ways for both networks."""
    if settings.arch is not None:
        serve(settings)
        return
    cores, count = os.cpu_count() or 1, settings.at_once
    print(f"torch {torch.__version__}, {cores} cores, batch 128; images a second of all models together")
    for arch in ("fc", "conv"):
        ways = {
            f"one after the other, {cores} threads": Way(settings, arch, 1, cores, 0),
            f"{count} processes, {max(1, cores // count)} threads each": Way(
                settings, arch, count, max(1, cores // count), 0
            ),
            f"{count} models in lockstep, {cores} threads": Way(settings, arch, 1, cores, count),
        }
        rates = [{name: way.rate() for name, way in ways.items()} for _ in range(settings.rounds + 1)][1:]
        for name, way in ways.items():
            values = [row[name] for row in rates]
            print(
                f"{arch:5}{name:36}{statistics.median(values):8.0f}  ({min(values):.0f}–{max(values):.0f})", flush=True
            )
            way.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
