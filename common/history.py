"""history.csv: a row for each logged step of a stage, and how a run that goes on knows that the file is whole."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import digest, replace
from common.tables import as_csv

Rows = list[dict[str, Any]]  # each has `stage`, `step` and the scalars that were logged


def read(path: Path) -> Rows:
    """Returns the rows as text, cell by cell; a cell without a value is empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a history.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        known = all(row["stage"] and int(row["step"]) > 0 for row in rows)
        _ = [float(value) for row in rows for name, value in row.items() if name != "stage" and value != ""]
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(str(error)) from None
    if not known:
        raise ValueError("a row without a stage or a step")
    return rows


def write(path: Path, rows: Rows) -> None:
    """Writes the file in one piece."""
    replace(path, as_csv(rows).encode())


def record(rows: Rows) -> dict[str, Any]:
    """Returns what a run remembers of the rows that it has written: their number and their checksum."""
    cells = [{name: str(value) for name, value in row.items() if value not in ("", None)} for row in rows]
    # A file has the columns in the order of its first rows.
    return {"history_rows": len(rows), "history_sha256": digest(json.dumps(cells, sort_keys=True).encode())}


def is_whole(rows: Rows, memory: Mapping[str, Any]) -> bool:
    """Whether the rows are those that a run remembers to have written, and perhaps more."""
    count = memory.get("history_rows", 0)
    return len(rows) >= count and memory.get("history_sha256") in (None, record(rows[:count])["history_sha256"])


def read_whole(path: Path, memory: Mapping[str, Any]) -> Rows:
    """Returns the rows of a run that remembers `memory`; none if nothing was logged.

    Raises:
        OSError: the file cannot be read.
        RunError: it is damaged, or rows that the run wrote are missing.
    """
    try:
        rows = read(path) if path.exists() else []
        whole = is_whole(rows, memory)
    except ValueError:
        whole = False
    if not whole:
        raise RunError(f"{path}: damaged or rows are missing; the run cannot be resumed")
    return rows


def rewound(rows: Rows, stage: str, step: int) -> Rows:
    """Returns the rows without those of `stage` after `step`."""
    return [row for row in rows if row["stage"] != stage or int(row["step"]) <= step]


def columns(rows: Rows, stage: str) -> dict[str, list[float]]:
    """Returns the columns of a stage's first row, each a list in step order; what a later row lacks is NaN."""
    of_stage = [row for row in rows if row["stage"] == stage]
    names = [name for name, value in (of_stage[0] if of_stage else {}).items() if name != "stage" and value != ""]
    cells = {name: [row.get(name, "") for row in of_stage] for name in names}
    return {name: [math.nan if cell == "" else float(cell) for cell in column] for name, column in cells.items()}
