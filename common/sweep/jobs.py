"""Many runs of one script: finished ones are skipped, interrupted ones resumed, failures reported at the end."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from common import progress, stopping
from common.errors import RunError
from common.files import read_metrics
from common.locks import is_locked
from common.plain_yaml import read_yaml

INTERRUPTED = 130  # exit status of a script that the user stopped
TERMINATED = 143  # of one that SIGTERM stopped, as a batch system does
HELD = "another process is at work on it"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the name of its folder and the settings that it is given; the others keep the script's defaults.

    `where` are settings that may change when the run is resumed: where the data is. `machine` are settings that a new
    run takes from the machine it starts on and then keeps: its threads.
    """

    name: str
    settings: Mapping[str, Any]
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Work:
    """The script that every job runs, its task, and where the runs go: `RESULTS_DIR/<task>/<name>`."""

    script: str
    task: str
    results_dir: Path

    def folder(self, job: Job) -> Path:
        """Returns the job's run folder."""
        return self.results_dir / self.task / job.name

    def log(self, job: Job) -> Path:
        """Returns the file with the job's output."""
        return self.results_dir / self.task / f"{job.name}.log"

    def start(self, job: Job, remark: str = "", running: set[Process] | None = None) -> int:
        """Runs the job's script, anew or with --resume, and returns its exit status; `remark` goes to the log.

        The process is in `running` until it ends.
        """
        folder, log = self.folder(job), self.log(job)
        if (folder / "config.yaml").exists():
            arguments = ["--resume", str(folder), *as_words(job.where)]
        else:
            if (
                folder.is_dir()
                and not is_locked(folder)
                and all(path.is_dir() or path.name.startswith(".") for path in folder.rglob("*"))
            ):
                shutil.rmtree(folder)  # stopped before it wrote its settings: the folder is empty
            settings = {**job.settings, **job.machine, **job.where}
            arguments = [*as_words(settings), "--results-dir", str(self.results_dir), "--run-name", folder.name]
        log.parent.mkdir(parents=True, exist_ok=True)
        # By default OpenMP's idle threads spin, which takes the core away from the run beside.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        with log.open("a") as file:
            if remark:
                print(remark, file=file, flush=True)
            command = [sys.executable, self.script, *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, preexec_fn=_die_with_parent)
            running = running if running is not None else set()
            running.add(process)
            try:
                return process.wait()
            finally:
                running.discard(process)


Process = subprocess.Popen[bytes]
Executor = Callable[[Work, Sequence[Job]], Generator[tuple[Job, int], None, None]]
"""Runs jobs: yields each with its exit status as it ends; when it is closed early, it stops those that are running."""


class JobsFailed(RunError):
    """Some runs failed and the others have ended; `failed` has the last line of each failed run by name.

    `held` are runs that another process is at work on: they have not failed.
    """

    def __init__(
        self, failed: Mapping[str, str], total: int, held: Sequence[str] = (), skipped: Mapping[str, str] | None = None
    ) -> None:
        """Reports `failed`, `held` and `skipped` (run → the run that it needs) among `total` runs in one line."""
        self.failed, self.held, skipped = failed, held, skipped or {}
        parts = [f"{len(failed)} of {total} runs failed"] if failed else []
        if held:
            parts.append(f"{len(held)} of {total} runs: {HELD} ({', '.join(held)})")
        if skipped:
            needs = ", ".join(f"{run} needs {needed}" for run, needed in skipped.items())
            parts.append(f"{len(skipped)} skipped ({needs})")
        rest = ", the others are finished" if len(failed) + len(held) + len(skipped) < total else ""
        same: dict[str, list[str]] = {}
        for name, line in failed.items():
            same.setdefault(line, []).append(name)
        lines = "; ".join(f"{', '.join(names)}: {line}" for line, names in same.items())
        super().__init__(", ".join(parts) + rest + (f" ({lines})" if lines else ""))


