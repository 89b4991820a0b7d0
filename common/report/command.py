"""Run folders → one HTML page that needs nothing else, or Markdown for an appendix.

`python -m common.report results`. Each task says in its own `report.py` what its section shows.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from common.errors import UsageError
from common.experiment import say
from common.files import ROOT, write_atomically
from common.report.document import Block, Section, as_html, as_markdown, details_in, run_link
from common.report.folders import Folder, find
from common.tables import Table, counted, parse


@dataclasses.dataclass(frozen=True)
class Report:
    """Put everything a results folder holds on one page: figures, tables with intervals, and every run."""

    results: tyro.conf.Positional[Path] = Path("results")
    """Folder with runs, at any depth."""
    format: Literal["html", "md"] = "html"
    """One self-contained HTML page, or Markdown with its figures in a folder beside it."""
    output: Path | None = None
    """File to write; none means RESULTS/report.html or RESULTS/report.md."""


def main(options: Report) -> None:
    """Writes the report and prints its path.

    Raises:
        UsageError: there is no such results folder, or the output is a folder.
    """
    if not options.results.is_dir():
        raise UsageError(f"{options.results}: no such folder; give one that holds runs, such as results")
    output = options.output or options.results / f"report.{options.format}"
    if output.is_dir():
        raise UsageError(f"--output {output}: a folder; name the file to write")
    folders = find(options.results)
    tasks = task_sections(folders)  # these look into the runs, and may find some damaged
    linked = {details.link for section in tasks for details in details_in(section.blocks)}
    sections = [overview(folders), *tasks, *sweeps(options.results), index(folders, linked)]
    text = as_html(sections) if options.format == "html" else as_markdown(sections, output)
    write_atomically(output, text.encode(errors="replace"))
    finished = sum(folder.finished for folder in folders)
    for folder in folders:
        if folder.damaged:
            say(f"warning: {folder.name}: {folder.state}")
    say(f"{counted(len(folders), 'run')}, {finished} finished, {output.stat().st_size / 1e6:.1f} MB")
    print(output)


def task_sections(folders: Sequence[Folder]) -> list[Section]:
    """Returns what every package with a `report.py` has to say: its `section(folders)`."""
    modules = [importlib.import_module(f"{path.parent.name}.report") for path in sorted(ROOT.glob("*/report.py"))]
    return [section_of(module.section, folders) for module in modules if hasattr(module, "section")]


def section_of(section: Callable[[Sequence[Folder]], Section], folders: Sequence[Folder]) -> Section:
    """Returns a task's section; a run that it cannot digest, whatever the reason, is called damaged and left out."""
    try:
        return section(folders)
    except Exception:
        for folder in folders:
            try:
                section([folder])
            except Exception as error:
                folder.state = f"damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return section([folder for folder in folders if not folder.damaged])


def overview(folders: Sequence[Folder]) -> Section:
    """Returns how many runs there are, and warnings about those that are no result."""
    finished = [folder for folder in folders if folder.finished]
    stand_ins = [folder for folder in finished if folder.stand_in_for]
    blocks: list[Block] = [f"{counted(len(folders), 'run')}, {len(finished)} of them finished."]
    if stand_ins:
        blocks.append(
            f"! {counted(len(stand_ins), 'run')} used the embedded stand-in data, scikit-learn's digits, in place of "
            f"{' and '.join(sorted({str(folder.stand_in_for) for folder in stand_ins}))}: a check of the machinery, no "
            "result. They are marked STAND-IN below."
        )
    unfinished = [folder.name for folder in folders if not folder.finished]
    if unfinished:
        blocks.append(f"Not shown, because interrupted or damaged (see Every run): {', '.join(unfinished)}.")
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
    """Returns the table of all runs, with a link to those whose details are on the page."""
    rows = [
        [
            f"[{folder.name}](#{run_link(folder)})" if run_link(folder) in linked else folder.name,
            folder.state,
            f"STAND-IN: {folder.dataset}" if folder.stand_in_for else folder.dataset,
            str(folder.settings.get("seed", "")),
            duration(folder.metrics.get("seconds")),
            str(folder.metrics.get("device", "")),
            str(folder.metrics.get("git_commit") or "")[:8],
        ]
        for folder in folders
    ]
    head = ["run", "state", "data or task", "seed", "time", "device", "commit"]
    return Section("Every run", [Table(head, rows)] if rows else ["No runs here yet."])


def duration(seconds: Any) -> str:
    """Returns seconds as a reader says them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
