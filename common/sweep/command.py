"""Arms × seeds of any script, here or on a Ray cluster, and one table of what came out.

`python -m common.sweep configs/pruning/sweeps/study.yaml`. The same command, given again, does what is missing.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro
from annotated_types import Ge

from common import cli
from common.errors import RunError, UsageError
from common.experiment import say
from common.files import ROOT, remove_unfinished, write_atomically
from common.locks import lock
from common.sweep.cluster import ray_executor
from common.sweep.executors import local_executor, runs_at_once, threads_each
from common.sweep.file import (
    Arm,
    filled,
    groups_of,
    in_stages,
    needed_run,
    read,
    require_known_runs,
    run_name,
    seeds_of,
    texts,
)
from common.sweep.jobs import Executor, Job, JobsFailed, Work, run_jobs
from common.sweep.outcomes import tabulate
from common.tables import counted


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run every arm of a sweep file with every seed, skip what is finished, and tabulate the results."""

    file: tyro.conf.Positional[Path]
    """The sweep file; configs/pruning/sweeps/study.yaml is an example."""
    results_dir: Path | None = None
    """Folder for the runs and the table; none means results/sweeps/NAME, or NAME-smoke-test for a smoke test."""
    data_dir: Path | None = None
    """Folder with the data sets, for every run."""
    processes: Annotated[int, Ge(1)] | None = None
    """Runs at a time on this machine; none means one for each core on a CPU, and one on a GPU."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads of each run; none divides the cores among the runs, and means 1 on a cluster."""
    ray: str | None = None
    """Address of a Ray cluster to run on (HOST:PORT, ray://HOST:10001, or auto for the one this machine is in)."""
    gpus: Annotated[float, Ge(0)] = 0
    """GPUs that each run asks the cluster for; 0.5 lets two runs share one."""
    smoke_test: bool = False
    """Every run as its script's --smoke-test, with the arms' own settings and without the shared ones."""


def main(sweep: Sweep) -> None:
    """Runs what is missing, writes table.csv and table.md, and prints their folder.

    Raises:
        UsageError: the file or the command line asks for something that does not exist.
        RunError: another process is at work in the folder, or an arm had other settings there.
        JobsFailed: runs failed; the tables of the others are written.
    """
    file = read(sweep.file)
    if sweep.gpus and sweep.ray is None:
        raise UsageError(f"--gpus {sweep.gpus:g} without --ray: on this machine every run sees every GPU")
    # The nodes of a cluster have disks of their own.
    if sweep.data_dir is not None and sweep.ray is None and not sweep.data_dir.is_dir():
        raise UsageError(f"--data-dir {sweep.data_dir}: no such folder")
    seeds = seeds_of(file)
    results = sweep.results_dir or default_folder(sweep)
    results = results.absolute() if sweep.ray else results  # nodes work in folders of their own
    work = Work(file.script if sweep.ray else str(ROOT / file.script), Path(file.script).parent.name, results)
    try:
        groups = groups_of(file, smoke_test=sweep.smoke_test)
        require_known_runs(groups, seeds, results / work.task)
        stages = in_stages(groups)
        everything = [arm for stage in stages for arm in stage]
        require_sensible_settings(file.script, everything, seeds, results / work.task)
    except UsageError as error:
        raise UsageError(f"{sweep.file}: {error}") from None
    results.mkdir(parents=True, exist_ok=True)
    held = lock(results)  # until this process ends
    if held is None:
        raise RunError(f"{results}: another sweep is at work in this folder; wait for it, stop it, or choose another")
    remove_unfinished(results)
    say(f"{counted(len(everything), 'arm')} × {counted(len(seeds), 'seed')} of {file.script}, in {results}")
    require_same_arms(work, everything, file.script)
    on_cpu = all(arm.settings.get("device") == "cpu" for arm in everything)
    processes = runs_at_once(sweep.processes, "cpu" if on_cpu else "auto")
    failed: dict[str, str] = {}
    others: list[str] = []  # runs that another process is at work on
    skipped: dict[str, str] = {}  # run → the run whose file it needs and that has not made it
    try:
        for stage in stages:
            jobs = []
            for seed, arm in ((seed, arm) for seed in seeds for arm in stage):
                name = run_name(arm, seed)
                if (needed := missing_run(arm, seed, work, {*failed, *others, *skipped})) is not None:
                    skipped[name] = needed
                    say(f"skipped: {name}: it needs {needed}, which is not finished")
                else:
                    jobs.append(job(arm, seed, sweep, work, processes))
            try:
                run_jobs(work, jobs, executor(sweep, processes))
            except JobsFailed as error:
                failed |= error.failed
                others += error.held
    except KeyboardInterrupt:
        tabulate(work, everything, seeds, file)
        raise
    text = tabulate(work, everything, seeds, file)
    say(text)
    print(results)
    if failed or others:
        raise JobsFailed(failed, len(everything) * len(seeds), others, skipped)


