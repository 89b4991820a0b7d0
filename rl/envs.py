"""Environments: one for each seed, the sparse reward, and states that can be saved and restored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, assert_never

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from common.device import stream_seed
from common.errors import RunError, UsageError
from rl.settings import RewardKind

SPARSE_DISTANCE = 1.0  # metres ahead of the start after which the sparse reward pays
MOVES = (0, 2)  # types of MuJoCo's free and sliding joints: the first coordinate of such a root is its position on x
# Computed by MuJoCo in the last step; some tasks read it at the start of the next one.
DERIVED = ("xpos", "xipos")


# What a task's own code raises of arguments that it cannot use.
BY_THE_TASK = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class SparseReward(gym.Wrapper[Any, Any, Any, Any]):
    """Pays 1 for every step that ends more than `SPARSE_DISTANCE` ahead of the episode's start, and nothing else."""

    start = 0.0  # a wrapper here may remember nothing else: checkpoints save this value alone

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        self.start = self._position()
        return observation, info

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(self._position() - self.start > SPARSE_DISTANCE), terminated, truncated, info

    def _position(self) -> float:
        return float(self.env.unwrapped.data.qpos[0])  # type: ignore[attr-defined]


def make(
    env_id: str, reward: RewardKind, render_mode: str | None = None, arguments: Mapping[str, Any] | None = None
) -> gym.Env[Any, Any]:
    """Returns the task, made with its own `arguments`, with actions in [−1, 1].

    Raises:
        UsageError: gymnasium has no such task, or it has no time limit, or its spaces are no bounded vectors.
        RunError: MuJoCo, or another package that the task needs, is not installed.
    """
    given = {**(arguments or {}), "render_mode": render_mode}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium warns of each task that has a newer version
            env = gym.make(env_id, **given)
            if arguments:
                _try_out(gym.make(env_id, **given))
    except gym.error.DependencyNotInstalled as error:
        raise RunError(f"--env-id {env_id}: {error}. pip install 'gymnasium[mujoco]' installs MuJoCo.") from None
    except (gym.error.Error, ImportError, *BY_THE_TASK) as error:
        option = f" --env-kwargs {dict(arguments)}" if arguments else ""
        raise UsageError(f"--env-id {env_id}{option}: gymnasium cannot make it: {error}") from None
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise UsageError(f"--env-id {env_id}: actions are {actions}; SAC needs a bounded vector, as in Hopper-v4")
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise UsageError(f"--env-id {env_id}: observations are {observations}; SAC needs a vector, as in Hopper-v4")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise UsageError(f"--env-id {env_id}: no time limit; register it with max_episode_steps")
    match reward:
        case "dense":
            pass
        case "sparse":
            if not walks(env):
                raise UsageError(
                    f"--reward sparse with --env-id {env_id}: nothing there can walk forward, as Hopper can"
                )
            env = SparseReward(env)
        case _:
            assert_never(reward)
    if not (np.all(actions.low == -1) and np.all(actions.high == 1)):
        env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    return env


def _try_out(env: gym.Env[Any, Any]) -> None:
    """Takes one step: some arguments that a task cannot use show only then."""
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def walks(env: gym.Env[Any, Any]) -> bool:
    """Whether the task is one of MuJoCo whose root moves freely along x."""
    model: Any = getattr(env.unwrapped, "model", None)
    return hasattr(model, "jnt_type") and model.jnt_type[0] in MOVES and not model.jnt_limited[0]


def forward_position(env: gym.Env[Any, Any]) -> float:
    """Returns x of what walks in the task, in metres; NaN where nothing does."""
    return float(env.unwrapped.data.qpos[0]) if walks(env) else math.nan  # type: ignore[attr-defined]


def solved_at(env_id: str, reward: RewardKind) -> float | None:
    """Returns the return from which on gymnasium calls the task solved; None where it names none, or pays other."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    return spec.reward_threshold if spec is not None and reward == "dense" else None


KNOWN = (  # wrappers whose state `_state` holds, or that have none
    gym.wrappers.OrderEnforcing,
    gym.wrappers.PassiveEnvChecker,
    gym.wrappers.RescaleAction,
    gym.wrappers.TimeLimit,
    SparseReward,
)


class Silent(gym.Env[Any, Any]):
    """Stands where a failed agent's environment was: zeros, and an episode that never ends."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.nothing = np.zeros(observation_space.shape, observation_space.dtype)

    def step(self, action: Any) -> Any:
        return self.nothing, 0.0, False, False, {}


