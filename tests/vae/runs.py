"""What the tests run, and what they read of a run's folder."""

import json
from pathlib import Path
from typing import Any

from common import cli
from vae.settings import Settings

QUICK = ["--dataset", "digits", "--arch", "fc", "--hidden", "32", "--epochs", "1", "--generated", "100"]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def settings_of(run: Path) -> Settings:
    return cli.parse(Settings, ["--config", str(run / "config.yaml")])
