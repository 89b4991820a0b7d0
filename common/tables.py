"""Tables as Markdown and as plain rows: scripts print them, studies write them, the report page shows them."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.stats import FEWEST, Interval

BOLD = f"bold where the interval of {FEWEST} values or more excludes 0"  # what `difference` does, for captions


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a head; a cell in `**` is bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        """Returns the table as Markdown, its caption above."""
        lines = [*([self.caption, ""] if self.caption else []), _line(self.head), "|" + "---|" * len(self.head)]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Returns a CSV file; `columns` are by default all that any row has, in order; a missing cell is empty."""
    text = io.StringIO()
    names = columns if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parse(markdown: str) -> list[Table]:
    """Returns the tables of a file that `Table.markdown` wrote, each with the paragraph above it as its caption."""
    tables: list[Table] = []
    caption = ""
    for paragraph in markdown.strip().split("\n\n"):
        lines = paragraph.strip().splitlines()
        if len(lines) > 1 and lines[0].startswith("|") and set(lines[1]) <= set("|-"):
            cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
            tables.append(Table(cells[0], cells[2:], caption))
        caption = paragraph.strip()
    return tables


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def difference(interval: Interval, decimals: int | None = None, margin: float | None = None) -> str:
    """Returns a difference with its sign and interval: bold where it is conclusive, with ≈ if it is within `margin`."""
    text = interval.text(decimals, signed=True)
    equal = " ≈" if margin is not None and interval.within(margin) else ""
    return f"**{text}**{equal}" if interval.conclusive else text + equal


def margins_named(margins: Mapping[str, float]) -> str:
    """Returns what a caption says of the margins that `difference` got, by the figure's heading; nothing if none."""
    named = ", ".join(f"{figure} ±{margin:g}" for figure, margin in margins.items())
    return f" ≈ where the whole interval lies within the margin of no difference ({named})." if margins else ""


def counted(number: int, noun: str) -> str:
    """Returns `1 seed`, `5 seeds`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
