"""A grid of settings × seeds of any script, here or on a Ray cluster, and one table of what came out.

`python -m common.sweep configs/pruning/study.yaml`. Started again, it does what is missing.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import importlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from annotated_types import Ge

from common import cli, stats
from common.errors import RunError, UsageError
from common.experiment import say
from common.files import ROOT, read_metrics, write_atomically
from common.sweep.cluster import on_ray
from common.sweep.grid import (
    Arm,
    SweepFile,
    arms,
    filled,
    in_stages,
    read,
    require_distinct,
    require_known_runs,
    run_name,
)
from common.sweep.jobs import Job, JobsFailed, Place, Work, at_once, here, options, run_jobs, threads_each
from common.tables import BOLD, Table, counted, difference

OF_THE_MACHINE = ("threads", "seconds", "peak_memory_bytes")  # figures in metrics.json that are no result


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a grid of settings × seeds, skipping what is finished, and tabulate the results."""

    file: tyro.conf.Positional[Path]
    """The sweep file; configs/pruning/study.yaml is an example."""
    results_dir: Path | None = None
    """Folder for the runs and the table; none means results/sweeps/NAME, for a smoke test NAME-smoke-test."""
    data_dir: Path | None = None
    """Folder with the data sets, for every run."""
    processes: Annotated[int, Ge(1)] | None = None
    """Runs at a time on this machine; none means one a core on a CPU and one on a GPU."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads of each run; none shares the cores out; 1 on a cluster."""
    ray: str | None = None
    """Address of a Ray cluster to run on (HOST:PORT, ray://HOST:10001, or auto for the one this machine is in)."""
    gpus: Annotated[float, Ge(0)] = 0
    """GPUs each run asks the cluster for; half a one is 0.5."""
    smoke_test: bool = False
    """Every run as its script's --smoke-test, with the settings of its grids alone."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run stands, and its figures when it is finished."""

    arm: Arm
    seed: int
    state: str
    dataset: str = ""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def main(sweep: Sweep) -> None:
    """Runs what is missing, writes table.csv and table.md, and prints their folder.

    Raises:
        UsageError: the file or the command line asks for something that does not exist.
        JobsFailed: runs failed; the tables of the others are written.
    """
    file = read(sweep.file)
    if sweep.gpus and sweep.ray is None:
        raise UsageError(f"--gpus {sweep.gpus:g} without --ray: on this machine every run sees every GPU")
    seeds = list(range(file.seeds)) if isinstance(file.seeds, int) else file.seeds
    results = sweep.results_dir or default_folder(sweep)
    results = results.absolute() if sweep.ray else results  # nodes work in folders of their own
    work = Work(file.script if sweep.ray else str(ROOT / file.script), Path(file.script).parent.name, results)
    try:
        grids = [arms(file, grid, smoke_test=sweep.smoke_test) for grid in file.grids]
        require_known_runs(grids, seeds, results / work.task)
        stages = in_stages(grids)
        everything = [arm for stage in stages for arm in stage]
        require_distinct([arm.name for arm in everything], file.baseline)
        require_sensible_settings(file.script, everything, seeds, results / work.task)
    except UsageError as error:
        raise UsageError(f"{sweep.file}: {error}") from None
    say(f"{counted(len(everything), 'arm')} × {counted(len(seeds), 'seed')} of {file.script}, in {results}")
    require_same_arms(work, everything)
    on_cpu = all(arm.settings.get("device") == "cpu" for arm in everything)
    processes = at_once(sweep.processes, "cpu" if on_cpu else "auto")
    failed: dict[str, str] = {}
    try:
        for stage in stages:
            jobs = [job(arm, seed, sweep, work, processes) for seed in seeds for arm in stage]
            try:
                run_jobs(work, jobs, place(sweep, processes))
            except JobsFailed as error:
                failed |= error.failed
    except KeyboardInterrupt:
        tabulate(work, everything, seeds, file)
        raise
    text = tabulate(work, everything, seeds, file)
    say(text)
    print(results)
    if failed:
        raise JobsFailed(failed, len(everything) * len(seeds))


