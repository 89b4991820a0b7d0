"""Many runs of one script on this machine: several at a time, finished ones skipped, interrupted ones resumed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from joblib import Parallel, delayed
from tqdm import tqdm

from common.errors import RunError


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the name of its folder and the settings of the script that are not its defaults.

    `where` are settings that may differ when it is resumed: where the data is.
    """

    name: str
    settings: Mapping[str, Any]
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run_jobs(script: str, task: str, jobs: Sequence[Job], results_dir: Path, *, processes: int) -> dict[str, Path]:
    """Returns the finished run folders by job name, `RESULTS_DIR/<task>/<name>`, running what is not finished yet.

    Each job is a process of its own, so that a crash takes nothing else along; what it says goes to
    `RESULTS_DIR/<task>/<name>.log`.

    Raises:
        RunError: jobs failed; the others have ended by then, and the same call does what is missing.
        KeyboardInterrupt: the user stopped it; the runs under way can be resumed.
    """
    folders = {job.name: results_dir / task / job.name for job in jobs}
    for job in jobs:
        _require_same_settings(folders[job.name], job.settings)
    waiting = [job for job in jobs if not (folders[job.name] / "metrics.json").exists()]
    stop = threading.Event()

    def run(job: Job) -> tuple[Job, int]:
        return job, 130 if stop.is_set() else _run(script, job, folders[job.name], results_dir)

    failed: dict[str, str] = {}
    workers = Parallel(n_jobs=processes, backend="threading", return_as="generator_unordered", pre_dispatch=processes)
    bar = tqdm(desc="runs", total=len(jobs), initial=len(jobs) - len(waiting), unit="run", dynamic_ncols=True)
    try:
        for job, status in workers(delayed(run)(job) for job in waiting):
            if status == 130:
                raise KeyboardInterrupt
            if status:
                failed[job.name] = _last_line(_log(folders[job.name]))
            bar.update()
            bar.set_postfix_str(job.name)
    finally:
        stop.set()
        bar.close()
    if failed:
        lines = "; ".join(f"{name}: {line}" for name, line in failed.items())
        rest = ", the others are finished" if len(failed) < len(jobs) else ""
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed{rest} ({lines})")
    return folders


def options(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as the words of a command line."""
    words: list[str] = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, str) or not isinstance(value, Iterable):
            words += [f"--{option}", str(value)]
        else:
            words += [f"--{option}", *map(str, value)]
    return words


def _run(script: str, job: Job, folder: Path, results_dir: Path) -> int:
    """Starts the job, or goes on with it, and returns its exit status."""
    if (folder / "config.yaml").exists():
        arguments = ["--resume", str(folder), *options(job.where)]
    else:
        if folder.is_dir() and all(path.is_dir() or path.name.startswith(".") for path in folder.rglob("*")):
            shutil.rmtree(folder)  # stopped before it wrote its settings: nothing is in it
        arguments = [*options({**job.settings, **job.where}), "--results-dir", str(results_dir)]
        arguments += ["--run-name", folder.name]
    log = _log(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    # OpenMP's threads wait busily by default, which takes the core away from the run beside.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("a") as file:
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, stdout=file, stderr=file, check=False, env=environment).returncode


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.split("\r")[-1].strip() for line in reversed(lines) if line.strip()), "said nothing")


def _require_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises RunError when the folder holds a run with other settings: its figures must not pass for these.

    Both are compared as YAML holds them: lists, not tuples.
    """
    if not (folder / "config.yaml").exists():
        if (folder / "checkpoints" / "progress.json").exists():
            raise RunError(f"{folder}: a run without its config.yaml; move or delete the folder to run it anew")
        return
    try:
        there = yaml.safe_load((folder / "config.yaml").read_text())
        other = {name for name, value in settings.items() if not _same(there[name], value)}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise RunError(f"{folder / 'config.yaml'}: damaged; delete the folder to run it anew") from None
    if other:
        name = min(other)
        raise RunError(
            f"{folder}: already a run with {name} {there[name]}, not {settings[name]}; choose another --run-name"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two settings mean the same: YAML reads 2e-3 as text, which the script reads as the number."""
    try:
        return bool(one == other or float(one) == float(other))
    except (TypeError, ValueError):
        return False
