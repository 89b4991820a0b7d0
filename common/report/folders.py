"""The runs in a results folder: finished, running, interrupted or damaged, as a run's `state` says.

Finding them never fails.

A run lies in a folder of its own, as its script wrote it, or on a line of a `runs.csv` (see `runs_table`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from annotated_types import Interval
from pydantic import TypeAdapter, ValidationError

from common import history, progress
from common.files import read_metrics
from common.locks import is_locked
from common.plain_yaml import read_yaml
from common.report import runs_table
from common.report.pictures import FigureFile, figures_in, figures_on

T = TypeVar("T")
Fraction = Annotated[float, Interval(ge=0, le=1)]  # an accuracy, say: a damaged one must not be shown as a figure


@dataclasses.dataclass
class Folder:
    """A run: its settings, its metrics if it is finished, and what is wrong with it."""

    path: Path  # of a run in a table: the table's folder / the run's name, where nothing need lie
    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    state: str  # finished, running, interrupted, or damaged and why
    table: Path | None = None  # the folder of the runs.csv that it is a line of, if it has no folder of its own

    @property
    def finished(self) -> bool:
        """Whether its figures can be shown."""
        return self.state == "finished"

    @property
    def damaged(self) -> bool:
        """Whether it holds something that cannot be read; `state` says what."""
        return self.state.startswith("damaged")

    @property
    def dataset(self) -> str:
        """The data set or the environment that it ran on."""
        source = self.metrics.get("dataset")
        return str(source.get("name", "")) if isinstance(source, dict) else ""

    @property
    def stand_in_for(self) -> str | None:
        """The data set that the embedded digits stood in for, if they did."""
        source = self.metrics.get("dataset")
        return source.get("stand_in_for") if isinstance(source, dict) else None

    @property
    def label(self) -> str:
        """Its name, marked where it ran on the stand-in."""
        return f"STAND-IN {self.name}" if self.stand_in_for else self.name

    @property
    def figures(self) -> dict[str, FigureFile]:
        """Its figures by name."""
        if self.table is not None:
            return figures_on(self.path.with_name(f"{self.path.name}.png"))
        return figures_in(self.path / "figures")

    def history(self, stage: str) -> dict[str, list[float]]:
        """Returns the logged columns of one stage, each a list in step order; a run in a table has those it kept.

        Raises:
            OSError, ValueError: its history is missing or damaged.
        """
        if self.table is not None:
            return runs_table.read_curves(self.table, self.path.relative_to(self.table).as_posix(), stage)
        return history.columns(history.read(self.path / "history.csv"), stage)


def find(results: Path) -> list[Folder]:
    """Returns every run below `results`, whatever state it is in, by name."""
    found = [run for path, kind in _places(results) for run in kind(path, str(path.relative_to(results)))]
    return sorted(found, key=lambda folder: folder.path)


def run_at(path: Path) -> Folder:
    """Returns the run at `path`: a run folder, or the path of a runs.csv's folder with a run's name behind it."""
    for table in path.parents:
        if not path.is_dir() and (table / runs_table.TABLE).is_file():
            of_it = [folder for folder in _read_table(table, table.name) if folder.path == path]
            return of_it[0] if of_it else Folder(path, path.name, {}, {}, "interrupted")
    return _read(path, path.name)[0]


def usable(folders: Sequence[Folder], kind: type[T]) -> list[tuple[Folder, T]]:
    """Returns the finished runs with those of their settings and metrics that `kind`, a dataclass, asks for, checked.

    A run that lacks one of them, or has another type of it, is called damaged from then on.
    """
    result = []
    for folder in folders:
        if folder.finished:
            try:
                # As JSON, which has no tuples and no NaN, and strictly: "1" is no number.
                text = json.dumps({**folder.settings, **folder.metrics}, default=str, allow_nan=False)
                result.append((folder, TypeAdapter(kind).validate_json(text, strict=True)))
            except ValidationError as error:
                first = error.errors()[0]
                folder.state = f"damaged: {'/'.join(map(str, first['loc']))}: {first['msg'].lower()}"
            except (ValueError, RecursionError) as error:
                folder.state = f"damaged: {_one_line(error)}"
    return result


Reader = Callable[[Path, str], list[Folder]]


def _places(results: Path) -> Iterator[tuple[Path, Reader]]:
    """Yields every folder that holds a run or a table of runs, with what reads it.

    A table beside a study's own settings has the runs that the study's figures are of: the study stands for them.
    """
    closed: list[Path] = []
    for parent, folders, files in os.walk(results, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if name not in ("checkpoints", "figures") and not name.startswith(".")]
        path = Path(parent)
        if "config.yaml" in files or ("metrics.json" in files and "history.csv" in files) or _has_progress(path):
            yield path, _read
        elif runs_table.TABLE in files:
            yield path, _read_table
    yield from ((path, _read) for path in closed)  # _read says why


def _has_progress(path: Path) -> bool:
    try:
        return progress.path_in(path).exists()
    except OSError:
        return True


def _read(path: Path, name: str) -> list[Folder]:
    state = "running" if is_locked(path) else "interrupted"
    folder = Folder(path, name if name != "." else path.resolve().name, {}, {}, state)
    try:
        settings = read_yaml(path / "config.yaml")
        if not isinstance(settings, dict):
            raise ValueError("holds no settings")
        folder.settings = settings
    except (OSError, ValueError, yaml.YAMLError) as error:
        folder.state = f"damaged: config.yaml, {_one_line(error)}"
        return [folder]
    try:
        metrics = read_metrics(path)
        if metrics is not None:
            folder.metrics, folder.state = metrics, "finished"
    except (OSError, ValueError) as error:
        folder.state = f"damaged: metrics.json, {_one_line(error)}"
    return [folder]


def _read_table(path: Path, name: str) -> list[Folder]:
    try:
        rows = runs_table.read(path)
    except ValueError as error:
        return [Folder(path, name if name != "." else path.resolve().name, {}, {}, f"damaged: {_one_line(error)}")]
    return [
        Folder(
            path / row.name,
            (Path(name) / row.name).as_posix(),
            row.settings,
            row.metrics,
            f"damaged: {row.problem}" if row.problem else "finished",
            path,
        )
        for row in rows
    ]


def _one_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:200]
