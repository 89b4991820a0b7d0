"""The run folder: settings, metrics, history, TensorBoard, figures, checkpoints, and resuming after a crash."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from common import extending, history, progress, stopping, tracking
from common.cli import RunSettings, to_yaml
from common.device import device_name, peak_memory, resolve_precision
from common.errors import RunError
from common.files import (
    digest,
    forget_state,
    git_commit,
    load_weights,
    new_folder,
    older,
    read_metrics,
    remove_unfinished,
    replace,
    save_weights,
)
from common.locks import lock
from common.plotting import png_bytes
from common.tensorboard import EventFile

T = TypeVar("T")


class Run:
    """One run's folder, `RESULTS_DIR/<task>/<run>/`.

    A script is the same code whether the run is new or resumed. The result of each stage is kept under a name
    (`remembered`, `remembered_weights`); a resumed run finds it and continues with the first unfinished stage.
    """

    def __init__(self, settings: RunSettings, task: str, name: str, device: torch.device) -> None:
        """Opens the folder that `settings.resume` names, or makes a new one that no other run has.

        Raises:
            OSError: the results folder is not writable.
            RunError: the folder to resume holds another task's run or a damaged one.
        """
        self.settings, self.task, self.device = settings, task, device
        tracking.require(settings.track)
        name = settings.run_name or f"{name}-seed{settings.seed}-{datetime.now():%Y%m%d-%H%M%S}"
        wanted = settings.results_dir / task / name
        self.path = settings.resume if settings.resume is not None else new_folder(wanted)
        if settings.resume is None and self.path != wanted:
            say(f"{wanted} exists; this run is {self.path}")
        self.checkpoints, self.figures = self.path / "checkpoints", self.path / "figures"
        self.finished = self._is_finished()
        if not self.finished:
            self._lock()
            stopping.going_on = f"--resume {self.path} goes on from its last checkpoint, if it has one"
            self.finished = self._is_finished()  # another process may have finished it before it let go of the lock
        self._memory = self._read_progress()
        if self._memory["task"] != task:
            raise RunError(f"--resume {self.path}: a run of {self._memory['task']}, not of {task}")
        self._seconds_before, self._start = float(self._memory["seconds"]), time.perf_counter()
        self._history = history.read_whole(self.path / "history.csv", self._memory)
        if not self.finished:
            self.checkpoints.mkdir(exist_ok=True)
            self.figures.mkdir(exist_ok=True)
            for folder in (self.path, self.figures, self.checkpoints, *filter(Path.is_dir, self.checkpoints.iterdir())):
                remove_unfinished(folder)
            if settings.resume is None:
                replace(self.path / "config.yaml", to_yaml(settings).encode())
            self._remember()
            tracking.start(self)  # before the event file, which it listens to
            self._events = EventFile(self.path)
            extending.begin(self)
            if settings.threads is None and device.type == "cpu":  # a run keeps its number: it changes the last digits
                torch.set_num_threads(self.remembered("threads", torch.get_num_threads))

    def _lock(self) -> None:
        """Locks the folder against other processes until this one ends, however it ends."""
        self._lock_file = lock(self.path)
        if self._lock_file is None:
            raise RunError(f"--resume {self.path}: another process is at work on this run; wait for it or stop it")

    def _is_finished(self) -> bool:
        try:
            return read_metrics(self.path) is not None
        except (OSError, ValueError) as error:
            path = self.path / "metrics.json"
            raise RunError(
                f"{path}: damaged ({error}); delete it and resume the run to have it written again"
            ) from None

    def _read_progress(self) -> dict[str, Any]:
        try:
            return progress.read(self.path)
        except FileNotFoundError:
            return {"seconds": 0.0, "history_rows": 0, "task": self.task, "git_commit": git_commit()}
        except (OSError, ValueError) as error:
            raise RunError(f"{progress.path_in(self.path)}: damaged ({error}); the run cannot be resumed") from None

    # -- results of stages --------------------------------------------------------------------------------------------

    def remembered(self, name: str, compute: Callable[[], T]) -> T:
        """Returns `compute()`, a value JSON can hold, computed once in the life of the run folder."""
        if name not in self._memory:
            self._memory[name] = json.loads(json.dumps(compute()))
            self._remember()
        value: T = self._memory[name]
        return value

    def remembered_weights(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns named tensors, computed once in the life of the run folder, from `checkpoints/<name>.safetensors`.

        When that file is missing they are computed anew, and so is everything that was computed after them.
        """
        path = self.checkpoints / f"{name}.safetensors"
        if not path.exists():
            self._forget_from(path.name)
        if not path.exists():
            save_weights(path, compute())
            # The training's own checkpoint is needed only to go on with a finished run.
            state, extension = self.checkpoints / f"{name}.state.pt", self.settings.extension
            if self.settings.keep_state and extension and name == extension.stage:
                older(state).unlink(missing_ok=True)
            else:
                forget_state(state)
            if extension and name == extension.stage:
                shutil.rmtree(self.checkpoints / extending.START, ignore_errors=True)
        try:
            made = digest(path.read_bytes())
            if self._memory.get(path.name, True) not in (True, made):  # true: by a version without checksums
                raise RunError(f"{path}: not what this run wrote there (its checksum does not match)")
            weights = load_weights(path)
        except RunError as error:
            raise RunError(f"{error}; delete it to repeat that stage and those after it") from None
        if path.name not in self._memory:
            self._memory[path.name] = made
            self._remember()
        return weights

    def _forget_from(self, file: str) -> None:
        if file not in self._memory:
            return
        made = list(self._memory)  # in the order of the stages
        for name in made[made.index(file) :]:
            del self._memory[name]
            if name.endswith(".safetensors"):
                (self.checkpoints / name).unlink(missing_ok=True)
        for training in self.checkpoints.glob("*.state.pt"):
            training.unlink()
        self._memory.pop(extending.EXTENDED, None)
        self._remember()
        extending.begin(self)  # a run that extends one has what that one ended with again

    # -- a run that extends a finished one ----------------------------------------------------------------------------

    def adopt(self, memory: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        """Takes over what a finished run remembered and logged; TensorBoard gets its scalars too."""
        self._memory |= memory
        self._history = rows
        history.write(self.path / "history.csv", rows)
        for row in rows:
            scalars = {k: float(v) for k, v in row.items() if k not in ("stage", "step") and v != ""}
            self._events.scalars(row["stage"], int(row["step"]), scalars)
        self._memory |= history.record(rows)
        self._remember()

    def extended_at(self) -> int | None:
        """Returns after which step or epoch of the finished run this one goes on; None if it extends none."""
        step: int | None = self._memory.get(extending.EXTENDED)
        return step

    def start_weights(self, name: str) -> dict[str, Tensor] | None:
        """Returns named tensors of the finished run that this run, whose own are not made yet, starts from, or None."""
        path = self.checkpoints / extending.START / f"{name}.safetensors"
        return load_weights(path) if path.exists() else None

    # -- data and progress --------------------------------------------------------------------------------------------

    def require_same_dataset(self, record: dict[str, Any]) -> None:
        """Notes which dataset the run uses; `record` is what `Dataset.record` returns.

        Raises:
            RunError: the run began on another one.
        """
        begun_on = self.remembered("dataset", lambda: record)
        if begun_on != record:
            option = "--resume" if self.settings.resume is not None else "--extend"
            raise RunError(
                f"{option} {self.path}: the run began on {begun_on}, now the data is {record}; "
                "point --data-dir, DATA_DIR or the folder of --dataset to the same images"
            )

    def _remember(self) -> None:
        self._memory["seconds"] = round(self._seconds_before + time.perf_counter() - self._start, 1)
        progress.write(self.path, self._memory)

    # -- logs and figures ---------------------------------------------------------------------------------------------

    def log(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a row to history.csv and the scalars to TensorBoard as `<stage>/<name>`."""
        self.rewind(stage, step - 1)
        self._history.append({"stage": stage, "step": step, **scalars})
        if len(self._history) <= self._memory["history_rows"]:  # rewound: fewer are whole if it is killed now
            self._memory |= {"history_rows": len(self._history) - 1, "history_sha256": None}
            self._remember()
        history.write(self.path / "history.csv", self._history)
        self._events.scalars(stage, step, scalars)
        self._events.flush()
        self._memory |= history.record(self._history)
        self._remember()

    def rewind(self, stage: str, step: int) -> None:
        """Forgets the rows of `stage` after `step`: a resumed stage writes them again."""
        self._history = history.rewound(self._history, stage, step)

    def history(self, stage: str) -> dict[str, list[float]]:
        """Returns the logged columns of one stage, each a list in step order."""
        return history.columns(self._history, stage)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Adds a histogram to TensorBoard."""
        self._events.histogram(tag, values, step)

    def image(self, name: str, pixels: Tensor, step: int) -> None:
        """Writes `figures/<name>.png`, replacing an earlier one, and shows it in TensorBoard at `step`.

        `pixels` is `(1, H, W)` in [0, 1]. Much quicker than `figure`: for a look during training.
        """
        grey = pixels[0].mul(255).round().to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="png")
        replace(self.figures / f"{name}.png", buffer.getvalue())
        self._events.image(name, grey[..., None], step)

    def figure(self, name: str, figure: Figure) -> None:
        """Writes `figures/<name>.png` and shows the figure in TensorBoard."""
        png = png_bytes(figure)
        replace(self.figures / f"{name}.png", png)
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._events.image(f"figures/{name}", pixels)  # add_figure would draw it again

    def finish(self, metrics: Mapping[str, Any], headline: tuple[str, ...]) -> None:
        """Writes metrics.json, which marks the run as complete, and TensorBoard's hparams with the `headline` metrics.

        Raises:
            RunError: a figure is not a finite number.
        """
        self._remember()
        record = {
            **metrics,
            "device": device_name(self.device),
            "precision": resolve_precision(self.settings.precision, self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seconds": self._memory["seconds"],
            "peak_memory_bytes": peak_memory(self.device),
            "git_commit": self._memory["git_commit"],  # at the start: the code may change during the run
        }
        if self.settings.extended_from is not None:
            record["extended_from"] = str(self.settings.extended_from)
        try:
            text = json.dumps(record, indent=1, allow_nan=False)
        except ValueError:
            raise RunError(f"{self.path}: a metric is not a finite number, metrics.json is not written") from None
        self._events.close(dataclasses.asdict(self.settings), {name: metrics[name] for name in headline})
        tracking.finish(self.settings.track)
        replace(self.path / "metrics.json", text.encode())
        self.finished = True


def say(message: str) -> None:
    """Prints progress for the user on standard error."""
    print(message, file=sys.stderr, flush=True)
