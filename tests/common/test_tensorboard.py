"""What TensorBoard's own thread cannot write is told once, by the call that the script makes."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import shutil, sys
from pathlib import Path
from common.tensorboard import EventFile
events = EventFile(Path(sys.argv[1]))
shutil.rmtree(sys.argv[1])
try:
    for step in range(1000):  # the thread fails at its own pace
        events.scalars("vae", step, {"elbo": 1.0})
        events.flush()
except FileNotFoundError:
    print("raised")
"""


def test_a_removed_folder_is_no_traceback_of_the_thread(tmp_path: Path) -> None:
    # In a process of its own: pytest has a hook for threads that hides ours.
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "raised\n"
    assert "Traceback" not in done.stderr
