"""DQN on a continuous task, the original report's first attempt: Double DQN on a grid of actions, many seeds at once.

`python rl/train_dqn.py` runs all of it; `--help` lists every setting. Task, replay, curiosity, evaluation and records
are those of `rl/train_sac_icm.py`. All tensors have a leading `agents` axis, one agent for each seed.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

from torch import Tensor

from common import cli
from common.device import random_stream, set_up
from common.experiment import Run, say
from common.tables import counted
from rl import results
from rl.checkpoint import require_room
from rl.dqn import DQN, epsilon_at
from rl.dqn_settings import DQNSettings
from rl.envs import Environments
from rl.replay import Replay
from rl.returns import sampled
from rl.streams import RandomStreams
from rl.training import Training


def main(settings: DQNSettings) -> None:
    """Runs the experiment, or the rest of a resumed one, and prints the run folder."""
    settings.check()
    require_room(settings)
    device = set_up(settings.device, settings.threads, huge_pages=True)
    environments = Environments(settings.env_id, settings.reward, settings.seeds, settings.task_arguments)
    obs_dim, action_dim = environments.obs_dim, environments.action_dim
    dqn = DQN(settings, obs_dim, action_dim, [random_stream(seed, "dqn weights") for seed in settings.seeds], device)
    replay = Replay(settings.num_seeds, min(settings.buffer_size, settings.env_steps), obs_dim, action_dim, device)
    run = Run(settings, "rl", results.folder_name(settings, f"dqn-{settings.head}-{settings.icm}"), device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    say(f"1/3 training: seeds {settings.seed} to {settings.seeds[-1]} on {settings.env_id}, run folder {run.path}")
    weights = run.remembered_weights("agents", lambda: train(run, settings, dqn, environments, replay))
    results.put_back(run, settings, dqn, weights)

    say("2/3 evaluating: the mean return over the last 10 % of the evaluations")
    metrics = results.final_metrics(run, settings, dqn)

    say("3/3 drawing")
    results.draw(run, settings, metrics, model_title(settings), dqn.q_network)
    results.finish(run, metrics)


def train(run: Run, settings: DQNSettings, dqn: DQN, environments: Environments, replay: Replay) -> dict[str, Tensor]:
    """Returns the weights of all agents after `--env-steps` steps; goes on from the run's last checkpoint.

    Raises:
        RunError: of every agent an observation, a loss, an action or a weight was not a number, or the checkpoint is
            damaged.
    """
    heads = dqn.q_network.grid.heads
    streams = RandomStreams(settings.seeds, settings.batch_size, 0, run.device, exploration=2 * heads)
    training = Training(run, settings, dqn, environments, replay, streams)
    groups = training.groups
    update = groups.update(DQN.update)

    with training.steps() as steps:
        for step in steps:
            # Act: ε-greedily, with ε = 1 in the random steps
            exploration, noise = streams.noise()
            observation = environments.observation.to(run.device, non_blocking=True)  # (agents, obs)
            action = groups.act(observation, exploration, epsilon_at(step, settings))  # (agents, action)

            # Step the environments, store the transition
            training.step_and_store(step, observation, action)

            # Sample a batch, update: Q-networks and curiosity, from time to time the target networks
            groups.each(DQN.weigh_bonus, step)
            updates = training.updates(step)
            for number in updates:
                if number > updates.start:
                    _, noise = streams.noise()
                training.meter.update(update(sampled(replay, streams.indices(replay.size), settings), noise))
                if number % settings.target_period == 0:
                    groups.each(DQN.update_target)

            # Log, evaluate, save
            training.record(step)
    return training.finished()


def model_title(settings: DQNSettings) -> str:
    """Returns the agents in words, for the titles of figures."""
    curiosity = "" if settings.icm == "none" else f" + {settings.icm} curiosity"
    return f"DQN, {settings.head} head, {settings.bins} bins{curiosity}, {counted(settings.num_seeds, 'seed')}"


if __name__ == "__main__":
    cli.run(main, DQNSettings)
