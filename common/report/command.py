"""The report page: all runs of a results folder as one self-contained HTML page, or as Markdown for an appendix.

`python -m common.report results`. Each task's own `report.py` makes its section and its rows of the table of claims.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import tyro

from common.errors import UsageError
from common.experiment import say
from common.files import ROOT, short, write_atomically
from common.report.document import Block, Section, claims_table, details_in, run_link
from common.report.folders import Folder, find
from common.report.formats import as_html, as_markdown
from common.tables import Table, counted, parse


@dataclasses.dataclass(frozen=True)
class Report:
    """Make one page of a results folder: the original report's claims, figures, tables with intervals, every run."""

    results: tyro.conf.Positional[Path] = Path("results")
    """Folder with runs, at any depth."""
    format: Literal["html", "md"] = "html"
    """html: one self-contained page; md: Markdown, with its figures in a folder beside it."""
    output: Path | None = None
    """File to write; none means RESULTS/report.html or RESULTS/report.md."""


def main(options: Report) -> None:
    """Writes the page and prints its path.

    Raises:
        UsageError: there is no such results folder, or the output is a folder.
    """
    if not options.results.is_dir():
        raise UsageError(f"{options.results}: no such folder; give one that holds runs, such as results")
    output = options.output or options.results / f"report.{options.format}"
    if output.is_dir():
        raise UsageError(f"--output {output}: a folder; name the file to write")
    folders = find(options.results)
    if not folders:
        say(f"warning: {options.results} holds no runs")
    tasks = task_sections(folders)  # before the overview: these look into the runs, and may find some damaged
    linked = {details.link for section in tasks for details in details_in(section.blocks)}
    sections = [answers(tasks, folders), overview(folders), *tasks, *sweeps(options.results), index(folders, linked)]
    text = as_html(sections) if options.format == "html" else as_markdown(sections, output)
    write_atomically(output, text.encode(errors="replace"))
    finished = sum(folder.finished for folder in folders)
    for folder in folders:
        if folder.damaged:
            say(f"warning: {folder.name}: {folder.state}")
    say(f"{counted(len(folders), 'run')}, {finished} finished, {output.stat().st_size / 1e6:.1f} MB")
    print(output)


def task_sections(folders: Sequence[Folder]) -> list[Section]:
    """Returns the section of every task: `section(folders)` of its `report.py`."""
    return [section_of(module.section, folders) for module in task_reports()]


def task_reports() -> list[ModuleType]:
    """Returns the `report.py` of every task."""
    return [importlib.import_module(f"{path.parent.name}.report") for path in sorted(ROOT.glob("*/report.py"))]


def section_of(section: Callable[[Sequence[Folder]], Section], folders: Sequence[Folder]) -> Section:
    """Returns a task's section. A run that raises an error there is called damaged and left out."""
    try:
        return section(folders)
    except Exception:
        for folder in folders:
            try:
                section([folder])
            except Exception as error:
                folder.state = f"damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return section([folder for folder in folders if not folder.damaged])


def answers(tasks: Sequence[Section], folders: Sequence[Folder]) -> Section:
    """Returns the section that opens the page: every claim of the original report, what we measured, the verdict."""
    blocks: list[Block] = [*stand_ins(folders), claims_table([claim for section in tasks for claim in section.claims])]
    return Section("Answers", blocks)


def stand_ins(folders: Sequence[Folder]) -> list[Block]:
    """Returns a warning if runs used the stand-in data."""
    of_them = [folder for folder in folders if folder.finished and folder.stand_in_for]
    if not of_them:
        return []
    replaced = " and ".join(sorted({str(folder.stand_in_for) for folder in of_them}))
    return [
        f"! {counted(len(of_them), 'run')} used the embedded stand-in data, scikit-learn's digits, in place of "
        f"{replaced}. They check that the programs work; they are no results. They are marked STAND-IN below."
    ]


def overview(folders: Sequence[Folder]) -> Section:
    """Returns how many runs there are, and which are not shown."""
    finished = sum(folder.finished for folder in folders)
    blocks: list[Block] = [f"{counted(len(folders), 'run')}, {finished} of them finished."]
    for state, names in (
        ("still running", [folder.name for folder in folders if folder.state == "running"]),
        ("interrupted", [folder.name for folder in folders if folder.state == "interrupted"]),
        ("damaged", [folder.name for folder in folders if folder.damaged]),
    ):
        if names:
            blocks.append(f"Not shown, because {state} (see Every run): {', '.join(names)}.")
    return Section("Overview", blocks)


def sweeps(results: Path) -> list[Section]:
    """Returns the tables of every sweep, if there are any."""
    blocks: list[Block] = []
    for path in sorted(results.rglob("table.md")):
        if path.is_file() and path.with_name("table.csv").exists():
            name = path.parent.relative_to(results) if path.parent != results else results.resolve().name
            blocks += [f"# {name}", *parse(path.read_text(errors="replace"))]
    return [Section("Sweeps", blocks)] if blocks else []


def index(folders: Sequence[Folder], linked: Container[str]) -> Section:
    """Returns the table of all runs, with links to those whose details are on the page."""
    rows = [
        [
            f"[{folder.name}](#{run_link(folder)})" if run_link(folder) in linked else folder.name,
            folder.state,
            f"STAND-IN: {folder.dataset}" if folder.stand_in_for else folder.dataset,
            str(folder.settings.get("seed", "")),
            duration(folder.metrics.get("seconds")),
            str(folder.metrics.get("device", "")),
            short(folder.metrics.get("git_commit")),
        ]
        for folder in folders
    ]
    head = ["run", "state", "data or task", "seed", "time", "device", "commit"]
    return Section("Every run", [Table(head, rows)] if rows else ["No runs here yet."])


def duration(seconds: Any) -> str:
    """Returns a number of seconds as hours, minutes and seconds."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
