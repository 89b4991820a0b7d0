"""The parts of the report page, which a task's `report.py` puts together. `formats` turns them into a page."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from common.report.folders import Folder
from common.report.pictures import FigureFile
from common.tables import Table, counted


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure drawn for the page, or one that a run drew, over its caption."""

    title: str
    source: FigureFile | Figure

    @property
    def name(self) -> str:
        """What to call it where it cannot be shown: its file's name, if it has one."""
        return self.source.name if isinstance(self.source, FigureFile) else self.title


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading that links within the page lead to by the name `link`."""

    title: str
    link: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that stay folded until a reader opens them. Links within the page lead to it by the name `link`."""

    title: str
    blocks: Sequence[Block]
    link: str = ""
    opened: bool = False


@dataclasses.dataclass(frozen=True)
class Widget:
    """Something for a reader to work with, which a script builds in the page from `data`.

    The script and the style stand in the page once, however many widgets share them. The script finds its widgets as
    the elements of the class `kind`: in each of them lie `data`, in a script element of type application/json, and
    `instead`, folded out. `instead` is what a reader sees without JavaScript, and all that Markdown shows.
    """

    kind: str
    data: Mapping[str, Any]  # what JSON can hold
    script: str  # JavaScript of our own: it is not escaped
    style: str  # CSS of our own
    instead: Sequence[Block]


Block = (
    str | Table | Picture | Heading | Details | Widget
)  # a str is a paragraph; "# " begins a heading, "! " a warning


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the original report, or our control of one, beside what we measured: a row of the table of claims."""

    claim: str
    measured: str
    interval: str
    seeds: int
    verdict: str
    evidence: str = ""  # the `link` of the heading or section that shows how it was measured
    stand_in: bool = False  # whether it was measured on the digits that stand in for the real data

    @classmethod
    def not_measured(cls, claim: str, command: str) -> Claim:
        """Returns the row of a claim that no run here tests, with the command that makes one."""
        return cls(claim, "not measured here", "", 0, f"run `{command}`")


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment's part of the page, and its rows of the table of claims."""

    title: str
    blocks: Sequence[Block]
    claims: Sequence[Claim] = ()


def claims_table(claims: Sequence[Claim]) -> Table:
    """Returns the table that opens the page."""
    head = ["the original report's claim", "we measured", "95 % interval", "seeds", "verdict", "evidence"]
    rows = [
        [
            of.claim,
            f"**STAND-IN data:** {of.measured}" if of.stand_in else of.measured,
            of.interval,
            str(of.seeds or ""),
            "**no result: stand-in data**" if of.stand_in else of.verdict,
            f"[details](#{of.evidence})" if of.evidence else "",
        ]
        for of in claims
    ]
    return Table(head, rows)


def details_in(blocks: Sequence[Block]) -> Iterator[Details]:
    """Yields every folded block, those within others too."""
    return (block for block in nested(blocks) if isinstance(block, Details))


def nested(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yields every block, and those within them."""
    for block in blocks:
        yield block
        if isinstance(block, Details | Widget):
            yield from nested(block.blocks if isinstance(block, Details) else block.instead)


def runs_details(
    title: str, table: Table, folders: Sequence[Folder], captions: Mapping[str, str], shown: Sequence[FigureFile] = ()
) -> Details:
    """Returns a folded list of runs: their table, the figures and settings of each run that has figures, and the
    settings of all others together. Figures in `shown` are left out."""
    alone = [folder for folder in folders if folder.figures] if len(folders) > 1 else folders
    others = [folder for folder in folders if folder not in alone]
    only = len(folders) == 1  # all there is to see of it: not folded
    blocks: list[Block] = [table]
    blocks += [dataclasses.replace(run_details(folder, captions, shown), opened=only) for folder in alone]
    if others:
        which = "the other " if alone else ""
        blocks.append(Details(f"settings of {which}{counted(len(others), 'run')}", settings(others)))
    return Details(f"{title}: {counted(len(folders), 'run')}", blocks, opened=only)


def run_details(folder: Folder, captions: Mapping[str, str], shown: Sequence[FigureFile] = ()) -> Details:
    """Returns a run's figures but those in `shown`, and the settings that it ran with."""
    pictures = [captioned(figure, captions) for figure in folder.figures.values() if figure not in shown]
    return Details(folder.name, [*pictures, Details("settings", settings([folder]))], run_link(folder))


def settings(folders: Sequence[Folder]) -> list[Block]:
    """Returns the table of the settings that all these runs share, and that of the settings that differ."""
    texts = [{str(name): repr(value) for name, value in folder.settings.items()} for folder in folders]
    names = sorted({name for text in texts for name in text})
    shared = [name for name in names if len({text.get(name) for text in texts}) == 1]
    differ = [name for name in names if name not in shared]
    blocks: list[Block] = [Table(["setting", "value"], [[name, texts[0][name]] for name in shared])]
    if differ:
        rows = [
            [folder.name, *(text.get(name, "") for name in differ)] for folder, text in zip(folders, texts, strict=True)
        ]
        blocks.append(Table(["run", *differ], rows))
    return blocks


def captioned(figure: FigureFile, captions: Mapping[str, str]) -> Picture:
    """Returns a run's figure over its caption: what `captions` has under the figure's name, else that name."""
    return Picture(captions.get(figure.name, figure.name.replace("_", " ")), figure)


def stand_in_warning(folder: Folder) -> list[Block]:
    """Returns a warning if the run used the digits that stand in for its own data set."""
    return [f"! STAND-IN data: {folder.dataset} in place of {folder.stand_in_for}."] if folder.stand_in_for else []


def run_link(folder: Folder) -> str:
    """Returns the name by which links find a run's details."""
    return link("run", folder.name)


def link(kind: str, name: str) -> str:
    """Returns a name for links that no other thing of this kind has."""
    return f"{kind}-{anchor(name)[:60]}-{zlib.crc32(name.encode(errors='replace')):08x}"


def anchor(title: str) -> str:
    """Returns a title as a name for links and files."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")
