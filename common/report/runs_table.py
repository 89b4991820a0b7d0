"""Many runs as two small files: `runs.csv`, a line for each run, and `settings.yaml`, what all of them share.

`runs.csv` has the columns `name`, `settings/NAME` for every setting that differs between the runs, and one for every
figure. A figure within a record is named by its path, as `classifier/accuracy`. A number, a list, true, false and
null are written as JSON, text as it is, and an empty cell means that the run has no such figure. `settings.yaml` holds
`settings` and `metrics`: the values that all runs share. `curves.csv`, if there is one, holds rows of the runs'
history.csv, with the run's name in front.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from common import history, tables
from common.plain_yaml import read_yaml

TABLE, SHARED, CURVES = "runs.csv", "settings.yaml", "curves.csv"
SETTING = "settings/"  # stands before a setting's name in the head of runs.csv
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of the table: its name, settings and metrics, or what is wrong with its line."""

    name: str
    settings: Record
    metrics: Record
    problem: str = ""


# -- writing ----------------------------------------------------------------------------------------------------------


def written(rows: Sequence[Row]) -> dict[str, bytes]:
    """Returns the two files that hold these runs, file name → content."""
    settings = _shared([row.settings for row in rows])
    metrics = {name: of for name, of in _shared([row.metrics for row in rows]).items() if not _is_number(of)}
    lines = [
        {"name": row.name}
        | {f"{SETTING}{name}": _cell(value) for name, value in row.settings.items() if name not in settings}
        | {
            column: _cell(value)
            for name, of in row.metrics.items()
            if name not in metrics
            for column, value in _flat(name, of)
        }
        for row in rows
    ]
    shared = yaml.safe_dump({"settings": settings, "metrics": metrics}, sort_keys=False, allow_unicode=True)
    return {TABLE: as_csv(lines), SHARED: shared.encode()}


def as_csv(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns a CSV file with every column that any of the lines has."""
    columns = dict.fromkeys(column for line in lines for column in line)
    ordered = sorted(columns, key=lambda column: (column != "name", not column.startswith(SETTING)))
    return tables.as_csv(lines, ordered).encode()


def _shared(records: Sequence[Record]) -> Record:
    """Returns the entries that are the same in all records."""
    first, *others = records
    return {
        name: value
        for name, value in first.items()
        if all(name in other and repr(other[name]) == repr(value) for other in others)
    }


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Yields the entries of a record by their paths; anything that a path cannot tell is one entry."""
    if isinstance(value, dict) and value and all(isinstance(key, str) and "/" not in key for key in value):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    else:
        yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    """Returns a value as `_value` reads it back."""
    return value if isinstance(value, str) and value and _value(value) is value else json.dumps(value)


def _value(cell: str) -> Any:
    """Returns what a cell holds: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


# -- reading ----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> list[Row]:
    """Returns the runs of a folder's table; a line that cannot be read is a run with a `problem`.

    Raises:
        ValueError: the table or what its runs share cannot be read at all; the message names the file.
    """
    shared = _read_shared(folder / SHARED)
    head, *lines = _read_lines(folder / TABLE)
    if not head or head[0] != "name" or len(set(head)) < len(head):
        raise ValueError(f"{TABLE}: the head must begin with 'name' and name every column once")
    seen: set[str] = set()
    rows = [_row(head, cells, number, shared, seen) for number, cells in enumerate(lines, 2) if cells]
    if rows and not (folder / TABLE).read_bytes().endswith(b"\n"):  # a number that lost its last digits is a number too
        rows[-1] = Row(rows[-1].name, {}, {}, f"{TABLE}: cut off in its last line; runs after it may be missing")
    return rows


def _read_lines(path: Path) -> list[list[str]]:
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path.name}: {error}") from None
    return lines or [[]]


def _read_shared(path: Path) -> dict[str, Record]:
    try:
        shared = read_yaml(path)
        parts = {name: shared[name] for name in ("settings", "metrics")}
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"{path.name}: 'settings' and 'metrics' must hold names and values")
    return parts


def _row(head: Sequence[str], cells: Sequence[str], line: int, shared: Mapping[str, Record], seen: set[str]) -> Row:
    name = cells[0]
    where = f"{TABLE}, line {line}"
    if len(cells) != len(head):
        return Row(where, {}, {}, f"{where}: {len(cells)} cells, the head has {len(head)}")
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0] == "/" or name in seen:
        return Row(where, {}, {}, f"{where}: {name!r} is {'there twice' if name in seen else 'no name for a run'}")
    seen.add(name)
    settings, metrics = dict(shared["settings"]), copy.deepcopy(shared["metrics"])
    for column, cell in zip(head[1:], cells[1:], strict=True):
        if cell and column.startswith(SETTING):
            settings[column.removeprefix(SETTING)] = _value(cell)
        elif cell and not _put(metrics, column.split("/"), _value(cell)):
            return Row(name, {}, {}, f"{where}: {column} has no place beside a figure of another column")
    return Row(name, settings, metrics)


def _put(record: Record, path: Sequence[str], value: Any) -> bool:
    """Sets an entry of nested records, and returns whether it could."""
    place: Any = record
    for key in path[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            return False
    place[path[-1]] = value
    return True


def read_curves(folder: Path, run: str, stage: str) -> dict[str, list[float]]:
    """Returns the columns of one run's stage in `curves.csv`, each a list in step order.

    Raises:
        OSError, ValueError, KeyError: the file is missing or damaged.
    """
    rows = csv.DictReader(io.StringIO((folder / CURVES).read_text(encoding="utf-8")))
    of_run = [{name: cell for name, cell in row.items() if name != "run"} for row in rows if row["run"] == run]
    return history.columns(of_run, stage)