class Step(NamedTuple):
    """One step of every agent's environment, on the CPU."""

    next_observation: Tensor  # (agents, obs); where the episode ended its last state, not the next episode's first
    reward: Tensor  # (agents,)
    terminated: Tensor  # (agents,), 1 where the episode ended for good; a time limit does not count
    ended: Tensor  # (agents,), true where the episode ended, for good or by the time limit


class Environments:
    """One environment for each seed, stepped together; `observation` `(agents, obs)` is what to act on next."""

    def __init__(
        self, env_id: str, reward: RewardKind, seeds: Sequence[int], arguments: Mapping[str, Any] | None = None
    ) -> None:
        self.seeds = seeds
        makers = [lambda: make(env_id, reward, arguments=arguments)] * len(seeds)
        # The default mode has a step after an episode's end in which no action is taken.
        self.vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        self.obs_dim = int(np.prod(self.vector.single_observation_space.shape or ()))
        self.action_dim = int(np.prod(self.vector.single_action_space.shape or ()))
        self.exact = saves_exactly(self.vector.envs[0])
        first, _ = self.vector.reset(seed=[stream_seed(seed, "environment") for seed in seeds])
        self.observation = _float32(first)

    def step(self, action: Tensor) -> Step:
        """Returns what the actions `(agents, action)` on the CPU lead to; where an episode ends, another begins."""
        observation, reward, terminated, truncated, info = self.vector.step(action.numpy())
        ended = terminated | truncated
        self.observation = _float32(observation)
        next_observation = self.observation.clone()
        for k in np.flatnonzero(ended):
            next_observation[k] = _float32(info["final_obs"][k])
        return Step(next_observation, _float32(reward), _float32(terminated), torch.from_numpy(ended))

    def silence(self, agent: int) -> None:
        """Steps `agent`'s environment no more; from now on it gives zeros."""
        self.vector.envs[agent].close()
        self.vector.envs = list(self.vector.envs)
        self.vector.envs[agent] = Silent(self.vector.single_observation_space, self.vector.single_action_space)
        self.observation[agent] = 0

    def state(self) -> list[dict[str, Any]]:
        """Returns, as plain values, everything that decides how the environments go on; nothing unless `exact`."""
        return [_state(env) if self.exact and not isinstance(env, Silent) else {} for env in self.vector.envs]

    def restore(self, states: Sequence[dict[str, Any]], observation: Tensor, step: int) -> None:
        """Puts the environments back to where `state` was called at `step`, with the observation of that moment.

        Those that are not `exact` start a fresh episode, which depends on seed and step.
        """
        self.observation = observation
        for k, (env, state) in enumerate(zip(self.vector.envs, states, strict=True)):
            if isinstance(env, Silent):
                continue
            if self.exact:
                _restore(env, state)
            else:
                self._begin_episode(k, step)

    def begin_episodes(self, step: int) -> None:
        """Starts a fresh episode of each agent that goes on, which depends on seed and step."""
        for k, env in enumerate(self.vector.envs):
            if not isinstance(env, Silent):
                self._begin_episode(k, step)

    def _begin_episode(self, agent: int, step: int) -> None:
        seed = stream_seed(self.seeds[agent], f"environment, resumed at {step}")
        self.observation[agent] = _float32(self.vector.envs[agent].reset(seed=seed)[0])

    def close(self) -> None:
        """Frees the simulations."""
        self.vector.close()


def saves_exactly(env: gym.Env[Any, Any]) -> bool:
    """Whether `_state` holds all of an environment: one of gymnasium's own MuJoCo tasks, in wrappers known here.

    Any other may have attributes of its own that decide how it goes on, as a goal that `reset` draws.
    """
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, KNOWN):
            return False
        env = env.env
    return type(env).__module__.startswith("gymnasium.envs.mujoco.")


def _float32(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values).astype(np.float32))  # a copy, which the next step does not overwrite


def _state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    import mujoco

    task: Any = env.unwrapped
    simulation = np.empty(mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(task.model, task.data, simulation, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {
        "simulation": simulation.tolist(),
        "derived": {name: getattr(task.data, name).tolist() for name in DERIVED},
        "elapsed_steps": env.get_wrapper_attr("_elapsed_steps"),
        "start": env.get_wrapper_attr("start") if env.has_wrapper_attr("start") else 0.0,
        "random": task.np_random.bit_generator.state,
    }


def _restore(env: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    import mujoco

    task: Any = env.unwrapped
    mujoco.mj_setState(task.model, task.data, np.array(state["simulation"]), mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, values in state["derived"].items():
        getattr(task.data, name)[:] = values
    env.set_wrapper_attr("_elapsed_steps", state["elapsed_steps"])
    if env.has_wrapper_attr("start"):
        env.set_wrapper_attr("start", state["start"])
    task.np_random.bit_generator.state = state["random"]