def default_folder(sweep: Sweep) -> Path:
    """Returns where a sweep goes that was not told: its smoke test keeps out of the folder of the real one."""
    return Path("results") / "sweeps" / (sweep.file.stem + "-smoke-test" * sweep.smoke_test)


def require_sensible_settings(script: str, everything: Sequence[Arm], seeds: Sequence[int], runs: Path) -> None:
    """Raises UsageError where `script`, one of this project, would refuse a run: before the first one begins.

    Files of `{runs}` are left out: they may be made on the way. Runs that have begun are left to the script.
    """
    if not (ROOT / script).resolve().is_relative_to(ROOT):
        return  # another's script says so itself
    module = importlib.import_module(".".join(Path(script).with_suffix("").parts))
    kinds = get_type_hints(module.main).values() if hasattr(module, "main") else ()
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, cli.RunSettings)), None)
    if kind is None:
        raise UsageError(f"script {script}: not a script of runs, as pruning/run.py is")
    for arm in everything:
        new = [seed for seed in seeds if not (runs / run_name(arm, seed) / "config.yaml").exists()]
        seed = (new or seeds)[0]
        given = {name: filled(value, seed) for name, value in arm.settings.items() if "{runs}" not in str(value)}
        try:
            settings = cli.parse(kind, options(given))
            if new:
                settings.check()
        except UsageError as error:
            raise UsageError(f"arm {arm.name}: {str(error).replace(' (command line)', '')}") from None


def require_same_arms(work: Work, everything: Sequence[Arm]) -> None:
    """Keeps the arms' settings in arms.json, and raises RunError where an arm that has runs had others before.

    A run's own config.yaml does not show what was once set and now is left to its default.
    """
    path = work.results_dir / "arms.json"
    try:
        before = json.loads(path.read_text())
        known = dict(before)
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError, TypeError):
        raise RunError(f"{path}: damaged; delete it if the sweep file has not changed") from None
    for arm in everything:
        settings = json.loads(json.dumps(dict(arm.settings), default=str))
        begun = any((work.results_dir / work.task).glob(f"{glob.escape(arm.name)}-seed*/config.yaml"))
        if begun and known.get(arm.name, settings) != settings:
            had = known[arm.name] if isinstance(known[arm.name], dict) else {}
            other = ", ".join(name for name in sorted(had | settings) if had.get(name) != settings.get(name))
            raise RunError(f"{path}: arm {arm.name} had another {other} there; choose another --results-dir")
        known[arm.name] = settings
    write_atomically(path, json.dumps(known, indent=1).encode())


def tabulate(work: Work, everything: Sequence[Arm], seeds: Sequence[int], file: SweepFile) -> str:
    """Writes table.csv and table.md of the runs as they stand, and returns the latter."""
    outcomes = [outcome(work, arm, seed) for arm in everything for seed in seeds]
    columns = file.columns or shared_numbers(outcomes)
    write_atomically(work.results_dir / "table.csv", as_csv(outcomes, columns).encode())
    text = "\n".join(table.markdown() for table in tables(outcomes, columns, file.baseline))
    write_atomically(work.results_dir / "table.md", text.encode())
    return text


def place(sweep: Sweep, processes: int) -> Place:
    """Returns where the runs go: the cluster that `--ray` names, or this machine."""
    if sweep.ray is not None:
        return on_ray(sweep.ray, cpus=sweep.threads or 1, gpus=sweep.gpus)
    return here(processes)


