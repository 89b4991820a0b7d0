"""Processes for the fault tests: scripts with the smallest settings, forked from this process or started as typed.

A forked process is a whole process, with its own signals and locks; only its imports are those of this one. That makes
hundreds of trials possible: the imports take seconds of a CPU, the smallest runs themselves take one or two.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli, stopping
from tests.conftest import ROOT
from tests.pruning.small import use_few_images, use_narrow_network

TRIALS = float(os.environ.get("FAULT_TRIALS", "1"))  # share of the trials that `make test-faults` makes
RL = ["--num-seeds", "1", "--env-steps", "90", "--random-steps", "30", "--batch-size", "4", "--hidden", "8"]
RL += ["--eval-every", "30", "--eval-episodes", "1", "--log-every", "30", "--checkpoint-every", "15", "--icm", "single"]
RL += ["--icm-width", "8", "--feature-size", "4"]
PRUNING = ["--smoke-test", "--latency-seconds", "0"]
VAE = ["--smoke-test", "--max-images", "1000", "--epochs", "3", "--arch", "fc", "--hidden", "16", "--latent", "2"]
VAE += ["--nll-samples", "1", "--generated", "100"]
SCRIPTS = {"pruning": PRUNING, "rl": RL, "dqn": [*RL, "--target-period", "7"], "vae": VAE}


def trials(count: int) -> int:
    """Returns how many of `count` trials to make."""
    return max(1, round(count * TRIALS))


def entry(task: str) -> tuple[Callable[[Any], None], type[Any]]:
    """Returns `main` of the task's script and its settings, with what it needs imported."""
    if task == "pruning":
        from pruning.run import main
        from pruning.settings import Settings

        return main, Settings
    if task == "rl":
        from rl.settings import Settings as RLSettings
        from rl.train_sac_icm import main as rl_main

        return rl_main, RLSettings
    if task == "dqn":
        from rl.dqn_settings import DQNSettings
        from rl.train_dqn import main as dqn_main

        return dqn_main, DQNSettings
    from vae.settings import Settings as VAESettings
    from vae.train import main as vae_main

    return vae_main, VAESettings


def folder_of(task: str) -> str:
    """Returns the folder below the results that a task's runs are in."""
    return "rl" if task == "dqn" else task


def fork(work: Callable[[], None], output: Path) -> int:
    """Starts `work` in a process of its own, whose standard output and error go to a file; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 70  # of a bug: a traceback
    try:
        with output.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), write_through=True)
        torch.set_num_threads(1)
        stopping.watch()
        work()
        status = 0
    except SystemExit as stop:
        status = int(str(stop.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def script(task: str, arguments: Sequence[str], output: Path) -> int:
    """Starts the script of a task, pruning with a narrow network; returns the process's number."""
    main, settings = entry(task)

    def work() -> None:
        if task == "pruning":
            patch = pytest.MonkeyPatch()
            use_narrow_network(patch)
            use_few_images(patch)
        cli.run(main, settings, ["--threads", "1", *arguments] if "--resume" not in arguments else list(arguments))

    return fork(work, output)


def finished(task: str, results: Path) -> Path:
    """Returns a run that nothing disturbed."""
    words = [*SCRIPTS[task], "--results-dir", str(results), "--run-name", "run"]
    assert ended(script(task, words, results / "log")) == 0, (results / "log").read_text()
    return results / folder_of(task) / "run"


def ended(process: int) -> int:
    """Waits for a process; returns its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ended_or_signalled(process: int, after: float, number: signal.Signals) -> int:
    """Sends a signal `after` so many seconds, if the process has not ended; returns its exit status."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, number)
    return ended(process)


def errors(output: Path) -> list[str]:
    """Returns the lines that say what went wrong; a traceback counts."""
    lines = output.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.startswith(("error: ", "Traceback", "Exception"))]


__all__ = [
    "ROOT",
    "SCRIPTS",
    "ended",
    "ended_or_signalled",
    "entry",
    "errors",
    "finished",
    "folder_of",
    "fork",
    "script",
    "trials",
]
