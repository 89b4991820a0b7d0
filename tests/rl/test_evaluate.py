"""Evaluation: what films need."""

import subprocess
import sys
from pathlib import Path
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


@pytest.mark.slow
def test_torch_export_works_after_a_film(tmp_path: Path) -> None:
    """The import of Triton crashes a process in which Mesa's software renderer came first."""
    film = (
        "from pathlib import Path; import torch; from rl.evaluate import record_video; from rl.policy import loaded\n"
        "_, actor, _ = loaded(Path('models/sac-hopper'), 'best')\n"
        f"record_video(actor, 0, 'Hopper-v4', 'dense', Path({str(tmp_path / 'film.gif')!r}))\n"
        "torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)); print('exported')\n"
    )
    done = subprocess.run([sys.executable, "-c", film], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "exported"
