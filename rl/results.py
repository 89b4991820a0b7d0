"""What a run of any kind of agent ends with: the trained agents put back, metrics.json, figures, a film."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from common import stats
from common.errors import RunError
from common.experiment import Run, say
from rl import figures, measures
from rl.agents import Agents
from rl.checkpoint import forget_replay
from rl.envs import solved_at
from rl.evaluate import record_video
from rl.networks import ActingNetwork
from rl.settings import AgentSettings

HEADLINE = ("eval_return_mean", "eval_return_iqm", "agent_steps_per_second")


def folder_name(settings: AgentSettings, kind: str) -> str:
    """Returns how the folder of a run without `--run-name` begins."""
    task = re.sub(r"[^\w.-]", "-", settings.env_id)  # of `module:Name-v0` and `family/Name-v0` too, a folder's name
    return f"{task}-{settings.reward}-{kind}"


def put_back(run: Run, settings: AgentSettings, agents: Agents, weights: Mapping[str, Tensor]) -> None:
    """Gives the agents the weights that the training ended with; the replay is not needed any more.

    Raises:
        RunError: the weights are of other agents.
    """
    if not settings.keep_state:
        forget_replay(run)
    try:
        agents.load_state_dict(weights)
    except RuntimeError:
        raise RunError(f"{run.checkpoints / 'agents.safetensors'}: not the weights of these agents") from None


def final_metrics(run: Run, settings: AgentSettings, agents: Agents) -> dict[str, Any]:
    """Returns the figures of metrics.json; a seed's final return is the mean over the last 10 % of its evaluations."""
    evaluations = run.history("eval")
    final = math.ceil(0.1 * len(evaluations["step"]))
    failed: list[dict[str, Any]] = run.remembered("failed", list)
    seeds = [seed for seed in settings.seeds if seed not in {agent["seed"] for agent in failed}]
    curves = figures.seed_curves(evaluations, "return", seeds)
    returns = [statistics.fmean(curve[-final:]) for curve in curves]
    mean, iqm = stats.mean(returns), stats.interquartile_mean(returns)
    learned = sum(p.numel() for p in agents.curiosity.parameters() if p.requires_grad) if agents.curiosity else 0
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


def draw(run: Run, settings: AgentSettings, metrics: Mapping[str, Any], title: str, policy: ActingNetwork) -> None:
    """Draws learning curve and training, under `title`, and with `--video` films the best final policy."""
    caption = f"{settings.env_id}, {settings.reward} reward"
    run.figure("learning_curve", figures.learning_curve(run.history("eval"), metrics["seeds"], title, caption))
    run.figure("training", figures.quantities(run.history("train"), metrics["seeds"], title, caption))
    if settings.video:
        _, best = max(zip(metrics["eval_returns"], metrics["seeds"], strict=True))
        video = run.figures / "best_policy.gif"
        record_video(policy, best - settings.seed, settings.env_id, settings.reward, video, settings.task_arguments)


def finish(run: Run, metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json, says what came out and who is missing, and prints the run folder."""
    run.finish(metrics, HEADLINE)
    say(f"    return {metrics['eval_return_mean']:.0f} (mean), {metrics['eval_return_iqm']:.0f} (interquartile mean)")
    for agent in metrics["failed"]:
        say(f"    missing: seed {agent['seed']}, which ended at step {agent['step']}: {agent['cause']}")
    print(run.path)
