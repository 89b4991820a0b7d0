"""What came out of a sweep: how every run stands, one line a run as CSV, means and differences as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from common.comparison import Column, difference_table, from_baseline, mean_table
from common.experiment import say
from common.files import numbers, read_metrics, write_atomically
from common.sweep.file import Arm, SweepFile, run_name
from common.sweep.jobs import Work
from common.tables import BOLD, Table, as_csv, margins_named

OF_THE_MACHINE = ("threads", "seconds", "peak_memory_bytes")  # figures in metrics.json that are no result


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of one run, and its figures when it is finished."""

    arm: Arm
    seed: int
    state: str
    dataset: str = ""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def tabulate(work: Work, everything: Sequence[Arm], seeds: Sequence[int], file: SweepFile) -> str:
    """Writes table.csv and table.md of the runs as they stand, and returns the text of table.md."""
    outcomes = [outcome(work, arm, seed) for arm in everything for seed in seeds]
    columns = file.columns or shared_numbers(outcomes)
    write_atomically(work.results_dir / "table.csv", as_csv(run_rows(outcomes, columns)).encode())
    text = "\n".join(table.markdown() for table in tables(outcomes, columns, file))
    write_atomically(work.results_dir / "table.md", text.encode())
    return text


def outcome(work: Work, arm: Arm, seed: int) -> Outcome:
    """Returns how a run stands; a figure inside another is named by its path, as `quality/mixture samples/fid`."""
    try:
        metrics = read_metrics(work.results_dir / work.task / run_name(arm, seed))
        if metrics is None:
            return Outcome(arm, seed, "not finished")
        source = metrics.get("dataset")
        named = source if isinstance(source, dict) else {}  # a script of one's own need not name its data
        dataset = f"STAND-IN {named.get('name')}" if named.get("stand_in_for") else str(named.get("name", ""))
        return Outcome(arm, seed, "finished", dataset, numbers(metrics))
    except (OSError, ValueError, TypeError):
        return Outcome(arm, seed, "damaged")


def shared_numbers(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the results at the top of metrics.json that all finished runs have and that differ, or all if none do."""
    finished = [one.figures for one in outcomes if one.state == "finished"]
    shared = [name for name in (finished[0] if finished else ()) if all(name in figures for figures in finished)]
    results = [name for name in shared if "/" not in name and name not in OF_THE_MACHINE]
    return [name for name in results if len({figures[name] for figures in finished}) > 1] or results


def run_rows(outcomes: Sequence[Outcome], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row a run: its arm and seed, its state, its figures and the arm's own settings."""
    return [
        {"arm": one.arm.name, "seed": one.seed, "state": one.state, "data": one.dataset}
        | {name: one.figures.get(name, "") for name in columns}
        | dict(one.arm.varied)  # last: a setting may be a figure too, as latent is
        for one in outcomes
    ]


def tables(outcomes: Sequence[Outcome], figures: Sequence[str], file: SweepFile) -> list[Table]:
    """Returns means over each arm's finished seeds with intervals, and the differences that the file asks for."""
    arms: dict[str, dict[int, Mapping[str, float]]] = {one.arm.name: {} for one in outcomes}
    for one in outcomes:
        if one.state == "finished":
            arms[one.arm.name][one.seed] = one.figures
    known = {name for arm in arms.values() for of in arm.values() for name in of}
    unknown = [name for name in figures if name not in known]
    if unknown and any(arms.values()):
        say(f"warning: columns: no figure in metrics.json is called {', '.join(unknown)}")
    if unused := [name for name in file.margins if name not in figures]:
        say(f"warning: margins: no column is called {', '.join(unused)}")
    datasets = {one.dataset for one in outcomes if one.state == "finished"}
    caption = f"Means over seeds with 95 % intervals, on {', '.join(sorted(datasets)) or 'nothing yet'}."
    if len(datasets) > 1:
        caption += " These runs do not compare: they used different data."
    columns = [Column(name, margin=file.margins.get(name)) for name in figures]
    margins = margins_named({name: margin for name, margin in file.margins.items() if name in figures})
    result = [mean_table(arms, columns, caption)]
    if file.baseline is not None:
        caption = f"Differences from {file.baseline}, seed by seed, with 95 % intervals; {BOLD}.{margins}"
        result.append(difference_table(arms, from_baseline(arms, file.baseline), columns, caption, heading="arm"))
    if file.comparisons:
        caption = f"Differences seed by seed, with 95 % intervals; {BOLD}.{margins}"
        result.append(difference_table(arms, file.comparisons, columns, caption))
    return result
