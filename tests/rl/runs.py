"""What the tests run, and what they read of a run's folder."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.checkpoint import Checkpoint

QUICK = ["--smoke-test", "--env-steps", "500", "--eval-every", "500", "--eval-episodes", "1", "--num-seeds", "1"]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def rows_of(run: Path, stage: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader((run / "history.csv").open()) if row["stage"] == stage]


@contextlib.contextmanager
def stopped_at_the_first_checkpoint() -> Iterator[None]:
    """Trainings in this block end as by Ctrl-C when they have written a checkpoint."""
    save = Checkpoint.save

    def save_and_stop(checkpoint: Checkpoint) -> None:
        save(checkpoint)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        yield