def missing_run(arm: Arm, seed: int, work: Work, unfinished: set[str]) -> str | None:
    """Returns the unfinished run whose file a run of this arm needs and does not find; None where it can start.

    A run that has begun can go on: it has read the file.
    """
    runs = work.results_dir / work.task
    if (runs / run_name(arm, seed) / "config.yaml").exists():
        return None
    for value in (text for setting in arm.settings.values() for text in texts(setting)):
        needed = needed_run(value, seed)
        if needed in unfinished and not Path(filled(value, seed, str(runs))).is_file():
            return needed
    return None


def default_folder(sweep: Sweep) -> Path:
    """Returns the results folder of a sweep without `--results-dir`; its smoke test has a folder of its own."""
    return Path("results") / "sweeps" / (sweep.file.stem + "-smoke-test" * sweep.smoke_test)


def require_sensible_settings(script: str, everything: Sequence[Arm], seeds: Sequence[int], runs: Path) -> None:
    """Raises UsageError, before the first run begins, where a script of this project would refuse a run.

    Files of `{runs}` are not checked: earlier runs may make them. Runs that have begun are left to the script.
    """
    if not (ROOT / script).resolve().is_relative_to(ROOT):
        return  # a script from elsewhere has settings that we do not know
    inside = (ROOT / script).resolve().relative_to(ROOT)
    module = importlib.import_module(".".join(inside.with_suffix("").parts))
    kinds = get_type_hints(module.main).values() if hasattr(module, "main") else ()
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, cli.RunSettings)), None)
    if kind is None:
        raise UsageError(f"script {script}: not a script of runs, as pruning/run.py is")
    for arm in everything:
        new = [seed for seed in seeds if not (runs / run_name(arm, seed) / "config.yaml").exists()]
        seed = (new or seeds)[0]
        given = {name: filled(value, seed) for name, value in arm.settings.items() if "{runs}" not in str(value)}
        try:
            settings = cli.from_mapping(kind, given)
            if new:
                settings.check()
        except UsageError as error:
            raise UsageError(f"arm {arm.name}: {error}") from None


SCRIPT = "script"  # in arms.json, beside an arm's settings


def require_same_arms(work: Work, everything: Sequence[Arm], script: str) -> None:
    """Keeps the arms' settings in arms.json, and raises RunError where an arm with runs was another one before.

    A run's own config.yaml does not tell a setting that was given from one that was left to its default, nor which
    script of a task it is of.
    """
    path = work.results_dir / "arms.json"
    try:
        before = json.loads(path.read_text())
        known = dict(before)
        there = {name: dict(arm) for name, arm in known.items()}
    except FileNotFoundError:
        known, there = {}, None
    except (OSError, ValueError, TypeError):
        raise RunError(f"{path}: damaged; delete it if the sweep file has not changed") from None
    for arm in everything:
        settings = json.loads(json.dumps({SCRIPT: script, **arm.settings}, default=str))
        begun = any((work.results_dir / work.task).glob(f"{glob.escape(arm.name)}-seed*/config.yaml"))
        if begun and there is not None:
            if arm.name not in there:
                raise RunError(f"{path}: no sweep here made the runs of arm {arm.name}; choose another --results-dir")
            had = {SCRIPT: script, **there[arm.name]}  # of a version that did not keep the script
            if other := ", ".join(name for name in sorted(had | settings) if had.get(name) != settings.get(name)):
                raise RunError(f"{path}: arm {arm.name} had another {other} there; choose another --results-dir")
        known[arm.name] = settings
    write_atomically(path, json.dumps(known, indent=1).encode())


def executor(sweep: Sweep, processes: int) -> Executor:
    """Returns the executor of the runs: of the cluster that `--ray` names, or of this machine."""
    if sweep.ray is not None:
        return ray_executor(sweep.ray, cpus=sweep.threads or 1, gpus=sweep.gpus)
    return local_executor(processes)


def job(arm: Arm, seed: int, sweep: Sweep, work: Work, processes: int) -> Job:
    """Returns the run of one arm with one seed; `processes` runs share this machine's cores."""
    runs = str(work.results_dir / work.task)
    settings = {name: filled(value, seed, runs) for name, value in arm.settings.items()} | {"seed": seed}
    where = {} if sweep.data_dir is None else {"data_dir": str(sweep.data_dir.absolute())}
    threads = sweep.threads or 1 if sweep.ray else threads_each(sweep.threads, processes)
    return Job(run_name(arm, seed), settings, where, {"threads": threads})
