"""Environments: scripted episodes, the sparse reward, states put back, and tasks that do not fit."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from common.device import stream_seed
from common.errors import RunError, UsageError
from rl.envs import Environments, _restore, _state, forward_position, make, saves_exactly
from rl.evaluate import Evaluator
from rl.networks import Actor
from rl.settings import POSITIONS, Settings


class Scripted(gym.Env[Any, Any]):
    """The observation is 100·episode + step. Even episodes end for good after 3 steps, odd ones by the time limit."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    model = data = None  # nothing to simulate

    def __init__(self, render_mode: str | None = None) -> None:
        self.episode, self.count = -1, 0

    def _observe(self) -> Any:
        return np.array([100.0 * self.episode + self.count])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._observe(), float(self.count), self.count == 3 and self.episode % 2 == 0, False, {}


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    gym.register("Scripted-v0", Scripted, max_episode_steps=5)
    yield
    del gym.registry["Scripted-v0"]


def test_a_task_without_a_time_limit_is_refused() -> None:
    gym.register("Endless-v0", Scripted)
    with pytest.raises(UsageError, match="--env-id Endless-v0: no time limit"):
        make("Endless-v0", "dense")
    del gym.registry["Endless-v0"]


def test_every_transition_is_one_that_was_taken() -> None:
    """No autoreset step; the last state of an episode, not the next one's first; a time limit is no termination."""
    environments = Environments("Scripted-v0", "dense", [0, 1])
    told = []
    for _ in range(12):
        before = environments.observation[0, 0].item()
        step = environments.step(torch.zeros(2, 1))
        assert step.next_observation.dtype == step.reward.dtype == step.terminated.dtype == torch.float32
        told.append((before, step.next_observation[0, 0], step.reward[0], step.terminated[0], bool(step.ended[0])))
    assert told == [
        *((0, 1, 1, 0, False), (1, 2, 2, 0, False), (2, 3, 3, 1, True)),
        *((100, 101, 1, 0, False), (101, 102, 2, 0, False), (102, 103, 3, 0, False)),
        *((103, 104, 4, 0, False), (104, 105, 5, 0, True)),
        *((200, 201, 1, 0, False), (201, 202, 2, 0, False), (202, 203, 3, 1, True)),
        (300, 301, 1, 0, False),
    ]


@pytest.mark.parametrize(
    ("env_id", "reward"),
    [
        *(
            (name, "dense")
            for name in ("Hopper-v4", "Hopper-v5", "HalfCheetah-v4", "Walker2d-v4", "Reacher-v4", "Ant-v4")
        ),
        *((name, "sparse") for name in ("Hopper-v4", "Walker2d-v4", "Ant-v4")),
    ],
)
def test_restored_environments_go_on_exactly(env_id: str, reward: Any) -> None:
    original, copy = make(env_id, reward), make(env_id, reward)
    original.reset(seed=1)
    copy.reset(seed=99)
    copy.step(copy.action_space.sample())
    actions = np.random.default_rng(0).uniform(-1, 1, (300, *(original.action_space.shape or ()))).astype(np.float32)
    for action in actions[:7]:
        original.step(action)
    _restore(copy, _state(original))
    for action in actions:
        ours, theirs = original.step(action), copy.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        if ours[2] or ours[3]:
            np.testing.assert_array_equal(original.reset()[0], copy.reset()[0])


def test_sparse_reward_pays_beyond_a_metre_and_nothing_else() -> None:
    env: Any = make("Hopper-v4", "sparse")
    env.reset(seed=0)
    data, start = env.unwrapped.data, env.unwrapped.data.qpos[0]
    for ahead, expected in ((0.5, 0.0), (1.5, 1.0), (-2.0, 0.0)):
        data.qpos[0] = start + ahead
        _, reward, *_ = env.step(np.zeros(3, np.float32))
        assert reward == expected


def test_actions_are_rescaled_to_the_tasks_bounds() -> None:
    env = make("Humanoid-v4", "dense")  # its own bounds are ±0.4
    assert isinstance(env.action_space, gym.spaces.Box)
    assert env.action_space.high.max() == 1
    env.reset(seed=0)
    env.step(np.ones(17, np.float32))
    np.testing.assert_allclose(env.unwrapped.data.ctrl, 0.4, rtol=1e-6)  # type: ignore[attr-defined]


def test_the_same_seed_starts_the_same_whoever_is_beside_it() -> None:
    three, one = Environments("Hopper-v4", "dense", [5, 6, 7]), Environments("Hopper-v4", "dense", [6])
    np.testing.assert_array_equal(three.observation[1], one.observation[0])
    assert not np.array_equal(three.observation[0], three.observation[1])


