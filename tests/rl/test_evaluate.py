"""Evaluation: what films need."""

from typing import Any

import pytest

from rl.envs import make
from rl.evaluate import _follow


@pytest.mark.parametrize(("env_id", "camera"), [("Hopper-v4", 0), ("Hopper-v5", 0), ("InvertedPendulum-v5", -1)])
def test_the_camera_follows_where_there_is_one_that_can(env_id: str, camera: int) -> None:
    env = make(env_id, "dense", render_mode="rgb_array", arguments={"width": 32, "height": 32})
    _follow(env)
    renderer: Any = env.get_wrapper_attr("mujoco_renderer")
    assert renderer.camera_id == camera
    env.close()
