"""What lies in a results folder: finished runs, interrupted ones, damaged ones. Reading never fails; it tells."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from common.files import read_metrics

T = TypeVar("T")


@dataclasses.dataclass
class Folder:
    """A run's folder: its settings, its metrics when it is finished, and what is wrong with it."""

    path: Path
    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    state: str  # finished, interrupted, or damaged and why

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
        """The images or the task it ran on."""
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
    def figures(self) -> list[Path]:
        """Its pictures."""
        return sorted((self.path / "figures").glob("*.png"))


def find(results: Path) -> list[Folder]:
    """Returns every run folder below `results`, whatever state it is in, by name."""
    return [_read(path, str(path.relative_to(results))) for path in sorted(_run_folders(results))]


def usable(folders: Sequence[Folder], kind: type[T]) -> list[tuple[Folder, T]]:
    """Returns the finished folders with what `kind`, a dataclass, wants of their settings and metrics, checked.

    A folder that does not hold it is called damaged from then on.
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


def _run_folders(results: Path) -> Iterator[Path]:
    closed: list[Path] = []
    for parent, folders, files in os.walk(results, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if name not in ("checkpoints", "figures") and not name.startswith(".")]
        path = Path(parent)
        if "config.yaml" in files or ("metrics.json" in files and "history.csv" in files) or _has_progress(path):
            yield path
    yield from closed  # _read tells why


def _has_progress(path: Path) -> bool:
    try:
        return (path / "checkpoints" / "progress.json").exists()
    except OSError:
        return True


def _read(path: Path, name: str) -> Folder:
    folder = Folder(path, name if name != "." else path.resolve().name, {}, {}, "interrupted")
    try:
        settings = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("holds no settings")
        folder.settings = settings
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        folder.state = f"damaged: config.yaml, {_one_line(error)}"
        return folder
    try:
        metrics = read_metrics(path)
        if metrics is not None:
            folder.metrics, folder.state = metrics, "finished"
    except (OSError, ValueError) as error:
        folder.state = f"damaged: metrics.json, {_one_line(error)}"
    return folder


def _one_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:200]
