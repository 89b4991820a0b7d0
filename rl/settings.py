"""The settings that all agents share, and those of SAC; `python rl/train_sac_icm.py --help` prints them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import tyro
import yaml
from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import BeforeValidator

from common.cli import RunSettings
from common.errors import UsageError
from common.extending import Extension
from common.plain_yaml import yaml_values

Count = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Width = Annotated[int, Interval(ge=1, le=8192)]
YamlMapping = Annotated[str, BeforeValidator(lambda given: json.dumps(given) if isinstance(given, dict) else given)]
Curiosity = Literal["none", "single", "stacked", "random", "rnd"]
BonusKind = Literal["plain", "centred"]
RewardKind = Literal["dense", "sparse"]
Critic = Literal["twin", "crossq"]
# Numbers at the start of the observation that are positions and angles; velocities follow.
POSITIONS = {"Hopper": 5, "HalfCheetah": 8, "Walker2d": 8}


@dataclasses.dataclass(frozen=True)
class AgentSettings(RunSettings):
    """What every kind of agent has: a task, a curiosity module, a replay to learn from, evaluations."""

    smoke: ClassVar[dict[str, Any]] = {
        "num_seeds": 2,
        "env_steps": 1200,
        "random_steps": 400,
        "batch_size": 64,
        "hidden": (64, 64),
        "eval_every": 400,
        "eval_episodes": 2,
        "log_every": 200,
        "checkpoint_every": 400,
    }
    once_finished: ClassVar[Mapping[str, str]] = {"video": "python rl/play.py {run} --video FILE.gif films it"}
    extension: ClassVar[Extension | None] = Extension(
        length="env_steps",
        stage="agents",
        may_change=(
            *("eval_every", "eval_episodes", "log_every", "checkpoint_every", "select", "video"),
            *("learning_rate", "critic_learning_rate", "icm_learning_rate", "policy_delay", "updates_per_step"),
            *("batch_size", "discount", "target_rate", "target_entropy", "target_period"),
            *("intrinsic_weight", "extrinsic_weight", "bonus", "bonus_decay", "forward_share", "deviation_horizon"),
        ),
        missing=(
            "the replay starts empty, and learning goes on after --random-steps steps of the policy; "
            "the optimisers' moments start at zero, and visited cells are not counted any more"
        ),
        history="train",
        state=("replay",),
        beside=("best.safetensors",),
        forget=("failed", "best"),
    )

    dataset: Literal["auto"] = "auto"
    """Has no effect here: the data come from the environment."""

    # 1. Task
    env_id: str = "Hopper-v4"
    """Continuous task of gymnasium, as Hopper-v4; module:Name-v0 imports the module that registers it."""
    env_kwargs: YamlMapping = ""
    """Arguments of the task as a YAML or JSON mapping: '{forward_reward_weight: 2}'."""
    reward: RewardKind = "dense"
    """dense: the task's own reward. sparse: +1 for every step that ends more than 1 m ahead of the start, else 0."""
    num_seeds: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Independent agents in this process; their seeds are --seed, --seed + 1, …"""
    env_steps: Count = 100_000
    """Environment steps of each agent; after --random-steps, each step has --updates-per-step updates. With
    --extend RUN the new total."""

    # 2. Curiosity
    icm: Curiosity = "none"
    """none: without. single: ICM on one state. stacked: on several. random: single's rewards shuffled. rnd: RND."""
    stack: Annotated[int, Interval(ge=1, le=64)] = 4
    """States that the forward model of --icm stacked sees: the current one and those before it in the episode.
    Four is usual (Mnih et al. 2015)."""
    intrinsic_weight: Annotated[float, Ge(0)] = 0.1
    """Weight of the intrinsic reward, which is first divided by its running standard deviation. Ours."""
    bonus: BonusKind = "plain"
    """plain: divided by its deviation (RND: by that of its returns). centred: less its mean, clipped to ±1 (rllte)."""
    bonus_decay: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the training over which --intrinsic-weight falls linearly to 0; 0 keeps it. Ours."""
    extrinsic_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the task's reward; 0 trains on curiosity alone."""
    icm_observation: Literal["all", "positions"] = "all"
    """What the curiosity module sees of the observation; positions hides the velocities. The policy sees all."""
    feature_size: Width = 32
    """Dimensions of the encoding φ(s). Ours."""
    icm_width: Width = 128
    """Hidden units of the encoder, the inverse model and the forward model. Ours."""
    forward_width: Width | None = None
    """Hidden units of the forward model, to give single as many parameters as stacked; None means --icm-width."""
    forward_share: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """β of the loss (1 − β)·inverse + β·forward (Eq. 7, Pathak et al. 2017)."""
    icm_learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Adam's learning rate for the curiosity module (Pathak et al. 2017)."""
    deviation_horizon: Count = 1000
    """Memory, in updates, of the running mean and standard deviation of the intrinsic reward. Ours."""

    # 3. Learning from the replay
    hidden: Annotated[tuple[Width, ...], MinLen(1)] = (256, 256)
    """Hidden layers of the networks that act and that value actions (Haarnoja et al. 2018b)."""
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Adam's learning rate for the actor, the critics and the temperature (Haarnoja et al. 2018b)."""
    updates_per_step: Count = 1
    """Updates after each environment step, each on a batch of its own (Chen et al. 2021, REDQ: 20)."""
    batch_size: Count = 256
    """Transitions in the batch of an update."""
    buffer_size: Annotated[int, Interval(ge=2, le=1_000_000_000)] = 1_000_000
    """Transitions that the replay buffer keeps for each agent."""
    random_steps: Annotated[int, Ge(1), tyro.conf.arg(aliases=["--learning-starts"])] = 5_000
    """Steps with uniformly random actions and no update, before learning starts (CleanRL)."""
    discount: Annotated[float, Interval(ge=0, lt=1), tyro.conf.arg(aliases=["--gamma"])] = 0.99
    """Discount factor γ of a step."""
    n_step: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Rewards that the critics' target sums before it bootstraps, fewer where the episode ends (MR.Q: 3)."""

    # 4. Evaluation and records
    eval_every: Count = 5_000
    """Environment steps between evaluations of the policy without its noise."""
    eval_episodes: Annotated[int, Interval(ge=1, le=1000)] = 10
    """Episodes of an evaluation; they run in separate environments and have the same start states every time."""
    log_every: Count = 1_000
    """Environment steps between rows of losses and training returns in history.csv; a row averages over them."""
    checkpoint_every: Count = 10_000
    """Environment steps between checkpoints."""
    select: Literal["last", "best"] = "last"
    """best: keep each agent's policy with the best evaluation beside the last one, in checkpoints/best.safetensors. The
    reported returns are those of the last evaluations all the same: a maximum over the training is optimistic."""
    video: bool = False
    """Record a GIF of an episode of the best final policy; skipped, with a message, where nothing can be rendered."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        _ = self.task_arguments
        if self.random_steps >= self.env_steps:
            raise UsageError(
                f"--random-steps {self.random_steps} with --env-steps {self.env_steps}: no step is left for learning"
            )
        if self.extrinsic_weight == 0 and (self.icm == "none" or self.intrinsic_weight == 0):
            raise UsageError(f"--extrinsic-weight 0 with --icm {self.icm}: no reward is left; give curiosity a weight")
        if self.extrinsic_weight == 0 and self.bonus_decay > 0:
            raise UsageError(
                f"--extrinsic-weight 0 with --bonus-decay {self.bonus_decay:g}: no reward is left at the end"
            )
        if self.forward_width is not None and self.icm not in ("single", "stacked", "random"):
            raise UsageError(f"--forward-width {self.forward_width} with --icm {self.icm}: it has no forward model")
        if self.icm == "none" and self.icm_observation != "all":
            raise UsageError(f"--icm-observation {self.icm_observation} with --icm none: there is no ICM")
        if self.icm_observation == "positions":
            chosen = f"--icm-observation positions with --env-id {self.env_id}"
            if self.family not in POSITIONS:
                raise UsageError(f"{chosen}: known for {', '.join(POSITIONS)}")
            if "exclude_current_positions_from_observation" in self.task_arguments:
                raise UsageError(f"{chosen}: not with exclude_current_positions_from_observation in --env-kwargs")

    @property
    def family(self) -> str:
        """The task's name without its version, `Hopper` of `Hopper-v4`."""
        return self.env_id.rpartition("-v")[0]

    def seen_by_icm(self, obs_dim: int) -> int:
        """Returns how many numbers of the observation, from its start, the curiosity module sees."""
        return obs_dim if self.icm_observation == "all" else POSITIONS[self.family]

    @property
    def task_arguments(self) -> dict[str, Any]:
        """What --env-kwargs says, as a mapping.

        Raises:
            UsageError: it is no mapping.
        """
        try:
            given = yaml_values(self.env_kwargs) if self.env_kwargs else {}
        except (ValueError, yaml.YAMLError):
            given = None
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise UsageError(f"--env-kwargs {self.env_kwargs}: write a mapping, as '{{name: value, other: value}}'")
        return given

    @property
    def seeds(self) -> range:
        """The agents' seeds."""
        return range(self.seed, self.seed + self.num_seeds)

    def updates_of(self, step: int) -> range:
        """The numbers, from 1 on, of the updates of environment step `step`; empty in the random steps."""
        learning = max(0, step - self.random_steps)
        return range(max(0, learning - 1) * self.updates_per_step + 1, learning * self.updates_per_step + 1)

    @property
    def window(self) -> int:
        """States that the forward model sees."""
        return self.stack if self.icm == "stacked" else 1