def test_only_gymnasiums_own_mujoco_tasks_are_saved_exactly() -> None:
    assert saves_exactly(make("Hopper-v5", "sparse"))
    assert saves_exactly(make("Humanoid-v4", "dense"))  # in a wrapper that rescales actions
    assert not saves_exactly(make("Pendulum-v1", "dense"))
    assert not saves_exactly(make("Scripted-v0", "dense"))
    assert not saves_exactly(gym.wrappers.FrameStackObservation(make("Hopper-v5", "dense"), 2))


def test_a_task_gets_its_arguments() -> None:
    task: Any = make("Hopper-v5", "dense", arguments={"healthy_reward": 7.0})
    assert task.unwrapped._healthy_reward == 7
    with pytest.raises(UsageError, match=r"--env-kwargs \{'wealthy_reward': 7\}: gymnasium cannot make it"):
        make("Hopper-v5", "dense", arguments={"wealthy_reward": 7})


@pytest.mark.parametrize(
    "arguments",
    [
        {"forward_reward_weight": "abc"},  # seen in a step
        {"reset_noise_scale": -1},  # when an episode begins
        {"healthy_z_range": 1},
        {"frame_skip": 0},  # a division, as the task is made
    ],
)
def test_arguments_that_a_task_cannot_use_are_told_before_the_first_step(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--env-kwargs .*: gymnasium cannot make it"):
        make("Hopper-v5", "dense", arguments=arguments)


@pytest.mark.parametrize(
    ("env_id", "reward", "told"),
    [
        ("Hoper-v4", "dense", "cannot make it"),
        ("CartPole-v1", "dense", "actions are Discrete"),
        ("Pendulum-v1", "sparse", "nothing there can walk forward"),
        ("no_such_module:Task-v0", "dense", "cannot make it"),
        ("no spaces allowed", "dense", "cannot make it"),
    ],
)
def test_tasks_that_do_not_fit_are_told(env_id: str, reward: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make(env_id, reward)


def test_the_positions_of_each_known_task_come_before_its_velocities() -> None:
    """What `--icm-observation positions` shows are the joints' positions, against MuJoCo's own state."""
    for family, count in POSITIONS.items():
        env = make(f"{family}-v4", "dense")
        observation, _ = env.reset(seed=0)
        data: Any = env.unwrapped.data  # type: ignore[attr-defined]
        np.testing.assert_allclose(observation[:count], data.qpos[1:])
        np.testing.assert_allclose(observation[count:], data.qvel)
        settings = Settings(env_id=f"{family}-v4", icm="single", icm_observation="positions")
        assert settings.seen_by_icm(len(observation)) == count


def test_missing_mujoco_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any, **__: Any) -> None:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(gym, "make", without)
    with pytest.raises(RunError, match=r"pip install 'gymnasium\[mujoco\]'"):
        make("Hopper-v4", "dense")


def test_evaluation_plays_whole_episodes_from_the_same_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted returns: 1 + 2 + 3 for even episodes, 1 + … + 5 for odd ones; agents may end at different times."""
    actor = Actor(1, 1, (4,), (-20, 2), [torch.Generator()] * 3)
    evaluator = Evaluator("Scripted-v0", "dense", 3, 4)
    assert evaluator.returns(actor).tolist() == [[6, 15, 6, 15]] * 3
    assert evaluator.play(actor).lengths.tolist() == [[3, 5, 3, 5]] * 3
    assert np.isnan(evaluator.play(actor).distances).all()  # nothing walks there
    hopper = Evaluator("Hopper-v4", "dense", 2, 3)
    policy = Actor(11, 3, (4,), (-20, 2), [torch.Generator().manual_seed(k) for k in range(2)])
    first = hopper.returns(policy)
    assert first.shape == (2, 3)
    np.testing.assert_array_equal(first, hopper.returns(policy))
    assert len(np.unique(first)) == 6
    (alone,) = hopper.play(policy, [1]).distances[1:]
    assert np.isnan(hopper.play(policy, [1]).returns[0]).all()
    env = make("Hopper-v4", "dense")
    for episode, distance in enumerate(alone):
        observation, _ = env.reset(seed=stream_seed(episode, "evaluation"))
        start, ended = forward_position(env), False
        while not ended:
            both = torch.from_numpy(np.stack([observation] * 2).astype(np.float32))
            observation, _, terminated, truncated, _ = env.step(policy.deterministic(both)[1].numpy())
            ended = terminated or truncated
        assert forward_position(env) - start == pytest.approx(distance, abs=1e-6)
