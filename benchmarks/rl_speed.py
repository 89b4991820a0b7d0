"""The speed and memory of our SAC, Stable-Baselines3's and SBX's, measured in turn in one run, as ratios.

`python benchmarks/rl_speed.py` (`pip install -e '.[bench]'` brings the two others). Every side trains SAC on the same
task with the same networks (two hidden layers of 256), batch 256 and one update for every environment step. The time is
that of the whole training step, simulation included, after the random steps. Every side is a separate process; the
sides take turns, and a rate is the median over the rounds. Many seeds with Stable-Baselines3 run as people usually run
them: one single-threaded process for each core, all at once, their rates added.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from turns import Side, serve

from common.device import peak_memory, random_stream, resolve_precision, set_up, synchronize
from rl.envs import Environments
from rl.groups import Groups
from rl.meter import Meter
from rl.replay import Replay
from rl.sac import SAC
from rl.settings import Curiosity
from rl.settings import Settings as SacSettings
from rl.streams import RandomStreams

RANDOM_STEPS = 300  # before the first update, on every side


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the speed of SAC here, in Stable-Baselines3 and in SBX."""

    rounds: int = 5
    """Rounds; in each one, every side runs once."""
    seconds: float = 8.0
    """Seconds, roughly, that a side trains in a round."""
    agents: int = 10
    """Agents that train side by side in one process."""
    env_id: str = "Hopper-v4"
    """Task of gymnasium."""
    device: str = "auto"
    """auto, cpu or cuda."""
    output: Path | None = None
    """JSON file for the figures."""
    side: Literal["ours", "sb3", "sbx"] | None = None
    """For the benchmark's own processes: which side; none runs the whole comparison."""
    icm: Curiosity = "none"
    """For the benchmark's own processes: which curiosity, on our side."""
    threads: int | None = None
    """For the benchmark's own processes: CPU threads."""


# -- the sides: functions that take `steps` training steps -------------------------------------------------------------


def ours(settings: Settings) -> Callable[[int], None]:
    """Returns a function that trains our agents: the step of rl/train_sac_icm.py without evaluation and files."""
    chosen = SacSettings(
        env_id=settings.env_id,
        icm=settings.icm,
        num_seeds=settings.agents,
        random_steps=RANDOM_STEPS,
        env_steps=1_000_000,
        device=settings.device,  # type: ignore[arg-type]
    )
    device = set_up(settings.device, settings.threads, huge_pages=True)
    environments = Environments(chosen.env_id, chosen.reward, chosen.seeds)
    obs_dim, action_dim = environments.obs_dim, environments.action_dim
    sac = SAC(chosen, obs_dim, action_dim, [random_stream(seed, "sac weights") for seed in chosen.seeds], device)
    replay = Replay(settings.agents, chosen.env_steps, obs_dim, action_dim, device)
    streams = RandomStreams(chosen.seeds, chosen.batch_size, action_dim, device)
    meter, groups = Meter(settings.agents, device), Groups(sac, settings.agents)
    update = groups.update(SAC.update)

    def train(steps: int) -> None:
        with groups.threads():
            for step in range(replay.steps + 1, replay.steps + steps + 1):
                take(step)
        synchronize(device)

    def take(step: int) -> None:
        exploration, noise = streams.noise()
        observation = environments.observation.to(device)
        if step <= RANDOM_STEPS:
            action = 2 * torch.special.ndtr(exploration) - 1
        else:
            action = groups.act(observation, exploration)
        acted = action.cpu()
        assert torch.isfinite(acted).all()
        next_observation, reward, terminated, ended = environments.step(acted)
        replay.add(observation, next_observation, action, reward, terminated, ended)
        if step > RANDOM_STEPS:
            meter.update(update(replay.sample(streams.indices(replay.size), chosen.window), noise))
        meter.step(reward, ended)

    return train