def run_jobs(work: Work, jobs: Sequence[Job], executor: Executor) -> dict[str, Path]:
    """Returns the finished run folders by job name, after it has run those that were not finished.

    Each job is a process of its own, so that a crash affects no other; its output goes to its log.

    Raises:
        JobsFailed: some jobs failed, or another process is at work on them; the same call does what is missing.
        RunError: a job's folder holds a run with other settings.
        KeyboardInterrupt: the user stopped it; the runs that were going on can be resumed.
    """
    for job in jobs:
        _require_same_settings(work.folder(job), job.settings)
    waiting = [job for job in jobs if not _is_finished(work.folder(job))]
    held = [job.name for job in waiting if is_locked(work.folder(job))]
    for name in held:
        tqdm.write(f"left out: {name}: {HELD}", file=sys.stderr)
    waiting = [job for job in waiting if job.name not in held]
    failed: dict[str, str] = {}
    bar = tqdm(desc="runs", total=len(jobs), initial=len(jobs) - len(waiting), unit="run", dynamic_ncols=True)
    ending = executor(work, waiting)
    try:
        for job, status in ending:
            if status in (INTERRUPTED, TERMINATED):
                raise stopping.Terminated if status == TERMINATED else KeyboardInterrupt
            if status and is_locked(work.folder(job)):  # since a moment ago
                held.append(job.name)
                tqdm.write(f"left out: {job.name}: {HELD}", file=sys.stderr)
            elif status or not (work.folder(job) / "metrics.json").exists():
                silent = "" if status else "ended without a metrics.json; "
                failed[job.name] = silent + _last_line(work.log(job))
                tqdm.write(f"failed: {job.name}: {failed[job.name]}", file=sys.stderr)  # the others may take hours
            bar.update()
            bar.set_postfix_str(job.name)
    finally:
        ending.close()
        bar.close()
    if failed or held:
        raise JobsFailed({job.name: failed[job.name] for job in jobs if job.name in failed}, len(jobs), held)
    return {job.name: work.folder(job) for job in jobs}


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings as the words of the command line that starts a script."""
    words: list[str] = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, str) or not isinstance(value, Iterable):
            words.append(f"--{option}={value}")  # one word: the value may begin with a dash
        else:
            words += [f"--{option}", *map(str, value)]
    return words


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Has the kernel kill this process when its parent is killed, so that no run goes on unseen."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_finished(folder: Path) -> bool:
    """Whether the run's metrics.json exists and is whole; the script itself reports a damaged one."""
    try:
        return read_metrics(folder) is not None
    except (OSError, ValueError):
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.split("\r")[-1].strip() for line in reversed(lines) if line.strip()), "said nothing")


def _require_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises RunError when the folder holds a run with other settings: its figures are not those of this job.

    Both are compared as YAML holds them: lists, not tuples.
    """
    if not (folder / "config.yaml").exists():
        if progress.path_in(folder).exists():
            raise RunError(f"{folder}: a run without its config.yaml; move or delete the folder to run it anew")
        return
    try:
        there = read_yaml(folder / "config.yaml")
        missing = sorted(settings.keys() - there.keys())
        other = {name for name, value in settings.items() if name in there and not _same(there[name], value)}
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        raise RunError(f"{folder / 'config.yaml'}: damaged; delete the folder to run it anew") from None
    if missing:
        raise RunError(
            f"{folder}: already a run without {missing[0]}, of another script or an earlier version; choose another "
            "name or folder"
        )
    if other:
        name = min(other)
        raise RunError(
            f"{folder}: already a run with {name} {there[name]}, not {settings[name]}; choose another name or folder"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two settings mean the same: a path in any spelling, a number that YAML reads as text, such as 2e-3."""
    if isinstance(one, str) and isinstance(other, str) and os.sep in one + other:
        return os.path.abspath(one) == os.path.abspath(other)
    try:
        return bool(one == other or float(one) == float(other))
    except (TypeError, ValueError):
        return False
