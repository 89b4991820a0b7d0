"""The curiosity experiment: SAC with an Intrinsic Curiosity Module on a MuJoCo task, many seeds side by side.

`python rl/train_sac_icm.py --icm stacked` runs all of it; `--help` lists every setting. All tensors have a leading
`agents` axis, one agent for each seed; the agents take their steps at the same time and never exchange anything.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from common import cli, stats
from common.device import random_stream, set_up
from common.errors import RunError
from common.experiment import Run, say
from rl import figures
from rl.checkpoint import Checkpoint, forget_replay
from rl.envs import Environments
from rl.evaluate import Evaluator, record_video
from rl.fast import captured
from rl.meter import Meter
from rl.replay import Replay
from rl.sac import SAC
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
    device = set_up(settings.device, settings.threads, huge_pages=True)
    environments = Environments(settings.env_id, settings.reward, settings.seeds)
    obs_dim, action_dim = environments.obs_dim, environments.action_dim
    sac = SAC(settings, obs_dim, action_dim, [random_stream(seed, "sac weights") for seed in settings.seeds], device)
    replay = Replay(settings.num_seeds, min(settings.buffer_size, settings.env_steps), obs_dim, action_dim, device)
    run = Run(settings, "rl", f"{settings.env_id}-{settings.reward}-{settings.icm}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    say(f"1/3 training: seeds {settings.seed} to {settings.seeds[-1]} on {settings.env_id}, run folder {run.path}")
    weights = run.remembered_weights("agents", lambda: train(run, settings, sac, environments, replay))
    forget_replay(run)
    try:
        sac.load_state_dict(weights)
    except RuntimeError:
        raise RunError(f"{run.checkpoints / 'agents.safetensors'}: not the weights of these agents") from None

    say("2/3 evaluating: the mean return over the last 10 % of the evaluations")
    metrics = final_metrics(run, settings, sac)

    say("3/3 drawing")
    title, caption = model_title(settings), f"{settings.env_id}, {settings.reward} reward"
    run.figure("learning_curve", figures.learning_curve(run.history("eval"), settings.seeds, title, caption))
    run.figure("training", figures.quantities(run.history("train"), settings.seeds, title, caption))
    if settings.video:
        best = max(range(settings.num_seeds), key=lambda k: metrics["eval_returns"][k])
        record_video(sac.actor, best, settings.env_id, settings.reward, run.figures / "best_policy.gif")
    run.finish(metrics, ("eval_return_mean", "eval_return_iqm", "agent_steps_per_second"))
    say(f"    return {metrics['eval_return_mean']:.0f} (mean), {metrics['eval_return_iqm']:.0f} (interquartile mean)")
    print(run.path)


def train(run: Run, settings: Settings, sac: SAC, environments: Environments, replay: Replay) -> dict[str, Tensor]:
    """Returns the weights of all agents after `--env-steps` steps; goes on from the run's last checkpoint.

    Raises:
        RunError: a loss, an action or a weight is not a number, or the checkpoint is damaged.
    """
    streams = RandomStreams(settings.seeds, settings.batch_size, environments.action_dim, run.device)
    evaluator = Evaluator(settings.env_id, settings.reward, settings.num_seeds, settings.eval_episodes)
    meter = Meter(settings.num_seeds, run.device)
    update = captured(sac.update, run.device)
    checkpoint = Checkpoint(run, sac, environments, replay, streams, meter)
    checkpoint.load()
    run.rewind("train", replay.steps)
    run.rewind("eval", replay.steps)

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
            checkpoint.require_finite_action(acted)
            next_observation, reward, terminated, ended = environments.step(acted)
            replay.add(observation, next_observation, action, reward, terminated, ended)

            # Sample a batch, update: critics and curiosity, actor, temperature, target critics
            measured: dict[str, Tensor] = {}
            if step > settings.random_steps:
                batch = replay.sample(streams.indices(replay.size), settings.window)
                measured = update(batch, noise)
            meter.step(reward, ended, measured)

            # Log, evaluate, save
            if meter.updates and (step % settings.log_every == 0 or last):
                with meter.paused():
                    averages, rate = meter.row()
                    diagnostics = sac.diagnostics(replay.sample(replay.newest(1000), settings.window))
                    row = by_seed(averages | {k: v.tolist() for k, v in diagnostics.items()}, settings.seeds)
                    for name, value in row.items():
                        checkpoint.require_finite(value, name)
                    run.log("train", step, row | {"agent_steps_per_second": rate})
            if step % settings.eval_every == 0 or last:
                with meter.paused():
                    returns = evaluator.returns(sac.actor).mean(1).tolist()
                    iqm = stats.interquartile_mean(returns)
                    summary = {"return_iqm": iqm.estimate, "return_iqm/low": iqm.low, "return_iqm/high": iqm.high}
                    run.log("eval", step, by_seed({"return": returns}, settings.seeds) | summary)
            if step % settings.checkpoint_every == 0 and not last:
                with meter.paused():
                    checkpoint.save()
    checkpoint.require_finite_weights()
    return sac.state_dict()


def by_seed(values: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> dict[str, float]:
    """Returns the mean over agents of each quantity under its name, and each agent's value as `<name>/seed<seed>`."""
    row = {name: statistics.fmean(column) for name, column in values.items()}
    for name, column in values.items():
        row |= {f"{name}/seed{seed}": value for seed, value in zip(seeds, column, strict=True)}
    return row


def final_metrics(run: Run, settings: Settings, sac: SAC) -> dict[str, Any]:
    """Returns the figures of metrics.json; a seed's final return is the mean over the last 10 % of its evaluations."""
    evaluations = run.history("eval")
    final = math.ceil(0.1 * len(evaluations["step"]))
    curves = figures.seed_curves(evaluations, "return", settings.seeds)
    returns = [statistics.fmean(curve[-final:]) for curve in curves]
    mean, iqm = stats.mean(returns), stats.interquartile_mean(returns)
    learned = sum(p.numel() for p in sac.curiosity.parameters() if p.requires_grad) if sac.curiosity else 0
    return {
        "dataset": {
            "name": settings.env_id,
            "source": f"gymnasium {version('gymnasium')}, mujoco {version('mujoco')}",
            "images": 0,
        },
        "icm": settings.icm,
        "env_id": settings.env_id,
        "reward": settings.reward,
        "seeds": list(settings.seeds),
        "env_steps": settings.env_steps,
        "eval_returns": returns,
        "eval_return_mean": mean.estimate,
        "eval_return_interval": [mean.low, mean.high],
        "eval_return_iqm": iqm.estimate,
        "eval_return_iqm_interval": [iqm.low, iqm.high],
        "evaluations_averaged": final,
        "last_eval_returns": [curve[-1] for curve in curves],
        "agent_steps_per_second": statistics.median(run.history("train")["agent_steps_per_second"]),
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
