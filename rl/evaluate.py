"""How good a policy is: episodes without its noise, in environments of their own, always from the same starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.device import stream_seed
from common.experiment import say
from rl.envs import make
from rl.networks import Actor
from rl.settings import RewardKind


class Evaluator:
    """One environment for each agent; every agent plays the same `episodes`, whatever its seed."""

    def __init__(self, env_id: str, reward: RewardKind, agents: int, episodes: int) -> None:
        self.envs = [make(env_id, reward) for _ in range(agents)]
        self.episodes = episodes

    @torch.no_grad()
    def returns(self, actor: Actor) -> NDArray[np.float64]:
        """Returns the undiscounted return of each episode, `(agents, episodes)`."""
        device = next(actor.parameters()).device
        returns = np.zeros((len(self.envs), self.episodes))
        episode = [0] * len(self.envs)
        observations = np.stack([env.reset(seed=_start(0))[0] for env in self.envs]).astype(np.float32)
        playing = list(range(len(self.envs)))
        while playing:
            actions = actor.deterministic(torch.from_numpy(observations).to(device)[:, None])[:, 0].cpu().numpy()
            for k in list(playing):
                observation, reward, terminated, truncated, _ = self.envs[k].step(actions[k])
                returns[k, episode[k]] += float(reward)
                if terminated or truncated:
                    episode[k] += 1
                    if episode[k] == self.episodes:
                        playing.remove(k)
                        continue
                    observation, _ = self.envs[k].reset(seed=_start(episode[k]))
                observations[k] = observation
        return returns


def _start(episode: int) -> int:
    return stream_seed(episode, "evaluation")


@torch.no_grad()
def film(actor: Actor, agent: int, env_id: str, reward: RewardKind, path: Path, *, every: int = 5) -> Path | None:
    """Writes a GIF of one episode of `agent`'s deterministic policy, every fifth frame, at natural speed for Hopper.

    Returns the file, or None, with a line that says why, where nothing can be rendered off-screen.
    """
    import imageio.v3 as imageio

    backend = _off_screen_backend()
    if backend is None:
        say("    no video: nothing can be rendered off-screen here (no EGL, no OSMesa; Debian: libegl1, libosmesa6)")
        return None
    os.environ["MUJOCO_GL"] = backend
    agents, device = actor.network.weights[0].shape[0], next(actor.parameters()).device
    env = make(env_id, reward, render_mode="rgb_array")
    try:
        observation, _ = env.reset(seed=_start(0))
        frames, ended, step = [], False, 0
        while not ended:
            if step % every == 0:
                frames.append(np.asarray(env.render()))
            state = torch.from_numpy(observation.astype(np.float32)).to(device).expand(agents, 1, -1)
            observation, _, terminated, truncated, _ = env.step(actor.deterministic(state)[agent, 0].cpu().numpy())
            ended, step = terminated or truncated, step + 1
        seconds = every * float(env.get_wrapper_attr("dt"))
    finally:
        env.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.stack(frames), duration=1000 * seconds, loop=0)
    return path


def _off_screen_backend() -> str | None:
    """Returns the first way of rendering that works, tried in a process of its own: a failing driver may crash."""
    probe = "import mujoco; r = mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 32, 32); r.render()"
    chosen = os.environ.get("MUJOCO_GL")
    for backend in (chosen,) if chosen else ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        if (
            subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=False).returncode
            == 0
        ):
            return backend
    return None
