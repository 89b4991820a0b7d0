"""What the tests of the report look at: a results folder with runs of every kind, and its page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.report.command import Report, main
from common.tables import Table

REFERENCE = Path(__file__).resolve().parents[3] / "results" / "reference"


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind: committed ones of the three tasks, one on the stand-in, an interrupted one, two damaged."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("pruning/sparse98", "rl/none", "rl/stacked", "vae/claims", "vae/fc16"):
        shutil.copytree(REFERENCE / name, folder / name, ignore=shutil.ignore_patterns("runs"))
    digits = folder / "pruning" / "on-digits"
    shutil.copytree(REFERENCE / "pruning", digits, ignore=shutil.ignore_patterns("sparse98", "study*"))
    edit(digits / "metrics.json", lambda metrics: metrics["dataset"].update(name="digits", stand_in_for="cifar10"))
    (folder / "rl" / "stopped").mkdir()
    shutil.copy(REFERENCE / "rl" / "none" / "config.yaml", folder / "rl" / "stopped")
    shutil.copytree(folder / "vae" / "fc16", folder / "vae" / "cut-off")
    (folder / "vae" / "cut-off" / "metrics.json").write_text('{"elbo": -9')
    shutil.copytree(folder / "vae" / "fc16", folder / "vae" / "lacking")
    edit(folder / "vae" / "lacking" / "metrics.json", lambda metrics: metrics.update(elbo="<script>alert(1)</script>"))
    (folder / "pruning" / "on-digits" / "figures" / "layers.png").write_bytes(b"no picture")
    sweep = folder / "sweeps" / "toys"
    sweep.mkdir(parents=True)
    (sweep / "table.csv").touch()
    (sweep / "table.md").write_text(Table(["arm", "loss"], [["a|b", "**+1.0 [0.5, 1.5]**"]], "Means").markdown())
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    main(Report(results, output=output))
    return output
