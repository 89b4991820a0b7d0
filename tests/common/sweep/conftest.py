"""A toy script that keeps the run contract, sweep files of it, and the table that its runs are in."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.sweep.command import Sweep

# A script that keeps the run contract in a line each; `--rate 9` fails, and a run waits while a file `wait` is there.
SCRIPT = """
import argparse, json, pathlib, sys, time
parser = argparse.ArgumentParser()
for name in ("resume", "results-dir", "run-name", "data-dir", "kind", "weights"):
    parser.add_argument("--" + name)
for name in ("rate", "seed", "threads"):
    parser.add_argument("--" + name, type=float)
parser.add_argument("--smoke-test", action="store_true")
words = parser.parse_args()
here = pathlib.Path(__file__).parent
run = pathlib.Path(words.resume) if words.resume else pathlib.Path(words.results_dir) / "toy" / words.run_name
if words.resume:
    settings = json.loads((run / "config.yaml").read_text())
else:
    run.mkdir(parents=True)
    settings = vars(words)
    (run / "config.yaml").write_text(json.dumps(settings))
if settings["weights"] and not pathlib.Path(settings["weights"]).exists():
    sys.exit("error: no such weights")
while (here / "wait").exists():
    time.sleep(0.05)
if settings["rate"] == 9:
    sys.exit("error: the rate is too high")
(run / "weights").touch()
metrics = {"loss": settings["rate"] + settings["seed"], "inner": {"score": 2.0}, "best": True}
metrics |= {"classes": 10, "seconds": 1.0}
(run / "metrics.json").write_text(json.dumps(metrics | {"dataset": {"name": settings["kind"] or "toys"}}))
"""


@pytest.fixture
def sweep_of(tmp_path: Path) -> Callable[..., Sweep]:
    """Writes a toy script and a sweep file; returns the command's options."""
    (tmp_path / "toy").mkdir()
    script = tmp_path / "toy" / "run.py"
    script.write_text(SCRIPT)

    def make(grids: Any = None, options: dict[str, Any] | None = None, **more: Any) -> Sweep:
        path = tmp_path / "toys.yaml"
        values = {"script": str(script), **({"grids": grids} if grids else {}), **more}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return Sweep(path, **{"results_dir": tmp_path / "out", "processes": 2, **(options or {})})

    return make


def table(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
