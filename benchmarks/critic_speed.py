"""What does CrossQ cost beside SAC? The updates alone, without acting and simulation, in turn in one process.

`python benchmarks/critic_speed.py --threads 1` takes Hopper's sizes and transitions drawn at random: the time does not
depend on the values. A work is six updates, since CrossQ updates its policy in every third. A ratio is the median over
the rounds, with its quartiles in brackets.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from common import cli
from common.device import random_stream, set_up
from common.timing import in_turn, quartiles
from rl.groups import Groups
from rl.replay import Replay
from rl.sac import SAC
from rl.settings import Settings
from rl.streams import RandomStreams

OBSERVATION, ACTION = 11, 3  # Hopper's
TRANSITIONS = 1000
UPDATES = 6
PRESET = Path(__file__).parents[1] / "configs/rl/crossq.yaml"


@dataclasses.dataclass(frozen=True)
class Options:
    """Times an update of SAC, and of CrossQ with critics of several widths."""

    agents: tuple[int, ...] = (1, 10)
    """Agents in lockstep, for each of the comparisons."""
    widths: tuple[int, ...] = (256, 512)
    """Units of a hidden layer of CrossQ's critics."""
    seconds: float = 60.0
    """Seconds for each of the comparisons."""
    threads: int | None = None
    """CPU threads; none means one for each core that is free."""
    device: str = "auto"
    """auto, cpu or cuda."""
    output: Path | None = None
    """JSON file to write the results to."""


def updates(settings: Settings, device: torch.device) -> Callable[[], None]:
    """Returns a function that takes `UPDATES` updates of the agents from one replay buffer."""
    agents = settings.num_seeds
    sac = SAC(settings, OBSERVATION, ACTION, [random_stream(seed, "sac weights") for seed in settings.seeds], device)
    replay = Replay(agents, TRANSITIONS, OBSERVATION, ACTION, device)
    reward, terminated = torch.ones(agents, device=device), torch.zeros(agents, device=device)
    for _ in range(TRANSITIONS):
        before, after = torch.randn(2, agents, OBSERVATION, device=device)
        action = torch.rand(agents, ACTION, device=device) * 2 - 1
        replay.add(before, after, action, reward, terminated, terminated.bool())
    streams = RandomStreams(settings.seeds, settings.batch_size, ACTION, device)
    update = Groups(sac, agents).update(SAC.update)

    def work() -> None:
        for _ in range(UPDATES):
            _, noise = streams.noise()
            update(replay.sample(streams.indices(replay.size), settings.window), noise)

    return work


def main(options: Options) -> None:
    """Times the critics and prints a line for each, with the ratio of its time to SAC's."""
    device = set_up(options.device, options.threads, huge_pages=True)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    figures: dict[str, list[float]] = {}
    for agents in options.agents:
        count = ["--num-seeds", str(agents), "--device", options.device]
        arms = {"SAC": cli.parse(Settings, count)}
        for width in options.widths:
            units = ["--critic-hidden", str(width), str(width)]
            arms[f"CrossQ, {width} units"] = cli.parse(Settings, ["--config", str(PRESET), *count, *units])
        works = {name: updates(settings, device) for name, settings in arms.items()}
        times = in_turn(works, device, options.seconds)
        for name, seconds in times.items():
            ratios = [own / sac for own, sac in zip(seconds, times["SAC"], strict=True)]
            milliseconds = 1000 * statistics.median(seconds) / UPDATES
            middle, (low, high) = statistics.median(ratios), quartiles(ratios)
            figures[f"{name}, {agents} agents"] = [milliseconds, middle, low, high]
            line = f"{agents:3} agents, {name:18} {milliseconds:7.1f} ms an update"
            print(line + ("" if name == "SAC" else f"   {middle:.2f}× ({low:.2f}–{high:.2f})"), flush=True)
    if options.output is not None:
        head = ["milliseconds an update", "median ratio", "lower quartile", "upper quartile"]
        options.output.write_text(json.dumps({"columns": head, **figures}, indent=1))


if __name__ == "__main__":
    cli.command(main, Options)