def stable_baselines(settings: Settings) -> Callable[[int], None]:
    """Returns a function that trains SAC of Stable-Baselines3, or of SBX, its JAX version, in their own loop."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    options: dict[str, Any] = {"learning_starts": RANDOM_STEPS, "batch_size": 256, "verbose": 0}
    if settings.side == "sb3":
        from stable_baselines3 import SAC

        model: Any = SAC("MlpPolicy", settings.env_id, device=settings.device, **options)
    else:
        from sbx import SAC as JaxSAC

        model = JaxSAC("MlpPolicy", settings.env_id, **options)  # on JAX's own choice of device

    def train(steps: int) -> None:
        model.learn(steps, reset_num_timesteps=False)

    return train


def serve_side(settings: Settings) -> None:
    """Runs one side: a round is its agent steps a second and the peak memory."""
    # The other sides start at the same time: ours must not take them for a busy machine.
    settings = dataclasses.replace(settings, threads=settings.threads or torch.get_num_threads())
    train = ours(settings) if settings.side == "ours" else stable_baselines(settings)
    agents = settings.agents if settings.side == "ours" else 1
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    train(RANDOM_STEPS + 100)  # compiles, warms up
    start = time.perf_counter()
    train(50)
    steps = max(20, int(settings.seconds * 50 / (time.perf_counter() - start)))

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        train(steps)
        rate = agents * steps / (time.perf_counter() - start)
        of_jax = settings.side == "sbx" and on_gpu  # torch does not see it
        memory = math.nan if of_jax else peak_memory(torch.device("cuda" if on_gpu else "cpu"))
        return {"rate": rate, "memory": memory}

    serve(measure)


# -- the comparison ----------------------------------------------------------------------------------------------------


def side_of(settings: Settings, side: str, agents: int = 1, icm: str = "none", threads: int | None = None) -> Side:
    """Returns one side as a process that waits for its rounds."""
    command = [sys.executable, __file__, "--side", side, "--agents", str(agents), "--icm", icm]
    command += ["--seconds", str(settings.seconds), "--env-id", settings.env_id, "--device", settings.device]
    return Side(command if threads is None else [*command, "--threads", str(threads)], quiet=True)


def together(sides: list[Side]) -> dict[str, float]:
    """Returns the sums of rate and memory over sides that run a round at the same time."""
    for side in sides:
        side.start()
    figures = [side.result() for side in sides]
    return {name: sum(figure[name] for figure in figures) for name in ("rate", "memory")}


def main(settings: Settings) -> None:
    """Runs the whole comparison, or the one side that `--side` names."""
    if settings.side is not None:
        serve_side(settings)
        return
    device = set_up(settings.device, torch.get_num_threads())
    cores, many = len(os.sched_getaffinity(0)), settings.agents
    results: dict[str, Any] = {"torch": torch.__version__, "device": str(device), "cores": cores}
    results["precision"] = resolve_precision("auto", device)
    print(f"torch {torch.__version__}, {device}, {cores} cores, {settings.env_id}, ours in {results['precision']}")
    sides = {
        "ours, 1 agent": [side_of(settings, "ours")],
        "ours, 1 agent, stacked ICM": [side_of(settings, "ours", icm="stacked")],
        f"ours, {many} agents": [side_of(settings, "ours", many)],
        f"ours, {many} agents, stacked ICM": [side_of(settings, "ours", many, "stacked")],
        "SB3": [side_of(settings, "sb3")],
        f"SB3, {cores} processes of 1 thread": [side_of(settings, "sb3", threads=1) for _ in range(cores)],
        "SBX": [side_of(settings, "sbx")],
    }
    every = range(settings.rounds + 1)
    rounds = [{name: together(processes) for name, processes in sides.items()} for _ in every][
        1:
    ]  # the first round warms up
    for processes in sides.values():
        for process in processes:
            process.close()
    for name in sides:
        rates = [figures[name]["rate"] for figures in rounds]
        memory = rounds[-1][name]["memory"] / 1e6
        results[name] = {"agent_steps_per_second": statistics.median(rates), "peak_megabytes": memory}
        low, high = min(rates), max(rates)
        print(f"{name:32} {statistics.median(rates):6.1f} agent steps/s ({low:.1f}–{high:.1f})   {memory:6.0f} MB")
    pairs = [
        ("ours, 1 agent", "SB3"),
        ("ours, 1 agent", "SBX"),
        (f"ours, {many} agents", "SB3"),
        (f"ours, {many} agents", f"SB3, {cores} processes of 1 thread"),
        ("ours, 1 agent", "ours, 1 agent, stacked ICM"),
        (f"ours, {many} agents", f"ours, {many} agents, stacked ICM"),
    ]
    for one, other in pairs:
        ratios = [figures[one]["rate"] / figures[other]["rate"] for figures in rounds]
        results[f"{one} / {other}"] = {
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        print(f"{one} / {other}: {statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})")
    one, ten = (rounds[-1][name]["memory"] for name in ("ours, 1 agent", f"ours, {many} agents"))
    results["megabytes_an_agent"] = (ten - one) / (many - 1) / 1e6 if many > 1 else 0.0
    print(f"memory of one more agent: {results['megabytes_an_agent']:.1f} MB, its replay so far included")
    if settings.output is not None:
        settings.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
