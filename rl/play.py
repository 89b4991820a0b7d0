"""Plays a trained agent: `python rl/play.py results/rl/RUN` prints its returns, films it, exports its policy.

The policy acts without its noise, or without random choices, in the task and with the reward that it was trained on.
The episodes have the start states of the evaluations during training, so as many episodes have the returns of the last
evaluation.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Interval

from common import cli
from common.device import set_up
from common.errors import UsageError
from common.experiment import say
from rl.envs import make
from rl.evaluate import Evaluator, record_video
from rl.networks import ActingNetwork
from rl.policy import ENDINGS, Agent, Policy, Weights, action_space, loaded


@dataclasses.dataclass(frozen=True)
class Play:
    """Play a trained agent of a finished run, print its returns, film it, export its policy."""

    run: tyro.conf.Positional[Path]
    """Run folder of rl/train_sac_icm.py or rl/train_dqn.py, such as results/rl/none."""
    agent: Agent = "best"
    """The agent of this seed, or the one with the best final return."""
    weights: Weights = "last"
    """The agent's weights at the end of the training, or at its best evaluation (of a run with --select best)."""
    episodes: Annotated[int, Interval(ge=0, le=10_000)] = 10
    """Episodes to play; 0 plays none."""
    video: Path | None = None
    """GIF to write, of the first episode; it needs off-screen rendering."""
    env_id: str | None = None
    """Another task to play in, with the same observations and actions, such as Hopper-v5; none means its own."""
    export: Path | None = None
    """File for the policy alone: .pt (TorchScript), .pt2 (torch.export) or .onnx, which need none of this code."""


def main(options: Play) -> None:
    """Plays, and prints a line for each episode; the files it wrote come last."""
    set_up("cpu", threads=1)
    if options.export is not None and options.export.suffix not in ENDINGS:
        raise UsageError(f"--export {options.export}: the name must end in {', '.join(ENDINGS)}")
    if options.video is not None and options.video.suffix != ".gif":
        raise UsageError(f"--video {options.video}: the name must end in .gif")
    settings, network, seed = loaded(options.run, options.agent, options.weights)
    env_id = options.env_id or settings.env_id
    arguments = settings.task_arguments if env_id == settings.env_id else {}
    require_same_spaces(env_id, arguments, network)
    say(f"the agent of seed {seed} of {options.run} in {env_id}, {settings.reward} reward, without noise")
    if options.episodes:
        (returns,) = Evaluator(env_id, settings.reward, 1, options.episodes, arguments).returns(network).tolist()
        for number, value in enumerate(returns, 1):
            print(f"episode {number}: return {value:.1f}")
        spread = f" ± {statistics.stdev(returns):.1f}" if len(returns) > 1 else ""
        print(f"mean return {statistics.fmean(returns):.1f}{spread}")
    if options.export is not None:
        options.export.parent.mkdir(parents=True, exist_ok=True)
        Policy.of(network, 0, action_space(env_id, arguments)).export(options.export)
        print(options.export)
    if options.video is not None and record_video(*(network, 0, env_id, settings.reward, options.video, arguments)):
        print(options.video)


def require_same_spaces(env_id: str, arguments: Mapping[str, Any], network: ActingNetwork) -> None:
    """Raises UsageError if the task's observations or actions have another size than the policy's."""
    env = make(env_id, "dense", arguments=arguments)
    sizes = tuple(int(space.shape[0]) for space in (env.observation_space, env.action_space) if space.shape)
    env.close()
    expected = (network.network.weights[0].shape[1], network.action_dim)
    if sizes != expected:
        raise UsageError(
            f"--env-id {env_id}: {sizes[0]} observations and {sizes[1]} actions, the policy has {expected[0]} and "
            f"{expected[1]}"
        )


if __name__ == "__main__":
    cli.command(main, Play)
