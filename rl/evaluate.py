"""Evaluation: episodes of the policy without its noise, in separate environments, always from the same start states."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.device import stream_seed
from common.experiment import say
from common.files import write_atomically
from rl.envs import forward_position, make
from rl.networks import ActingNetwork
from rl.settings import RewardKind

SIDE, COLOURS = 240, 64  # pixels and colours of a film


class Played(NamedTuple):
    """The episodes of an evaluation, each `(agents, episodes)`; NaN of agents that did not play."""

    returns: NDArray[np.float64]  # undiscounted
    lengths: NDArray[np.float64]  # steps
    distances: NDArray[np.float64]  # metres ahead of the start at the end; NaN where nothing can walk


class Evaluator:
    """One environment for each agent; the `episodes` have the same start states for every agent and every call."""

    def __init__(
        self,
        env_id: str,
        reward: RewardKind,
        agents: int,
        episodes: int,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.envs = [make(env_id, reward, arguments=arguments) for _ in range(agents)]
        self.episodes = episodes

    def returns(self, policy: ActingNetwork, agents: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Returns the undiscounted return of each episode, `(agents, episodes)`; NaN of those not in `agents`."""
        return self.play(policy, agents).returns

    def play(self, policy: ActingNetwork, agents: Sequence[int] | None = None) -> Played:
        """Returns what the episodes of the `agents` came to; without them all agents play."""
        device = next(policy.parameters()).device
        returns, lengths, distances = played = Played(*np.zeros((3, len(self.envs), self.episodes)))
        episode = [0] * len(self.envs)
        observations = np.stack([env.reset(seed=_start(0))[0] for env in self.envs]).astype(np.float32)
        playing = list(range(len(self.envs)) if agents is None else agents)
        for figure in played:
            figure[[k for k in range(len(self.envs)) if k not in playing]] = np.nan
        start = [forward_position(env) for env in self.envs]
        while playing:
            actions = policy.deterministic(torch.from_numpy(observations).to(device)).cpu().numpy()
            for k in list(playing):
                observation, reward, terminated, truncated, _ = self.envs[k].step(actions[k])
                returns[k, episode[k]] += float(reward)
                lengths[k, episode[k]] += 1
                if terminated or truncated:
                    distances[k, episode[k]] = forward_position(self.envs[k]) - start[k]
                    episode[k] += 1
                    if episode[k] == self.episodes:
                        playing.remove(k)
                        continue
                    observation, _ = self.envs[k].reset(seed=_start(episode[k]))
                    start[k] = forward_position(self.envs[k])
                observations[k] = observation
        return played


def _start(episode: int) -> int:
    return stream_seed(episode, "evaluation")


def record_video(
    policy: ActingNetwork,
    agent: int,
    env_id: str,
    reward: RewardKind,
    path: Path,
    arguments: Mapping[str, Any] | None = None,
    *,
    every: int = 5,
) -> Path | None:
    """Returns the GIF it writes of one episode of `agent`'s policy without noise; None where nothing can be rendered.

    The GIF holds every fifth frame, `SIDE` pixels wide and high, at the speed of the simulation; where there is none,
    one line says why.
    """
    if not hasattr(make(env_id, reward, arguments=arguments).unwrapped, "model"):
        say(f"    no video: {env_id} is no MuJoCo task")
        return None
    backend = _off_screen_backend()
    if backend is None:
        say(
            "    no video: this machine cannot render off-screen (install EGL or OSMesa; Debian: libegl1 or libosmesa6)"
        )
        return None
    os.environ["MUJOCO_GL"] = backend
    with contextlib.suppress(ImportError):
        # Where Mesa's software renderer came first, this import, which torch.export and torch.compile do, would crash.
        import triton  # noqa: F401
    agents, device = policy.network.weights[0].shape[0], next(policy.parameters()).device
    size = {"width": SIDE, "height": SIDE}
    env = make(env_id, reward, render_mode="rgb_array", arguments={**size, **(arguments or {})})
    _follow(env)
    try:
        observation, _ = env.reset(seed=_start(0))
        frames, ended, step = [], False, 0
        while not ended:
            if step % every == 0:
                frames.append(np.asarray(env.render()))
            state = torch.from_numpy(observation.astype(np.float32)).to(device).expand(agents, -1)
            observation, _, terminated, truncated, _ = env.step(policy.deterministic(state)[agent].cpu().numpy())
            ended, step = terminated or truncated, step + 1
        seconds = every * float(env.get_wrapper_attr("dt"))
    finally:
        env.close()
    images = [Image.fromarray(frame) for frame in frames]
    palette = images[len(images) // 2].quantize(COLOURS)  # one for all, so that only what moves is stored anew
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    buffer = io.BytesIO()
    first.save(
        buffer, "GIF", save_all=True, append_images=others, duration=round(1000 * seconds), loop=0, optimize=True
    )
    write_atomically(path, buffer.getvalue())
    return path


def _follow(env: gym.Env[Any, Any]) -> None:
    """Films with the camera that follows the robot, where the task has one: gymnasium 1.4 leaves it still."""
    import mujoco

    if (renderer := getattr(env.unwrapped, "mujoco_renderer", None)) is not None:
        renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # -1: none


def _off_screen_backend() -> str | None:
    """Returns the first way of rendering that works, each tried in a separate process: a broken driver may crash it."""
    probe = "import mujoco; r = mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 32, 32); r.render()"
    chosen = os.environ.get("MUJOCO_GL")
    for backend in (chosen,) if chosen else ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            return backend
    return None