def job(arm: Arm, seed: int, sweep: Sweep, work: Work, processes: int) -> Job:
    """Returns the run of one arm with one seed, `processes` of which share this machine's cores."""
    runs = str(work.results_dir / work.task)
    settings = {name: filled(value, seed, runs) for name, value in arm.settings.items()} | {"seed": seed}
    where = {} if sweep.data_dir is None else {"data_dir": str(sweep.data_dir.absolute())}
    threads = sweep.threads or 1 if sweep.ray else threads_each(sweep.threads, processes)
    return Job(run_name(arm, seed), settings, where, {"threads": threads})


def outcome(work: Work, arm: Arm, seed: int) -> Outcome:
    """Returns how a run stands; a figure inside another is called by its path, as `quality/mixture samples/fid`."""
    try:
        metrics = read_metrics(work.results_dir / work.task / run_name(arm, seed))
        if metrics is None:
            return Outcome(arm, seed, "not finished")
        source = metrics["dataset"]
        data = f"STAND-IN {source['name']}" if source.get("stand_in_for") else source["name"]
        return Outcome(arm, seed, "finished", data, dict(_numbers(metrics)))
    except (OSError, ValueError, TypeError, KeyError):
        return Outcome(arm, seed, "damaged")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def shared_numbers(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the results at the top of metrics.json that all finished runs have and that differ, or all if none do."""
    finished = [one.figures for one in outcomes if one.state == "finished"]
    shared = [name for name in (finished[0] if finished else ()) if all(name in figures for figures in finished)]
    results = [name for name in shared if "/" not in name and name not in OF_THE_MACHINE]
    return [name for name in results if len({figures[name] for figures in finished}) > 1] or results


def as_csv(outcomes: Sequence[Outcome], columns: Sequence[str]) -> str:
    """Returns one line a run: what it is, how it stands, and its figures."""
    rows = [
        {"arm": one.arm.name, "seed": one.seed, "state": one.state, "data": one.dataset}
        | {name: one.figures.get(name, "") for name in columns}
        | dict(one.arm.varied)  # last: a setting may be a figure too, as latent is
        for one in outcomes
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def tables(outcomes: Sequence[Outcome], columns: Sequence[str], baseline: str | None) -> list[Table]:
    """Returns means over each arm's finished seeds with intervals, and differences from the baseline, seed by seed."""
    runs: dict[str, dict[int, Mapping[str, float]]] = {one.arm.name: {} for one in outcomes}
    for one in outcomes:
        if one.state == "finished":
            runs[one.arm.name][one.seed] = one.figures
    unknown = [
        name
        for name in columns
        if not any(name in figures for by_seed in runs.values() for figures in by_seed.values())
    ]
    if unknown and any(runs.values()):
        say(f"warning: columns: no figure in metrics.json is called {', '.join(unknown)}")
    data = {one.dataset for one in outcomes if one.state == "finished"}
    caption = f"Means over seeds with 95 % bootstrap intervals, on {', '.join(sorted(data)) or 'nothing yet'}."
    if len(data) > 1:
        caption += " These runs do not compare: they used different data."
    head = ["arm", "seeds", *columns]
    rows = [
        [
            name,
            str(len(by_seed)),
            *(_cell([figures.get(column, math.nan) for figures in by_seed.values()]) for column in columns),
        ]
        for name, by_seed in runs.items()
    ]
    result = [Table(head, rows, caption)]
    if baseline is not None:
        base = runs.pop(baseline)
        rows = []
        for name, by_seed in runs.items():
            both = [seed for seed in by_seed if seed in base]
            gains = {c: [by_seed[s].get(c, math.nan) - base[s].get(c, math.nan) for s in both] for c in columns}
            rows.append([name, str(len(both)), *(_cell(gains[column], difference) for column in columns)])
        caption = f"Differences from {baseline}, seed by seed, with 95 % bootstrap intervals; {BOLD}."
        result.append(Table(head, rows, caption))
    return result


def _cell(values: Sequence[float], text: Callable[[stats.Interval], str] = str) -> str:
    return text(stats.mean(values)) if values and all(map(math.isfinite, values)) else ""
