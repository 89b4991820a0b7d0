"""A training step on a quiet machine and beside a busy core: one thread, our default, and a thread for each core.

`python benchmarks/busy_machine.py`, with nothing else running. Our default is one thread for each core that other
processes leave free when a run starts (`common/cores.py`), so each measurement starts a process of its own. The busy
core is a Python process that counts. Steps are those of the three scripts with their default networks: VGG11-BN at
batch 128, the convolutional VAE at batch 128, and SAC with one agent on Hopper-v4, simulation included.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — as in the scripts, before the imports that take seconds

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
import tyro
from rl_speed import RANDOM_STEPS
from rl_speed import Settings as SacSettings
from rl_speed import ours as sac
from vae_parallel import Settings as VaeSettings
from vae_parallel import one_model

from common import cores
from common.device import autocast, set_up
from pruning.vgg import VGG11

Task = Literal["pruning", "vae", "sac"]
Train = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training step on a quiet machine and beside a busy core."""

    rounds: int = 5
    """Rounds; in each one every measurement is made once, in turn."""
    seconds: float = 2.0
    """Seconds, roughly, of a measurement."""
    output: Path | None = None
    """JSON file for the figures."""
    task: Task | None = None
    """For the benchmark's own processes: whose step; none runs the whole comparison."""
    threads: int | None = None
    """For the benchmark's own processes: CPU threads."""


def vgg(settings: Settings) -> Train:
    """Returns a function that takes steps of `pruning/train.py`, without the augmentation."""
    device = set_up("cpu", settings.threads)
    model = VGG11()
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def train(steps: int) -> None:
        for _ in range(steps):
            with autocast(device, "auto"):
                loss = F.cross_entropy(model(images), labels, label_smoothing=0.2)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    return train


def vae(settings: Settings) -> Train:
    """Returns a function that takes steps of `vae/train.py`."""
    set_up("cpu", settings.threads)
    step = one_model(VaeSettings(arch="conv"), torch.rand(4000, 1, 28, 28))
    return lambda steps: [step() for _ in range(steps)]


def soft_actor_critic(settings: Settings) -> Train:
    """Returns a function that takes steps of `rl/train_sac_icm.py`, after the random ones."""
    train = sac(SacSettings(agents=1, device="cpu", threads=settings.threads))
    train(RANDOM_STEPS)
    return train


def measure(settings: Settings) -> None:
    """Prints the milliseconds of a step and the number of threads."""
    task = {"pruning": vgg, "vae": vae, "sac": soft_actor_critic}[settings.task or "sac"]
    train = task(settings)
    train(3)
    start = time.perf_counter()
    train(3)
    steps = max(3, int(settings.seconds * 3 / (time.perf_counter() - start)))
    start = time.perf_counter()
    train(steps)
    milliseconds = 1000 * (time.perf_counter() - start) / steps
    print(json.dumps({"milliseconds": milliseconds, "threads": torch.get_num_threads()}))


def figures_of(settings: Settings, task: Task, threads: int | None) -> dict[str, float]:
    """Returns what `measure` prints in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--seconds", str(settings.seconds)]
    command += ["--threads", str(threads)] if threads else []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def main(settings: Settings) -> None:
    """Runs the whole comparison, or the one measurement that `--task` names."""
    if settings.task is not None:
        measure(settings)
        return
    most = len(cores.allowed())
    sides: dict[str, int | None] = {"1 thread": 1, "our default": None, f"{most} threads": most}
    results: dict[str, Any] = {"torch": torch.__version__, "cores": most}
    for task in get_args(Task):
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(settings.rounds):
            quiet = {side: figures_of(settings, task, threads) for side, threads in sides.items()}
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside = {f"{side}, busy": figures_of(settings, task, n) for side, n in sides.items()}
            finally:
                busy.kill()
                busy.wait()
            rounds.append(quiet | beside)
        print(f"{task}: milliseconds a step")
        results[task] = {}
        for name in rounds[0]:
            times = [figures[name]["milliseconds"] for figures in rounds]
            used = sorted({int(figures[name]["threads"]) for figures in rounds})
            results[task][name] = {"median": statistics.median(times), "times": times, "threads": used}
            spread = f"({min(times):.1f}–{max(times):.1f})"
            print(f"  {name:18}{statistics.median(times):9.1f}  {spread:20} threads {used}", flush=True)
        for one, other in ((f"{most} threads", "our default"), ("1 thread, busy", "our default, busy")):
            ratios = [figures[one]["milliseconds"] / figures[other]["milliseconds"] for figures in rounds]
            results[task][f"{one} / {other}"] = {"ratio": statistics.median(ratios), "ratios": ratios}
            print(f"  {one} / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    if settings.output is not None:
        settings.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