@dataclasses.dataclass(frozen=True)
class Settings(AgentSettings):
    """Train SAC with an Intrinsic Curiosity Module on a continuous task, several seeds side by side in one process."""

    # 5. Soft actor-critic (values of Haarnoja et al. 2018b, table 1, unless a comment names another source)
    critic: Critic = "twin"
    """twin: two critics and their moving averages as targets. crossq: batch renormalisation in critics and actor, no
    targets (Bhatt et al. 2024; configs/rl/crossq.yaml has the settings that go with it)."""
    critic_hidden: Annotated[tuple[Width, ...], MinLen(1)] | None = None
    """Hidden layers of the critics (Bhatt et al. 2024: 2048 2048); None means --hidden."""
    renorm_warm_up: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 100_000
    """Updates of a network of --critic crossq in which it normalises with the batch alone (the authors' code)."""
    adam_beta1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Adam's β₁, of all that learns (Kingma & Ba 2015: 0.9; Bhatt et al. 2024: 0.5)."""
    critic_learning_rate: Annotated[float, Gt(0)] | None = None
    """Adam's learning rate for the critics (CleanRL: 1e-3); None means --learning-rate."""
    policy_delay: Count = 1
    """Updates of the critics for each one of actor and temperature (Fujimoto et al. 2018: 2; Bhatt et al. 2024: 3)."""
    target_rate: Annotated[float, Interval(gt=0, le=1), tyro.conf.arg(aliases=["--tau"])] = 0.005
    """τ of the target critics' moving average: Q̄ ← (1 − τ) Q̄ + τ Q at every update."""
    initial_temperature: Annotated[float, Interval(ge=1e-30, le=1e30)] = 1.0
    """Temperature α at the start; then it is tuned automatically."""
    target_entropy: float | None = None
    """Entropy in nats towards which the temperature is tuned; None means −(number of action dimensions)."""
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    """Bounds of the log standard deviation of the policy (the authors' code)."""
    bonus_episodic: bool = True
    """Whether bonuses end with the episode; without, they go on in a value head of their own (RND, section 2.3)."""
    intrinsic_discount: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    """Discount factor of the value head of --no-bonus-episodic (Burda et al. 2018: 0.99)."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        super().check()
        low, high = self.log_std_range
        if low >= high:
            raise UsageError(f"--log-std-range {low:g} {high:g}: the lower bound must come first")
        if low < -80 or high > 80:
            raise UsageError(f"--log-std-range {low:g} {high:g}: outside float32's range; use -80 to 80")
        if self.critic == "crossq" and self.target_rate != 0.005:
            raise UsageError(f"--target-rate {self.target_rate:g} with --critic crossq: it has no target critics")
        if self.critic != "crossq" and self.renorm_warm_up != 100_000:
            raise UsageError(f"--renorm-warm-up {self.renorm_warm_up} with --critic {self.critic}: nothing normalises")
        if self.bonus_episodic and self.intrinsic_discount != 0.99:
            raise UsageError(
                f"--intrinsic-discount {self.intrinsic_discount:g}: it is that of the head of --no-bonus-episodic"
            )
        if self.icm == "none" and not self.bonus_episodic:
            raise UsageError("--no-bonus-episodic with --icm none: there is no bonus")
        if not self.bonus_episodic and self.n_step > 1:
            raise UsageError(
                f"--no-bonus-episodic with --n-step {self.n_step}: n rewards of one episode do not make a target "
                "that goes on after its end; choose one of the two"
            )
