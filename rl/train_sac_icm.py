"""The curiosity experiment: SAC with an Intrinsic Curiosity Module on a continuous task, many seeds side by side.

`python rl/train_sac_icm.py --icm stacked` runs all of it; `--help` lists every setting. All tensors have a leading
`agents` axis, one agent for each seed; the agents take their steps at the same time and never exchange anything.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import torch
from torch import Tensor

from common import cli
from common.device import random_stream, set_up
from common.experiment import Run, say
from common.tables import counted
from rl import results
from rl.checkpoint import require_room
from rl.envs import Environments
from rl.replay import Replay
from rl.returns import sampled
from rl.sac import SAC
from rl.settings import Settings
from rl.streams import RandomStreams
from rl.training import Training

NAMES = {
    "none": "SAC",
    "single": "SAC + ICM",
    "stacked": "SAC + stacked ICM",
    "random": "SAC + shuffled ICM rewards",
    "rnd": "SAC + random network distillation",
}


def main(settings: Settings) -> None:
    """Runs the experiment, or the rest of a resumed one, and prints the run folder."""
    settings.check()
    require_room(settings)
    device = set_up(settings.device, settings.threads, huge_pages=True)
    environments = Environments(settings.env_id, settings.reward, settings.seeds, settings.task_arguments)
    obs_dim, action_dim = environments.obs_dim, environments.action_dim
    sac = SAC(settings, obs_dim, action_dim, [random_stream(seed, "sac weights") for seed in settings.seeds], device)
    replay = Replay(settings.num_seeds, min(settings.buffer_size, settings.env_steps), obs_dim, action_dim, device)
    run = Run(
        settings, "rl", results.folder_name(settings, "crossq-" * (settings.critic == "crossq") + settings.icm), device
    )
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    say(f"1/3 training: seeds {settings.seed} to {settings.seeds[-1]} on {settings.env_id}, run folder {run.path}")
    weights = run.remembered_weights("agents", lambda: train(run, settings, sac, environments, replay))
    results.put_back(run, settings, sac, weights)

    say("2/3 evaluating: the mean return over the last 10 % of the evaluations")
    metrics = results.final_metrics(run, settings, sac)

    say("3/3 drawing")
    results.draw(run, settings, metrics, model_title(settings), sac.actor)
    results.finish(run, metrics)


def train(run: Run, settings: Settings, sac: SAC, environments: Environments, replay: Replay) -> dict[str, Tensor]:
    """Returns the weights of all agents after `--env-steps` steps; goes on from the run's last checkpoint.

    Raises:
        RunError: of every agent an observation, a loss, an action or a weight was not a number, or the checkpoint is
            damaged.
    """
    streams = RandomStreams(settings.seeds, settings.batch_size, environments.action_dim, run.device)
    training = Training(run, settings, sac, environments, replay, streams)
    groups = training.groups
    update, update_critics = groups.update(SAC.update), groups.update(SAC.update_critics)

    with training.steps() as steps:
        for step in steps:
            # Act: uniformly at random at first, then with the policy
            exploration, noise = streams.noise()
            observation = environments.observation.to(run.device, non_blocking=True)  # (agents, obs)
            if step <= settings.random_steps:
                action = 2 * torch.special.ndtr(exploration) - 1  # the normal distribution function: uniform in [−1, 1]
            else:
                action = groups.act(observation, exploration)  # (agents, action)

            # Step the environments, store the transition
            training.step_and_store(step, observation, action)

            # Sample a batch, update: critics and curiosity, target critics, actor, temperature
            groups.each(SAC.weigh_bonus, step)
            upcoming = None if settings.bonus_episodic else environments.observation
            updates = training.updates(step)
            for number in updates:
                if number > updates.start:
                    _, noise = streams.noise()
                batch = sampled(replay, streams.indices(replay.size), settings, upcoming)
                with_policy = number % settings.policy_delay == 0
                training.meter.update(update(batch, noise) if with_policy else update_critics(batch, noise))

            # Log, evaluate, save
            training.record(step)
    return training.finished()


def model_title(settings: Settings) -> str:
    """Returns the agents in words, for the titles of figures."""
    name = NAMES.get(settings.icm, f"SAC + {settings.icm}")
    if settings.icm == "stacked":
        name += f" of {settings.stack}"
    if settings.critic == "crossq":
        name = name.replace("SAC", "CrossQ", 1)
    return f"{name}, {counted(settings.num_seeds, 'seed')}"


if __name__ == "__main__":
    cli.run(main, Settings)
