"""The checkout, and files that are either whole or missing: written to a temporary name, synced, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.errors import DamagedError, RunError, UsageError

ROOT = Path(__file__).resolve().parent.parent  # the checkout


def write_atomically(path: Path, content: bytes) -> None:
    """Makes the folder of `path` if there is none, and then writes as `replace` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)


def replace(path: Path, content: bytes, older: Path | None = None) -> None:
    """Replaces `path` by `content` so that a crash or a full disk leaves the old file or the new one, never half.

    With `older` the old file is kept under that name.

    Raises:
        OSError: the folder is not writable or the disk is full; the old file is untouched.
        RunError: the folder does not exist: somebody removed it.
    """
    if not path.parent.is_dir():
        raise RunError(f"{path}: cannot be written, the folder {path.parent} was removed")
    try:
        _write_and_rename(path, content, older)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


MARK = "trilab-"  # in the names of files that are being written: no other hidden file is taken for one


def _write_and_rename(path: Path, content: bytes, older: Path | None) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{MARK}")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see `remove_unfinished`
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            if older is not None and path.exists():
                os.replace(path, older)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def new_folder(path: Path) -> Path:
    """Makes a run's folder, and those above it; returns it. If `path` exists, its name gets the first free number.

    Raises:
        OSError: it cannot be made.
        RunError: all numbers below 1,000 are taken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        folder = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise RunError(f"{path}: a thousand runs of that name exist; choose another --run-name")


def remove_unfinished(folder: Path) -> None:
    """Deletes what killed processes left in `folder` of files that they were writing; no file that one writes now."""
    for path in folder.glob(".*"):
        if re.fullmatch(rf"\..+\.{MARK}[a-z0-9_]{{8}}", path.name) and path.is_file():
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
                path.unlink()


def save_weights(path: Path, weights: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Writes named tensors as safetensors, contiguous and on the CPU; `header` is text beside them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(path, safetensors.torch.save(tensors, header))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Returns the named tensors of a safetensors file, on the CPU.

    Raises:
        RunError: the file is missing, truncated or not safetensors.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise RunError(
            f"{path}: no such file" if missing else f"{path}: not a readable safetensors file: {error}"
        ) from None


def save_state(path: Path, state: dict[str, Any], *, keep_older: bool = False) -> None:
    """Writes a nested dict of tensors and plain values behind its SHA-256, for `load_state`.

    With `keep_older` the file that it replaces is kept as `older(path)`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    replace(path, content + hashlib.sha256(content).digest(), older(path) if keep_older else None)


def load_state(path: Path) -> dict[str, Any]:
    """Returns what `save_state` wrote, on the CPU, without running any code from the file.

    Raises:
        DamagedError: the file is missing, truncated or damaged.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise DamagedError(f"{path}: damaged checkpoint (its checksum does not match)")
        state: dict[str, Any] = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
        return state
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{path}: not a readable checkpoint: {error}") from None


def older(path: Path) -> Path:
    """Returns the name of the checkpoint before the last one, `vae.older.state.pt` of `vae.state.pt`."""
    stem, suffixes = path.name.split(".", 1)
    return path.with_name(f"{stem}.older.{suffixes}")


def last_whole(path: Path, restore: Callable[[dict[str, Any]], None]) -> bool:
    """Calls `restore` with the state in `path`, or with the older one where that is damaged, and says so.

    `restore` too may find it damaged. Returns False where there is neither file: `restore` is not called.

    Raises:
        DamagedError: no file is whole.
    """
    there = [file for file in (path, older(path)) if file.exists()]
    try:
        for file in there[:1]:
            restore(load_state(file))
    except DamagedError as error:
        if len(there) < 2:
            raise
        restore(load_state(there[1]))
        print(f"{error}; going on from the one before, {there[1].name}", file=sys.stderr, flush=True)
    return bool(there)


def forget_state(path: Path) -> None:
    """Deletes a checkpoint and the one before it."""
    path.unlink(missing_ok=True)
    older(path).unlink(missing_ok=True)


def digest(content: bytes) -> str:
    """Returns the SHA-256 of a file's content, by which a damaged one is known."""
    return hashlib.sha256(content).hexdigest()


def moved_to_sweeps(path: Path) -> Path:
    """Returns `path`, or `sweeps/` beside it where a study's file lies now, and says so on standard error."""
    now = path.parent / "sweeps" / path.name
    if path.exists() or not now.exists():
        return path
    print(f"{path} has moved to {now}", file=sys.stderr, flush=True)
    return now


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Returns what a run's metrics.json holds, which marks the run as finished; None where there is none.

    Raises:
        OSError, ValueError: it cannot be read or is damaged.
    """
    try:
        metrics: Any = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(metrics, dict):
        raise ValueError("holds no figures")
    return metrics


def finished_metrics(run: Path, figure: str, script: str) -> dict[str, Any]:
    """Returns the metrics of a finished run of `script`, which are known by the name of a `figure` among them.

    Raises:
        UsageError: there is no such folder.
        RunError: it holds no finished run, a damaged one, or one of another script.
    """
    if not run.exists():
        raise UsageError(f"{run}: no such folder")
    if run.is_file():
        raise UsageError(f"{run}: a file; give the run's folder")
    try:
        metrics = read_metrics(run)
    except (OSError, ValueError) as error:
        raise RunError(f"{run / 'metrics.json'}: damaged ({error})") from None
    if metrics is None:
        raise RunError(f"{run}: no finished run (metrics.json is missing)")
    if figure not in metrics:
        raise RunError(f"{run}: a run of another experiment, not of {script}")
    return metrics


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of metrics.json; one inside a mapping is named by its path, `quality/mixture samples/fid`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


def short(commit: object) -> str:
    """Returns the first letters of what `git_commit` returned, with its mark of uncommitted changes."""
    text = str(commit or "")
    return text[:8] + ("-dirty" if text.endswith("-dirty") else "")


def git_commit() -> str | None:
    """Returns the commit of the code that runs, with `-dirty` when files differ from it; None outside a checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
