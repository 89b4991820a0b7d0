"""What the tests run, and what they read of a run's folder."""

import csv
import json
from pathlib import Path
from typing import Any

QUICK = ["--smoke-test", "--env-steps", "500", "--eval-every", "500", "--eval-episodes", "1", "--num-seeds", "1"]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def rows_of(run: Path, stage: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader((run / "history.csv").open()) if row["stage"] == stage]
