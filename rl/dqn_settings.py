"""The settings of DQN; `python rl/train_dqn.py --help` prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval

from rl.settings import AgentSettings, Count, Settings

Head = Literal["joint", "decoupled"]
SCRIPTS = "rl/train_sac_icm.py or rl/train_dqn.py"


@dataclasses.dataclass(frozen=True)
class DQNSettings(AgentSettings):
    """Train Double DQN on a grid of actions of a continuous task, several seeds side by side in one process."""

    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Adam's learning rate for the Q-networks (Seyde et al. 2023)."""
    n_step: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Rewards that a target sums before it bootstraps, fewer where the episode ends (Seyde et al. 2023)."""

    # 5. Double DQN on a grid (values of Seyde et al. 2023 and their code, unless a comment names another source)
    head: Head = "decoupled"
    """joint: a value for each action of the grid, bins^dimensions outputs (van Hasselt et al. 2016). decoupled: one for
    each bin of each dimension, bins·dimensions outputs, and the value of an action is their mean."""
    bins: Annotated[int, Interval(ge=2, le=1001)] = 3
    """Actions of a dimension, evenly spaced from −1 to 1: 2 is bang-bang, 3 bang-off-bang."""
    target_period: Count = 100
    """Updates between copies of the Q-network to its target network (van Hasselt et al. 2016: 10,000)."""
    epsilon: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of random choices in the end; in the random steps it is 1."""
    epsilon_steps: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 10_000
    """Environment steps after --random-steps over which that share falls linearly from 1 (Mnih et al. 2015, where it
    takes 1,000,000 frames of 50 million; Seyde et al. 2023 start with --epsilon at once, 0)."""


def kind_of(values: Mapping[str, Any]) -> type[Settings] | type[DQNSettings]:
    """Returns the class of a run's settings, as its config.yaml has them: only those of DQN say `head`."""
    return DQNSettings if "head" in values else Settings
