"""Do forward models of one frame and of a stack rank states alike? Then SAC gets the same bonus from both.

`single`, `matched` (one frame, as many parameters as the stack) and `stacked` learn from the same batches of the same
transitions, beside a second `single` with other weights at the start: what two equal models agree in. Then, on every
fifth episode, which none of them has seen: how much of φ(s′) each foresees, and the rank correlation of their errors,
which are the bonuses. Each model has an encoder φ of its own, so that its R² is in its own space; with one frozen φ of
random weights in all of them (Burda et al. 2019) the R² compare.

`python rl/forward_models.py --env-steps 5000 --num-seeds 5`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval

from common import cli, stats
from common.device import random_stream, set_up
from common.errors import RunError
from common.experiment import say
from common.files import load_state, write_atomically
from common.tables import Table
from rl.envs import Environments
from rl.foresight import PAIRS, SPACES, begin, forward_parameters, measured, split, train
from rl.replay import Replay
from rl.sac import SAC
from rl.settings import Count, Settings
from rl.streams import RandomStreams

ALIKE = 0.9  # rank correlation, named before the first run


@dataclasses.dataclass(frozen=True)
class ForwardModels:
    """Train forward models of one frame and of a stack on the same replay: held-out R², rank correlation of bonuses."""

    run: Path | None = None
    """Run folder whose replay is still in its checkpoints; none collects a replay, as the settings below say."""
    env_id: str = "Hopper-v4"
    """Continuous task of gymnasium."""
    env_steps: Count = 5_000
    """Transitions to collect for each seed."""
    random_steps: Annotated[int, Ge(1)] = 1_000
    """Of these, so many with random actions; then SAC without curiosity learns and acts."""
    num_seeds: Annotated[int, Interval(ge=1, le=1024)] = 5
    """Seeds from --seed on; each has a replay and models of its own."""
    seed: Annotated[int, Ge(0)] = 0
    """The first seed."""
    stack: Annotated[int, Interval(ge=2, le=64)] = 4
    """States that the stacked forward model sees."""
    icm_observation: Literal["all", "positions"] = "all"
    """What the models see; with positions, the control, velocities are hidden: the stack must foresee more."""
    updates: Count = 2_000
    """Updates of every model, each on a batch of 256 transitions."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads; none means one for each core that other processes leave free."""
    output: Path = Path("results/rl/forward-models")
    """Folder for metrics.json and tables.md."""


def main(options: ForwardModels) -> None:
    """Collects, trains, measures; prints the output folder."""
    set_up("cpu", options.threads)
    settings, replay = kept(options) if options.run is not None else collected(options)
    learnt, held_out = split(replay, settings.seeds)
    models = {space: begin(settings, replay, shared=space == "shared") for space in SPACES}
    train(models, replay, learnt, settings, options.updates)
    drawn = replay.sample(held_out, settings.stack)
    record = measured(models, drawn.seeing(settings.seen_by_icm(replay.widths[0])))
    record |= {"env_id": settings.env_id, "transitions": replay.size, "held_out": held_out.shape[1]}
    record |= {"seeds": list(settings.seeds), "updates": options.updates, "icm_observation": settings.icm_observation}
    parameters = {name: forward_parameters(module) for name, module in models["own"].modules.items()}
    text = "\n".join(table.markdown() for table in tables(record, parameters)) + "\n" + verdict(record) + "\n"
    write_atomically(options.output / "metrics.json", json.dumps(record, indent=1).encode())
    write_atomically(options.output / "tables.md", text.encode())
    say(text)
    print(options.output)


def kept(options: ForwardModels) -> tuple[Settings, Replay]:
    """Returns a run's settings, with the options' stack and sight, and the replay in its checkpoints."""
    assert options.run is not None
    settings = cli.settings_of(Settings, options.run)
    settings = dataclasses.replace(
        settings, icm="stacked", stack=options.stack, icm_observation=options.icm_observation, forward_width=None
    )
    settings.check()
    folder = options.run / "checkpoints" / "replay"
    files = sorted(file for file in folder.glob("*.pt") if file.stem.isdigit())
    if not files:
        raise RunError(f"--run {options.run}: no replay is kept there; a finished run has deleted it")
    environments = Environments(settings.env_id, settings.reward, settings.seeds[:1], settings.task_arguments)
    sizes = environments.obs_dim, environments.action_dim
    replay = Replay(
        settings.num_seeds, min(settings.buffer_size, settings.env_steps), *sizes, device=torch.device("cpu")
    )
    begun = int(load_state(files[0])["since"])  # an extension may have begun with an empty ring
    replay.load_segments(folder, int(files[-1].stem), begun)
    return settings, replay


