"""The curiosity experiment: SAC with an Intrinsic Curiosity Module on a MuJoCo task, many seeds in lockstep.

`python rl/train_sac_icm.py --icm stacked` runs all of it; `--help` lists every setting.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from common import cli, stats
from common.device import set_up, synchronize
from common.errors import RunError
from common.experiment import Run, require_finite, say
from common.training import progress_bar
from rl import figures
from rl.evaluate import Evaluator, film
from rl.lockstep import Lockstep, checkpoint, forget_replay
from rl.settings import Settings

NAMES = {
    "none": "SAC",
    "single": "SAC + ICM",
    "stacked": "SAC + stacked ICM",
    "random": "SAC + shuffled ICM rewards",
    "rnd": "SAC + random network distillation",
}


def main(settings: Settings) -> None:
    """Runs the experiment, or what is left of it, and prints the run folder."""
    settings.check()
    device = set_up(settings.device, settings.threads, huge_pages=True)
    agents = Lockstep(settings, device)
    run = Run(settings, "rl", f"{settings.env_id}-{settings.reward}-{settings.icm}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    say(f"1/3 training: seeds {settings.seed} to {settings.seeds[-1]} on {settings.env_id}, run folder {run.path}")
    weights = run.remembered_weights("agents", lambda: train(run, settings, agents))
    forget_replay(run)
    try:
        agents.sac.load_state_dict(weights)
    except RuntimeError:
        raise RunError(f"{run.checkpoints / 'agents.safetensors'}: not the weights of these agents") from None

    say("2/3 judging")
    metrics = judge(run, settings, agents)

    say("3/3 drawing")
    title, caption = model_title(settings), f"{settings.env_id}, {settings.reward} reward"
    run.figure("learning_curve", figures.learning_curve(run.history("eval"), settings.seeds, title, caption))
    run.figure("training", figures.quantities(run.history("train"), settings.seeds, title, caption))
    if settings.video:
        best = max(range(settings.num_seeds), key=lambda k: metrics["eval_returns"][k])
        film(agents.sac.actor, best, settings.env_id, settings.reward, run.figures / "best_policy.gif")
    run.finish(metrics, ("eval_return_mean", "eval_return_iqm", "agent_steps_per_second"))
    say(f"    return {metrics['eval_return_mean']:.0f} (mean), {metrics['eval_return_iqm']:.0f} (interquartile mean)")
    print(run.path)


def train(run: Run, settings: Settings, agents: Lockstep) -> dict[str, Tensor]:
    """Returns the weights of all agents after `--env-steps` steps, going on from the run's last checkpoint.

    Raises:
        RunError: a loss, an action or a weight is not a number, or the checkpoint is damaged.
    """
    agents.load(run)
    saved = agents.step
    run.rewind("train", saved)
    run.rewind("eval", saved)
    evaluator = Evaluator(settings.env_id, settings.reward, settings.num_seeds, settings.eval_episodes)
    watched, rows_since = time.perf_counter(), agents.step
    with progress_bar("training", saved, settings.env_steps) as bar:
        while agents.step < settings.env_steps:
            agents.advance()
            step, last = agents.step, agents.step == settings.env_steps
            bar.update()
            if step == settings.random_steps:  # the rate is that of steps with an update
                watched, rows_since = time.perf_counter(), step
            if (step % settings.log_every == 0 or last) and agents.summed:
                synchronize(run.device)
                rate = settings.num_seeds * (step - rows_since) / (time.perf_counter() - watched)
                row = by_seed(agents.averages(), settings.seeds)
                for name, value in row.items():
                    require_finite(value, f"step {step}: {name}", checkpoint(run))
                run.log("train", step, row | {"agent_steps_per_second": rate})
                bar.set_postfix_str(f"return={row['return']:.0f}, {rate:.0f} agent steps/s")
                watched, rows_since = time.perf_counter(), step
            if step % settings.eval_every == 0 or last:
                pause = time.perf_counter()
                returns = evaluator.returns(agents.sac.actor).mean(1).tolist()
                middle = stats.interquartile_mean(returns)
                summary = {"return_iqm": middle.estimate, "return_iqm/low": middle.low, "return_iqm/high": middle.high}
                run.log("eval", step, by_seed({"return": returns}, settings.seeds) | summary)
                watched += time.perf_counter() - pause
            if step % settings.checkpoint_every == 0 and not last:
                pause = time.perf_counter()
                agents.save(run, saved)
                saved = step
                watched += time.perf_counter() - pause
    agents.require_finite_weights()
    return agents.sac.state_dict()


def by_seed(values: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> dict[str, float]:
    """Returns the mean over agents of each quantity under its name, and each agent's value as `<name>/seed<seed>`."""
    row = {name: statistics.fmean(column) for name, column in values.items()}
    for name, column in values.items():
        row |= {f"{name}/seed{seed}": value for seed, value in zip(seeds, column, strict=True)}
    return row


def judge(run: Run, settings: Settings, agents: Lockstep) -> dict[str, Any]:
    """Returns the figures of metrics.json: for each seed the mean over the last 10 % of its evaluations."""
    evaluations = run.history("eval")
    final = math.ceil(0.1 * len(evaluations["step"]))
    curves = figures.seed_curves(evaluations, "return", settings.seeds)
    returns = [statistics.fmean(curve[-final:]) for curve in curves]
    average, middle = stats.mean(returns), stats.interquartile_mean(returns)
    curiosity = agents.sac.curiosity
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
        "eval_return_mean": average.estimate,
        "eval_return_interval": [average.low, average.high],
        "eval_return_iqm": middle.estimate,
        "eval_return_iqm_interval": [middle.low, middle.high],
        "evaluations_averaged": final,
        "last_eval_returns": [curve[-1] for curve in curves],
        "agent_steps_per_second": statistics.median(run.history("train")["agent_steps_per_second"]),
        "curiosity_parameters": sum(p.numel() for p in curiosity.parameters() if p.requires_grad) // settings.num_seeds
        if curiosity
        else 0,
    }


def model_title(settings: Settings) -> str:
    """Returns the agents in words, for figures."""
    name = NAMES.get(settings.icm, f"SAC + {settings.icm}")
    if settings.icm == "stacked":
        name += f" of {settings.stack}"
    return f"{name}, {settings.num_seeds} seed{'s' * (settings.num_seeds > 1)}"


if __name__ == "__main__":
    cli.run(main, Settings)
