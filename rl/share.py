"""Shares trained agents: `python rl/share.py results/rl/RUN FOLDER` writes weights, settings and a model card.

`rl/play.py FOLDER` and `rl.load(FOLDER)` take the folder like the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from common import cli, sharing
from common.files import finished_metrics
from common.sharing import Card, Figure, Share
from common.tables import counted
from rl import train_dqn, train_sac_icm
from rl.dqn_settings import SCRIPTS, DQNSettings
from rl.policy import final_returns, loaded, settings_of
from rl.settings import Settings

LOAD = """
import gymnasium as gym
from rl import load

policy = load("{folder}")  # the agent with the best final return; or agent=SEED
env = gym.make("ENV")
observation, _ = env.reset(seed=0)
action = policy.act(observation)
"""


def main(options: Share) -> None:
    """Writes the folder and prints it."""
    metrics = finished_metrics(options.run, "eval_returns", SCRIPTS)
    settings = settings_of(options.run)
    final_returns(options.run, metrics, settings)  # which refuses damaged metrics
    sharing.share(options, settings, metrics, card(settings, metrics))
    print(options.folder)


def card(settings: Settings | DQNSettings, metrics: Mapping[str, Any]) -> Card:
    """Returns what the model card says of the agents."""
    if isinstance(settings, DQNSettings):
        title, script, method = train_dqn.model_title(settings), "rl/train_dqn.py", "dqn"
    else:
        title, script, method = train_sac_icm.model_title(settings), "rl/train_sac_icm.py", "soft-actor-critic"
    returns, env_id = metrics["eval_returns"], settings.env_id
    spread = statistics.stdev(returns) if len(returns) > 1 else 0.0
    last = metrics["evaluations_averaged"]
    limits = [
        f"{len(returns)} seed{'s' * (len(returns) > 1)}, {settings.env_steps:,} steps each: "
        "another seed may give a very different return.",
        f"The return is that of the policy without its noise, the mean over the last 10 % of the evaluations during "
        f"training: {counted(last, 'evaluation')} of {counted(settings.eval_episodes, 'episode')}. "
        "Behind +/- stands the deviation over the seeds.",
        "Trained in simulation, on one task; nothing is known of it elsewhere.",
    ]
    if metrics.get("failed"):
        limits.append(f"The means leave out the agents that failed in training: {len(metrics['failed'])}.")
    if settings.select == "best":
        limits.append(
            '`checkpoints/best.safetensors` (`load(…, weights="best")`) was chosen on the evaluations themselves: its '
            "return there is optimistic, and not the one given above."
        )
    return Card(
        what=f"{title}, trained on {env_id} ({settings.reward} reward).",
        task=("reinforcement-learning", "Reinforcement learning"),
        data=(env_id, env_id),
        on_hub=False,
        figures=[  # in the words that the hub's leaderboards read
            Figure("mean_reward", "mean return", f"{metrics['eval_return_mean']:.2f} +/- {spread:.2f}"),
            Figure("iqm_reward", "interquartile mean of the return", float(metrics["eval_return_iqm"])),
        ],
        tags=[env_id, "reinforcement-learning", "deep-reinforcement-learning", method]
        + (["curiosity"] if settings.icm != "none" else []),
        load=LOAD.replace("ENV", env_id),
        limits=limits,
        script=script,
        weights=["agents.safetensors", "best.safetensors"],
        pictures=["learning_curve"],
        small={"agents.safetensors": best_policy},
        made_small=(
            "Of the agents this folder has one, that of the best final return, and of it the policy alone, in half "
            "precision. Chosen among the seeds, it is better than the mean above."
        ),
    )


def best_policy(run: Path) -> bytes:
    """Returns the policy of the run's best agent in half precision, as safetensors; `rl.load` finds it alone."""
    settings, policy, _ = loaded(run, "best")
    prefix = "q_network." if isinstance(settings, DQNSettings) else "actor."
    weights = {prefix + name: tensor.half().contiguous() for name, tensor in policy.state_dict().items()}
    return safetensors.torch.save(weights)


if __name__ == "__main__":
    cli.command(main, Share)
