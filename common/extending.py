"""`--extend RUN`: a new run that begins where a finished one ended and goes on to a longer training.

A script says in its settings what goes on (`Extension`). The new run's folder gets copies of the finished run's stages
before that one, of its history, and of the state that `--keep-state` kept: the script then goes on as in a resumed run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import history, progress
from common.errors import RunError, UsageError
from common.files import load_state, read_metrics

if TYPE_CHECKING:
    from common.cli import RunSettings
    from common.experiment import Run

# Settings of every script that say where and how a run is computed.
ANY_MAY_CHANGE = (
    *("config", "resume", "extended_from", "device", "precision", "threads", "data_dir", "results_dir", "run_name"),
    *("keep_state", "track"),
)


@dataclasses.dataclass(frozen=True)
class Extension:
    """What a script's `--extend` goes on with."""

    length: str  # the setting that says how long the training is, as env_steps
    stage: str  # its weights are checkpoints/<stage>.safetensors, its state is <stage>.state.pt
    may_change: tuple[str, ...]  # settings that the new run may have otherwise, beside `length`
    missing: str  # what the new run lacks if the state was not kept, for the user
    history: str = ""  # the rows of history.csv whose last step is the training's; none means those of `stage`
    state: tuple[str, ...] = ()  # more files and folders in checkpoints/ that are part of the state
    beside: tuple[str, ...] = ()  # more files in checkpoints/ that belong to the weights
    forget: tuple[str, ...] = ()  # remembered values that the stage itself makes


def require(settings: RunSettings, finished: RunSettings) -> None:
    """Raises an error, before anything is written, where `settings` do not extend the run with settings `finished`.

    Raises:
        UsageError: a setting differs that must not, or the training would not be longer.
        RunError: the run to extend is not finished, or its weights are missing.
    """
    extension, base = settings.extension, settings.extended_from
    assert base is not None
    assert extension is not None
    may_change = (extension.length, *extension.may_change)
    for field in dataclasses.fields(settings):
        before, now = getattr(finished, field.name), getattr(settings, field.name)
        if before != now and field.name not in (*may_change, *ANY_MAY_CHANGE):
            raise UsageError(
                f"{_option(field.name)} {now} with --extend {base}: the run was trained with {before}, and goes on "
                "with it; leave the option out"
            )
    before, now = (getattr(of, extension.length) for of in (finished, settings))
    if now <= before:
        raise UsageError(
            f"{_option(extension.length)} {now} with --extend {base}: the run has {before} already; give the new "
            "total, which must be larger"
        )
    try:
        done = read_metrics(base) is not None
    except (OSError, ValueError) as error:
        raise RunError(f"{base / 'metrics.json'}: damaged ({error})") from None
    if not done:
        raise RunError(f"--extend {base}: the run is not finished; --resume {base} ends it first")
    weights = base / "checkpoints" / f"{extension.stage}.safetensors"
    if not weights.exists():
        raise RunError(f"--extend {base}: {weights} is missing")
    if not progress.path_in(base).exists():
        raise RunError(f"--extend {base}: this is no run's own folder (a shared one?), and what it lacks is needed")
    progress.require_unchanged(base)
    if not history.is_whole(_rows(base / "history.csv"), _memory(base)):
        raise RunError(f"{base / 'history.csv'}: damaged or rows are missing; the run cannot be extended")
    if (state := base / "checkpoints" / f"{extension.stage}.state.pt").exists():
        load_state(state)  # which names it where it is damaged, before the new run has a copy


def begin(run: Run) -> None:
    """Puts into a new run's folder what the run that it extends ended with; an extension that has begun stays as it is.

    Raises:
        RunError: a file of the finished run is missing or damaged.
    """
    extension, base = run.settings.extension, run.settings.extended_from
    if base is None or run.extended_at() is not None:
        return
    assert extension is not None
    made = base / "checkpoints"
    remembered, rows = _memory(base), _rows(base / "history.csv")
    stages, weights = list(remembered), f"{extension.stage}.safetensors"  # in the order in which they were made
    before = stages[: stages.index(weights)] if weights in stages else []
    memory = {name: remembered[name] for name in before if name not in {*extension.forget, *ABOUT_ITSELF}}
    step = max((int(row["step"]) for row in rows if row["stage"] == (extension.history or extension.stage)), default=0)
    for name in (name for name in memory if name.endswith(".safetensors")):
        _copy(made / name, run.checkpoints / name)
    for name in (weights, *extension.beside):
        if (made / name).exists():
            _copy(made / name, run.checkpoints / START / name)
    kept = (made / f"{extension.stage}.state.pt").exists()
    if kept:
        for name in (f"{extension.stage}.state.pt", *extension.state):
            _copy(made / name, run.checkpoints / name)
    told = f"goes on from {base} after {step} {extension.length.replace('_', ' ')}"
    lacks = "" if kept else f"; its state was not kept (--keep-state): {extension.missing}"
    print(f"{told}{lacks}", file=sys.stderr, flush=True)
    run.adopt({**memory, EXTENDED: step}, rows)


ABOUT_ITSELF = {"seconds", "history_rows", "history_sha256", "task", "git_commit", "tracked_as", "extended_at"}
START = "start"  # folder in checkpoints/ with the weights that an extension starts from, until it has its own
EXTENDED = "extended_at"  # the remembered step of the finished run


def _memory(base: Path) -> dict[str, Any]:
    try:
        return progress.read(base)
    except (OSError, ValueError) as error:
        path = progress.path_in(base)
        raise RunError(f"{path}: damaged or missing ({error}); the run cannot be extended") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return history.read(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged or missing ({error}); the run cannot be extended") from None


def _copy(source: Path, target: Path) -> None:
    """Makes `target` another name of the file, or a folder of such names; where that is impossible, a copy.

    Files of a run are replaced or deleted, never changed in place: neither run sees what becomes of the other's.
    """
    if source.is_dir():
        for file in source.iterdir():
            _copy(file, target / file.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise RunError(f"{source}: missing; the run cannot be extended") from None
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
