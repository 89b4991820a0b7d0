"""Turns a folder of runs into the few small files that the report page needs of them.

`python -m common.report.compact results/sweeps/study_gpu results/reference/pruning/study_gpu` writes `runs.csv` (one
line for each finished run), `settings.yaml` (what all of them share), a PNG with all figures of each run that drew
some, `curves.csv` where the page draws curves of such runs, and copies a sweep's tables. `python -m common.report`
shows that folder as it shows the runs themselves. Weights, checkpoints and the rest of the history are left out.

Of metrics.json every number, text and list of those is kept; of the records in it `dataset`, and those that a task's
`report.py` names in `KEPT_METRICS`. Of history.csv only the stages are kept that it names in `KEPT_CURVES`.

The runs of a VAE study lie in the study's own folder: give its `runs` folder, and copy the study's config.yaml,
metrics.json, tables.md and figures, which are small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tyro

from common import cli
from common.errors import RunError, UsageError
from common.experiment import say
from common.files import write_atomically
from common.report import runs_table
from common.report.command import task_reports
from common.report.folders import Folder, find
from common.report.pictures import sheet_of
from common.tables import counted


@dataclasses.dataclass(frozen=True)
class Compact:
    """Write a table of runs, with their figures, from a folder of runs."""

    runs: tyro.conf.Positional[Path]
    """Folder with run folders, at any depth, such as results/sweeps/study_gpu."""
    output: tyro.conf.Positional[Path]
    """Folder to write; a new or an empty one, or one that this command wrote."""


def main(options: Compact) -> None:
    """Writes the compact form of the finished runs and prints its folder.

    Raises:
        UsageError: there is no such folder, or the output holds other files.
        RunError: there are no finished runs, or a run's figure or history cannot be read.
    """
    if not options.runs.is_dir():
        raise UsageError(f"{options.runs}: no such folder; give one that holds runs")
    if (options.runs / "config.yaml").exists():
        raise UsageError(f"{options.runs}: a run itself; give the folder that holds it and others")
    check_output(options.output)
    everything = find(options.runs)
    runs = [folder for folder in everything if folder.finished]
    if not runs:
        raise RunError(f"{options.runs}: no finished run there")
    for folder in everything:
        if not folder.finished:
            say(f"warning: {folder.name} is left out: {folder.state}")
    files = compacted(runs)
    for table in ("table.md", "table.csv"):
        if (options.runs / table).is_file():
            files[table] = (options.runs / table).read_bytes()
    for name, content in files.items():
        write_atomically(options.output / name, content)
    size = sum(map(len, files.values())) / 1e6
    say(f"{counted(len(runs), 'run')} in {counted(len(files), 'file')}, {size:.2f} MB")
    print(options.output)


def check_output(output: Path) -> None:
    """Raises UsageError if the output folder holds anything, and no table of runs to replace."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not (output / runs_table.TABLE).is_file():
        raise UsageError(f"{output}: not an empty folder; choose another")


def compacted(runs: Sequence[Folder]) -> dict[str, bytes]:
    """Returns the files that hold these runs, file name → content.

    Raises:
        RunError: a run's figure or history cannot be read.
    """
    reports = task_reports()
    records = {"dataset", *(name for report in reports for name in getattr(report, "KEPT_METRICS", ()))}
    stages = sorted({stage for report in reports for stage in getattr(report, "KEPT_CURVES", ())})
    names = short_names(runs)
    files: dict[str, bytes] = {}
    rows, curves = [], []
    for name, folder in zip(names, runs, strict=True):
        metrics = {key: value for key, value in folder.metrics.items() if key in records or _is_plain(value)}
        rows.append(runs_table.Row(name, folder.settings, metrics))
        try:
            curves += [line for stage in stages for line in curves_of(name, folder, stage)]
            if figures := folder.figures:
                files[f"{name}.png"] = sheet_of(figures)
        except (OSError, ValueError, KeyError, SyntaxError) as error:
            raise RunError(f"{folder.path}: a figure or its history cannot be read ({error})") from None
    files |= runs_table.written(rows)
    if curves:
        files[runs_table.CURVES] = runs_table.as_csv(curves)
    return files


def curves_of(name: str, folder: Folder, stage: str) -> list[dict[str, Any]]:
    """Returns the lines of curves.csv that hold a stage of a run's history, none where it has no such stage."""
    try:
        history = folder.history(stage)
    except FileNotFoundError:
        return []
    columns = [[int(value) if value.is_integer() else value for value in of] for of in history.values()]
    lines = zip(*columns, strict=True)
    return [{"run": name, "stage": stage, **dict(zip(history, line, strict=True))} for line in lines]


def short_names(runs: Sequence[Folder]) -> list[str]:
    """Returns the names of the runs without the folders that all of them lie in."""
    parts = [PurePosixPath(folder.name).parts for folder in runs]
    common = 0
    while all(len(of) > common + 1 and of[common] == parts[0][common] for of in parts):
        common += 1
    return ["/".join(of[common:]) for of in parts]


def _is_plain(value: Any) -> bool:
    """Whether a figure is a number, a text, true, false or null, or a list of those."""
    return all(not isinstance(item, dict | list) for item in (value if isinstance(value, list) else [value]))


if __name__ == "__main__":
    cli.command(main, Compact)
