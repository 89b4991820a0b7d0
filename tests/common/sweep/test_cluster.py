"""A real Ray cluster of two nodes on this machine: one is killed in the middle, and nothing is lost or doubled."""

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import RunError
from common.files import ROOT
from common.sweep.cluster import ray_executor
from common.sweep.jobs import Job, Work

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = pytest.mark.cluster

# Says where it is at work, waits for the file `go`, and goes on when it is resumed, as a run does.
SCRIPT = """
import json, pathlib, sys, time
words = " ".join(sys.argv[1:]).replace("=", " ").split()
words = dict(zip(words[::2], words[1::2]))
run = pathlib.Path(words.get("--resume") or pathlib.Path(words["--results-dir"]) / "toy" / words["--run-name"])
run.mkdir(parents=True, exist_ok=True)
if "--resume" not in words:
    (run / "config.yaml").write_text(json.dumps({"rate": words["--rate"], "seed": words["--seed"]}))
with (run / "started").open("a") as file:
    file.write(("resumed" if "--resume" in words else "new") + "\\n")
while not (pathlib.Path(__file__).parent / "go").exists():
    time.sleep(0.05)
rate = float(json.loads((run / "config.yaml").read_text())["rate"])
if rate == 9:
    sys.exit("error: the rate is too high")
metrics = {"loss": rate, "seconds": 1.0}
(run / "metrics.json").write_text(json.dumps(metrics | {"dataset": {"name": "toys"}}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing; each test adds the nodes it works on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")  # a dead node is found out in seconds
        patch.setenv("RAY_health_check_failure_threshold", "3")
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        yield cluster
        cluster.shutdown()


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    script = tmp_path / "toy" / "run.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return script


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Returns once `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_tasks_of_a_killed_node_run_again_elsewhere(cluster: Any, toy: Path, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    (tmp_path / "toys.yaml").write_text(
        yaml.safe_dump({"script": str(toy), "seeds": 2, "grids": [{"rate": [1, 2, 9]}]})
    )
    typed = [sys.executable, "-m", "common.sweep", str(tmp_path / "toys.yaml"), "--ray", cluster.address]
    process = subprocess.Popen(
        [*typed, "--results-dir", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    runs = tmp_path / "out" / "toy"
    wait_for(lambda: len(list(runs.glob("*/started"))) == 4)  # two on either node, two wait
    doomed = [log.stem for log in runs.glob("*.log") if nodes[0].node_id in log.read_text()]
    assert len(doomed) == 2
    for name in doomed:  # a node's end may kill its scripts before it kills what waits for them
        subprocess.run(["pkill", "-KILL", "-f", f"{toy}.*{name}"], check=True)
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_for(lambda: len(subprocess.run(["pgrep", "-f", str(toy)], capture_output=True).stdout.split()) == 2)
    (tmp_path / "toy" / "go").touch()  # only now can a run end
    out, said = process.communicate(timeout=120)
    cluster.remove_node(nodes[1])

    assert process.returncode == 1, said
    assert out.splitlines()[-1] == str(tmp_path / "out")  # Ray tells of the dead node above it
    assert "2 of 6 runs failed, the others are finished (rate9-seed0, rate9-seed1: error: the rate is too high)" in said
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(row["arm"], row["seed"]) for row in rows] == [(f"rate{r}", str(s)) for r in (1, 2, 9) for s in (0, 1)]
    assert [row["loss"] for row in rows] == ["1.0", "1.0", "2.0", "2.0", "", ""]
    started = {path.parent.name: path.read_text().split() for path in runs.glob("*/started")}
    assert sorted(map(len, started.values())) == [1, 1, 1, 1, 2, 2]
    for name, attempts in started.items():
        where = re.findall(r"on node (\w+)", (runs / f"{name}.log").read_text())
        assert len(where) == len(set(where)) == len(attempts)  # each attempt on a node of its own
    assert not list((tmp_path / "out").glob(".shared-*"))


def test_where_the_folder_is_not_shared_the_run_comes_back(
    cluster: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.add_node(num_cpus=1)
    (tmp_path / "toy" / "go").touch()
    monkeypatch.setattr("common.sweep.cluster.shared_marker", lambda folder: tmp_path / "on another machine")
    work, job = Work(str(toy), "toy", tmp_path / "out"), Job("rate1", {"rate": 1, "seed": 0})
    assert list(ray_executor(cluster.address, cpus=1, gpus=0)(work, [job])) == [(job, 0)]
    assert json.loads((work.folder(job) / "metrics.json").read_text())["loss"] == 1
    assert work.log(job).read_text().startswith("on node ")
    later = Job("rate2", {"rate": 2, "seed": 0, "weights": f"{work.folder(job)}/weights"})
    assert list(ray_executor(cluster.address, cpus=1, gpus=0)(work, [later])) == [(later, 1)]
    assert "rate1/weights: not here; share the results folder" in work.log(later).read_text()
    cluster.remove_node(node)


def test_a_run_that_fits_no_node_and_a_cluster_that_is_not_there(cluster: Any, toy: Path, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    work, job = Work(str(toy), "toy", tmp_path / "out"), Job("rate1", {"rate": 1, "seed": 0})
    with pytest.raises(RunError, match=r"no node of the cluster has 1 CPUs and 2 GPUs for a run"):
        list(ray_executor(cluster.address, cpus=1, gpus=2)(work, [job]))
    cluster.remove_node(node)
    for address in ("localhost:1", "nonsense"):
        with pytest.raises(RunError, match=rf"--ray {address}: no Ray cluster there"):
            list(ray_executor(address, cpus=1, gpus=0)(work, [job]))
