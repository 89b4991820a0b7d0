"""The executor of a Ray cluster: when a node dies, its runs start again on another, and every run comes back once.

Where the machines share the results folder, an interrupted run goes on from its checkpoint on another node. Where they
do not, the run starts anew there and its finished folder is sent back; a run that needs a file of an earlier run fails.
"""

from __future__ import annotations

import io
import logging
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import RunError, UsageError
from common.files import ROOT
from common.sweep.jobs import Executor, Job, Work

NODE_DIES = 10.0  # seconds within which a worker follows its node
NOT_SENT = ["/results", "/data", "/.venv", "/.git", "/build", "*.log"]  # to the nodes, with the code


def ray_executor(address: str, *, cpus: int, gpus: float) -> Executor:
    """Returns the executor of a Ray cluster: a job starts as soon as a node has `cpus` and `gpus` free for it.

    The code of this checkout is sent to the nodes; they need the packages, `pip install -e '.[ray]'`, and the data set.
    """

    def execute(work: Work, jobs: Sequence[Job]) -> Generator[tuple[Job, int], None, None]:
        if not jobs:
            return
        ray = _connect(address)
        marker = shared_marker(work.results_dir)
        pending: dict[Any, Job] = {}
        try:
            _require_room(ray, cpus, gpus)
            # Ray retries a task whose node dies; a script that fails comes back as its exit status.
            start = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(_start_on_node)
            pending = {start.remote(work, job, marker): job for job in jobs}
            while pending:
                (ended,), _ = ray.wait(list(pending), num_returns=1)
                job = pending.pop(ended)
                status, files = ray.get(ended)
                if files:
                    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
                        archive.extractall(work.results_dir, filter="data")
                yield job, status
        finally:
            for ended in pending:
                ray.cancel(ended)
            marker.unlink(missing_ok=True)
            ray.shutdown()

    return execute


def shared_marker(folder: Path) -> Path:
    """Returns a new file in `folder`; a node that sees it shares the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    return marker


def _start_on_node(work: Work, job: Job, marker: Path) -> tuple[int, bytes]:
    """Runs the job on this node; returns its exit status and, where the results folder is not shared, its files."""
    import ray

    remark = f"on node {ray.get_runtime_context().get_node_id()}"
    if marker.exists():
        return _start(work, job, remark), b""
    with tempfile.TemporaryDirectory() as folder:
        there = Work(work.script, work.task, Path(folder))
        needs = next((v for v in job.settings.values() if isinstance(v, str) and str(work.results_dir) in v), None)
        if needs is None:
            status = _start(there, job, remark)
        else:  # a {runs} of the sweep file
            there.log(job).parent.mkdir(parents=True)
            there.log(job).write_text(
                f"{remark}\nerror: {needs}: not here; share the results folder between machines\n"
            )
            status = 1
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(folder, arcname=".")
    return status, buffer.getvalue()


def _start(work: Work, job: Job, remark: str) -> int:
    """Runs the job and returns its exit status.

    When the node dies, this process dies too and Ray runs the job again. The node may kill the script first: that must
    not come back as a script that failed, so this process waits for its own end.
    """
    status = work.start(job, remark)
    if status < 0:  # killed by a signal
        time.sleep(NODE_DIES)
    return status


def _connect(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--ray needs Ray: pip install -e '.[ray]'") from None
    code = {"working_dir": str(ROOT), "excludes": NOT_SENT}
    try:
        _require_listener(address)
        ray.init(address=address, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RaySystemError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"--ray {address}: no Ray cluster there ({reason}); start one with: ray start --head") from None
    return ray


def _require_listener(address: str) -> None:
    """Raises OSError or ValueError when nothing listens at HOST:PORT; Ray itself would try for minutes."""
    if address == "auto":
        return
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("not an address like HOST:PORT, ray://HOST:10001 or auto")
    socket.create_connection((parts.hostname, parts.port), timeout=10).close()


def _require_room(ray: Any, cpus: int, gpus: float) -> None:
    """Raises RunError when no node could ever take a job; Ray would wait for one and say nothing."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise RunError(f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs for a run; there are {there}")
