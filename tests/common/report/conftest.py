"""What the tests of the report page look at: a results folder with runs of every kind, and its page."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.report.command import Report, main
from common.tables import Table
from tests.common.report.runs import CIFAR10, STACKED, pruning_run, rl_run, vae_run, vae_study


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind: finished ones of the three tasks, one on the stand-in, an interrupted one, two damaged."""
    folder = tmp_path_factory.mktemp("results")
    digits = CIFAR10 | {"name": "digits", "stand_in_for": "cifar10"}
    pruning_run(folder / "pruning" / "on-digits", dataset=digits)
    pruning_run(folder / "pruning" / "sparse98", allocation="global", conv_weights_kept=0.02)
    rl_run(folder / "rl" / "none")
    rl_run(folder / "rl" / "stacked", "stacked", STACKED)
    vae_study(folder / "vae" / "claims")
    vae_run(folder / "vae" / "fc16")
    (folder / "rl" / "stopped").mkdir()
    shutil.copy(folder / "rl" / "none" / "config.yaml", folder / "rl" / "stopped")
    vae_run(folder / "vae" / "cut-off")
    (folder / "vae" / "cut-off" / "metrics.json").write_text('{"elbo": -9')
    vae_run(folder / "vae" / "lacking")
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


def text_of(page: Path) -> str:
    """Returns what a reader sees."""
    return html.unescape(
        re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>|data:[^\"]+", "", page.read_text(), flags=re.S))
    )


@pytest.fixture(scope="session")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    main(Report(results, output=output))
    return output
