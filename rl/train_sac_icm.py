"""The curiosity experiment: SAC with an Intrinsic Curiosity Module on a continuous task, many seeds side by side.

`python rl/train_sac_icm.py --icm stacked` runs all of it; `--help` lists every setting. All tensors have a leading
`agents` axis, one agent for each seed; the agents take their steps at the same time and never exchange anything.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from common import cli, stats
from common.device import random_stream, set_up
from common.errors import RunError
from common.experiment import Run, say
from rl import figures, measures
from rl.checkpoint import Checkpoint, forget_replay, path_in, require_room
from rl.coverage import Coverage
from rl.envs import Environments, solved_at
from rl.evaluate import Evaluator, record_video
from rl.failures import TASK, Failures
from rl.fast import captured
from rl.meter import Meter
from rl.replay import Replay
from rl.returns import sampled
from rl.sac import SAC
from rl.selection import Best
from rl.settings import Settings
from rl.streams import RandomStreams

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
    task = re.sub(r"[^\w.-]", "-", settings.env_id)  # of `module:Name-v0` and `family/Name-v0` too, a folder's name
    run = Run(settings, "rl", f"{task}-{settings.reward}-{settings.icm}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    say(f"1/3 training: seeds {settings.seed} to {settings.seeds[-1]} on {settings.env_id}, run folder {run.path}")
    weights = run.remembered_weights("agents", lambda: train(run, settings, sac, environments, replay))
    if not settings.keep_state:
        forget_replay(run)
    try:
        sac.load_state_dict(weights)
    except RuntimeError:
        raise RunError(f"{run.checkpoints / 'agents.safetensors'}: not the weights of these agents") from None

    say("2/3 evaluating: the mean return over the last 10 % of the evaluations")
    metrics = final_metrics(run, settings, sac)

    say("3/3 drawing")
    title, caption = model_title(settings), f"{settings.env_id}, {settings.reward} reward"
    run.figure("learning_curve", figures.learning_curve(run.history("eval"), metrics["seeds"], title, caption))
    run.figure("training", figures.quantities(run.history("train"), metrics["seeds"], title, caption))
    if settings.video:
        _, best = max(zip(metrics["eval_returns"], metrics["seeds"], strict=True))
        video = run.figures / "best_policy.gif"
        record_video(sac.actor, best - settings.seed, settings.env_id, settings.reward, video, settings.task_arguments)
    run.finish(metrics, ("eval_return_mean", "eval_return_iqm", "agent_steps_per_second"))
    say(f"    return {metrics['eval_return_mean']:.0f} (mean), {metrics['eval_return_iqm']:.0f} (interquartile mean)")
    for agent in metrics["failed"]:
        say(f"    missing: seed {agent['seed']}, which ended at step {agent['step']}: {agent['cause']}")
    print(run.path)


def train(run: Run, settings: Settings, sac: SAC, environments: Environments, replay: Replay) -> dict[str, Tensor]:
    """Returns the weights of all agents after `--env-steps` steps; goes on from the run's last checkpoint.

    Raises:
        RunError: of every agent an observation, a loss, an action or a weight was not a number, or the checkpoint is
            damaged.
    """
    streams = RandomStreams(settings.seeds, settings.batch_size, environments.action_dim, run.device)
    evaluator = Evaluator(
        settings.env_id, settings.reward, settings.num_seeds, settings.eval_episodes, settings.task_arguments
    )
    meter = Meter(settings.num_seeds, run.device)
    coverage = Coverage(settings.num_seeds, environments.obs_dim)
    failures = Failures(settings.seeds, sac, environments, path_in(run))
    best = Best(settings.seeds, sac.actor)
    update, update_critics = captured(sac.update, run.device), captured(sac.update_critics, run.device)
    checkpoint = Checkpoint(run, sac, environments, replay, streams, meter, coverage, failures, best)
    checkpoint.load()
    run.rewind("train", replay.steps)
    run.rewind("eval", replay.steps)
    first = environments.observation
    failures.check_environment(replay.steps, first, first, torch.zeros(settings.num_seeds))

    with meter.progress(replay.steps, settings.env_steps):
        for step in range(replay.steps + 1, settings.env_steps + 1):
            last = step == settings.env_steps

            # Act: uniformly at random at first, then with the policy
            exploration, noise = streams.noise()
            observation = environments.observation.to(run.device)  # (agents, obs)
            if step <= settings.random_steps:
                action = 2 * torch.special.ndtr(exploration) - 1  # the normal distribution function: uniform in [−1, 1]
            else:
                action = sac.actor.act(observation, exploration)  # (agents, action)

            # Step the environments, store the transition
            acted = action.cpu()
            failures.check_action(step, acted)
            failures.silence(action, acted)
            next_observation, reward, terminated, ended = environments.step(acted)
            failures.check_environment(step, environments.observation, next_observation, reward)
            replay.add(observation, next_observation, action, reward, terminated, ended)

            # Sample a batch, update: critics and curiosity, target critics, actor, temperature
            sac.weigh_bonus(step)
            updates = settings.updates_of(step) if replay.added > settings.random_steps else range(0)
            for number in updates:
                if number > updates.start:
                    _, noise = streams.noise()
                batch = sampled(replay, streams.indices(replay.size), settings, environments.observation)
                with_policy = number % settings.policy_delay == 0
                meter.update(update(batch, noise) if with_policy else update_critics(batch, noise))
            meter.step(reward, ended)

            # Log, evaluate, save
            if step == settings.random_steps:
                coverage.update(replay)  # fixes the grid
            if meter.updates and (step % settings.log_every == 0 or last):
                with meter.paused():
                    averages, rate = meter.row()
                    diagnostics = sac.diagnostics(replay.sample(replay.newest(1000), settings.window))
                    visited = {"coverage": coverage.update(replay)}
                    values = averages | {name: value.tolist() for name, value in diagnostics.items()} | visited
                    failures.check_values(step, values)
                    row = by_seed(values, settings.seeds, failures.living)
                    run.log("train", step, row | {"agent_steps_per_second": rate})
            if step % settings.eval_every == 0 or last:
                with meter.paused():
                    failures.check_weights(step)
                    played = evaluator.play(sac.actor, failures.living)
                    returns, *others = (figure.mean(1).tolist() for figure in played)
                    failures.check_values(step, {"the evaluated return": returns}, TASK)
                    best.update(step, returns)
                    iqm = stats.interquartile_mean([returns[k] for k in failures.living])
                    summary = {"return_iqm": iqm.estimate, "return_iqm/low": iqm.low, "return_iqm/high": iqm.high}
                    named = {"return": returns} | dict(zip(("length", "distance"), others, strict=True))
                    if math.isnan(named["distance"][failures.living[0]]):
                        del named["distance"]  # nothing walks there
                    run.log("eval", step, by_seed(named, settings.seeds, failures.living) | summary)
            if (last and settings.keep_state) or (step % settings.checkpoint_every == 0 and not last):
                with meter.paused():
                    checkpoint.save()
    failures.check_weights(settings.env_steps)
    run.remembered("failed", failures.record)
    if settings.select == "best":
        best.write(run)
    return sac.state_dict()


def by_seed(values: Mapping[str, Sequence[float]], seeds: Sequence[int], living: Sequence[int]) -> dict[str, float]:
    """Returns the mean over `living` agents of each quantity under its name, each agent's as `<name>/seed<seed>`.

    The value of an agent that failed is NaN.
    """
    row = {name: statistics.fmean(column[k] for k in living) for name, column in values.items()}
    for name, column in values.items():
        row |= {f"{name}/seed{seed}": column[k] if k in living else math.nan for k, seed in enumerate(seeds)}
    return row


def final_metrics(run: Run, settings: Settings, sac: SAC) -> dict[str, Any]:
    """Returns the figures of metrics.json; a seed's final return is the mean over the last 10 % of its evaluations."""
    evaluations = run.history("eval")
    final = math.ceil(0.1 * len(evaluations["step"]))
    failed: list[dict[str, Any]] = run.remembered("failed", list)
    seeds = [seed for seed in settings.seeds if seed not in {agent["seed"] for agent in failed}]
    curves = figures.seed_curves(evaluations, "return", seeds)
    returns = [statistics.fmean(curve[-final:]) for curve in curves]
    mean, iqm = stats.mean(returns), stats.interquartile_mean(returns)
    learned = sum(p.numel() for p in sac.curiosity.parameters() if p.requires_grad) if sac.curiosity else 0
    return {
        "dataset": {
            "name": settings.env_id,
            "source": ", ".join(f"{name} {version(name)}" for name in ("gymnasium", "mujoco") if find_spec(name)),
            "images": 0,
        },
        "icm": settings.icm,
        "env_id": settings.env_id,
        "reward": settings.reward,
        "seeds": seeds,
        "failed": failed,
        **({"best": run.remembered("best", list)} if settings.select == "best" else {}),
        "env_steps": settings.env_steps,
        "eval_returns": returns,
        "eval_return_mean": mean.estimate,
        "eval_return_interval": [mean.low, mean.high],
        "eval_return_iqm": iqm.estimate,
        "eval_return_iqm_interval": [iqm.low, iqm.high],
        "evaluations_averaged": final,
        "last_eval_returns": [curve[-1] for curve in curves],
        "agent_steps_per_second": statistics.median(run.history("train")["agent_steps_per_second"]),
        "solved_at": solved_at(settings.env_id, settings.reward),
        **measures.of_seeds(evaluations, run.history("train"), seeds),
        "curiosity_parameters": learned // settings.num_seeds,
    }


def model_title(settings: Settings) -> str:
    """Returns the agents in words, for the titles of figures."""
    name = NAMES.get(settings.icm, f"SAC + {settings.icm}")
    if settings.icm == "stacked":
        name += f" of {settings.stack}"
    return f"{name}, {settings.num_seeds} seed{'s' * (settings.num_seeds > 1)}"


if __name__ == "__main__":
    cli.run(main, Settings)