def collected(options: ForwardModels) -> tuple[Settings, Replay]:
    """Returns settings and the replay of random actions, then of SAC agents that learn as they go."""
    settings = Settings(
        env_id=options.env_id,
        icm="stacked",
        stack=options.stack,
        icm_observation=options.icm_observation,
        seed=options.seed,
        num_seeds=options.num_seeds,
        env_steps=options.env_steps + options.random_steps,  # also where all actions are random
        random_steps=options.random_steps,
    )
    settings.check()
    device = torch.device("cpu")
    environments = Environments(settings.env_id, settings.reward, settings.seeds)
    sizes = environments.obs_dim, environments.action_dim
    plain = dataclasses.replace(settings, icm="none", icm_observation="all")
    sac = SAC(plain, *sizes, [random_stream(seed, "sac weights") for seed in settings.seeds], device)
    replay = Replay(settings.num_seeds, options.env_steps, *sizes, device=device)
    streams = RandomStreams(settings.seeds, settings.batch_size, environments.action_dim, device)
    for step in range(1, options.env_steps + 1):
        exploration, noise = streams.noise()
        observation = environments.observation
        learning = step > options.random_steps
        action = sac.actor.act(observation, exploration) if learning else 2 * torch.special.ndtr(exploration) - 1
        next_observation, reward, terminated, ended = environments.step(action)
        replay.add(observation, next_observation, action, reward, terminated, ended)
        if learning:
            sac.update(replay.sample(streams.indices(replay.size)), noise)
    environments.close()
    return settings, replay


def tables(record: Mapping[str, Any], parameters: Mapping[str, int]) -> list[Table]:
    """Returns the tables of models and of pairs, means over seeds with t intervals."""
    r2, ranks = record["forward_r2"], record["rank_correlation"]
    caption = (
        f"{record['env_id']}, {len(record['seeds'])} seeds × {record['transitions']:,} transitions, the models see "
        f"{record['icm_observation']}; R² of φ(s′) on {record['held_out']:,} held-out transitions a seed, 95 % "
        "t intervals; own φ is another space for each model"
    )
    rows = [
        [name, f"{parameters[name]:,}", *(stats.t_mean(r2[space][name]).text(3) for space in SPACES)]
        for name in parameters
    ]
    pairs = []
    for pair, (one, other) in PAIRS.items():
        gains = [a - b for a, b in zip(r2["shared"][one], r2["shared"][other], strict=True)]
        correlations = [stats.t_mean(ranks[space][pair]).text(3) for space in SPACES]
        pairs.append([pair, *correlations, stats.t_mean(gains).text(4, signed=True)])
    heads = [f"R², {words}" for words in SPACES.values()]
    return [
        Table(["model", "parameters of the forward model", *heads], rows, caption),
        Table(
            ["pair", *(f"rank correlation, {words}" for words in SPACES.values()), "difference in R², one frozen φ"],
            pairs,
        ),
    ]


def verdict(record: Mapping[str, Any]) -> str:
    """Returns in a sentence whether stacked and single rank held-out transitions alike, each with its own φ."""
    ranks = {pair: stats.t_mean(values) for pair, values in record["rank_correlation"]["own"].items()}
    found, ceiling = ranks["stacked − single"], ranks["single again − single"]
    if found.estimate > ALIKE:
        words = (
            f"stacked and single rank states alike ({found.estimate:.2f} > {ALIKE}): little can follow from the stack"
        )
    else:
        words = f"stacked and single do not rank states alike ({found.estimate:.2f}, not above {ALIKE})"
    return f"{words}; two single models from different starts agree to {ceiling.estimate:.2f}"


if __name__ == "__main__":
    cli.command(main, ForwardModels)
