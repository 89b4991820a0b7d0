"""The executor of this machine, and how many runs and threads it takes."""

from __future__ import annotations

import functools
import subprocess
import threading
import time
from collections.abc import Generator, Sequence

import torch
from joblib import Parallel, cpu_count, delayed

from common.device import free_threads
from common.sweep.jobs import INTERRUPTED, Executor, Job, Process, Work

PATIENCE = 10.0  # seconds that a run has to end after SIGTERM; batch systems kill after 30


def local_executor(processes: int) -> Executor:
    """Returns the executor of this machine, `processes` jobs at a time."""

    def execute(work: Work, jobs: Sequence[Job]) -> Generator[tuple[Job, int], None, None]:
        stop = threading.Event()
        running: set[Process] = set()

        def run(job: Job) -> tuple[Job, int]:
            return job, INTERRUPTED if stop.is_set() else work.start(job, running=running)

        # A thread waits for each script, which is a process of its own.
        workers = Parallel(
            n_jobs=processes, backend="threading", return_as="generator_unordered", pre_dispatch=processes
        )
        try:
            yield from workers(delayed(run)(job) for job in jobs)
        finally:
            stop.set()
            _end(list(running))

    return execute


def _end(processes: Sequence[Process]) -> None:
    """Asks processes to end, and kills those that have not after some seconds: their runs can be resumed either way."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def runs_at_once(processes: int | None, device: str) -> int:
    """Returns how many runs to start at a time on this machine: `processes`, else one on a GPU, one a core on a CPU."""
    return processes or (1 if device != "cpu" and torch.cuda.is_available() else cpu_count())


@functools.cache  # decided and said once
def threads_each(threads: int | None, processes: int) -> int:
    """Returns the CPU threads of each of `processes` runs on this machine: `threads`, else an equal share of cores.

    Runs that come one after the other take the cores that other processes leave free, as a script does by itself.
    """
    alone = free_threads() if threads is None and processes == 1 else None
    return threads or alone or max(1, cpu_count() // processes)
