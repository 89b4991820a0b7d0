"""checkpoints/progress.json: what a run remembers of its stages, how long it took, and the checksums of its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import digest, replace

KINDS = {"seconds": int | float, "history_rows": int, "task": object, "git_commit": object}  # each run has these


def path_in(run: Path) -> Path:
    """Returns the file of a run's folder."""
    return run / "checkpoints" / "progress.json"


def read(run: Path) -> dict[str, Any]:
    """Returns what the run in a folder remembers, in the order in which it was made.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is damaged.
    """
    try:
        memory: Any = json.loads(path_in(run).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    whole = isinstance(memory, dict) and all(k in memory and isinstance(memory[k], kind) for k, kind in KINDS.items())
    if not whole:
        raise ValueError("not a run's progress")
    if memory.pop("sha256", None) not in (None, digest(json.dumps(memory).encode())):
        raise ValueError("its checksum does not match")
    return dict(memory)


def write(run: Path, memory: Mapping[str, Any]) -> None:
    """Writes the file in one piece, with its checksum."""
    checked = {**memory, "sha256": digest(json.dumps(memory).encode())}
    replace(path_in(run), json.dumps(checked, indent=1).encode())


def require_unchanged(run: Path) -> None:
    """Compares the weights in a run's folder with the checksums that the run has kept of them.

    A folder without checksums, of an earlier version or shared, is taken as it is.

    Raises:
        RunError: a file is not what the run wrote.
    """
    try:
        memory = read(run)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(f"{path_in(run)}: damaged ({error})") from None
    for name, made in memory.items():
        path = run / "checkpoints" / name
        kept = name.endswith(".safetensors") and isinstance(made, str) and path.exists()
        if kept and digest(path.read_bytes()) != made:
            raise RunError(f"{path}: not what this run wrote there (its checksum does not match)")


def require_task(run: Path, task: str) -> None:
    """Raises RunError if `run` is a folder of another task's run: then its settings mean nothing to this one's script.

    A run's progress says whose it is; a folder that says nothing passes.
    """
    with contextlib.suppress(OSError, ValueError):
        made_by = read(run)["task"]
        if made_by != task:
            raise RunError(f"{run}: a run of {made_by}, not of {task}")
