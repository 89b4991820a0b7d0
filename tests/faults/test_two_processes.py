"""Two processes on one run or one sweep folder, and 64 runs that start in one results folder at the same moment."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from common import cli
from common.experiment import Run
from common.locks import lock
from tests.faults.test_kills import sweep, sweep_file
from tests.faults.work import SCRIPTS, ended, errors, folder_of, fork, script, trials

pytestmark = pytest.mark.faults


def wait_for_file(folder: Path, pattern: str) -> Path:
    deadline = time.monotonic() + 300
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_second_process_on_a_run(task: str, tmp_path: Path) -> None:
    log = tmp_path / "second.log"
    words = [*SCRIPTS[task], "--results-dir", str(tmp_path), "--run-name", "run"]
    first = script(task, words, tmp_path / "first.log")
    wait_for_file(tmp_path, "*/run/config.yaml")
    os.kill(first, signal.SIGSTOP)
    for _ in range(trials(5)):
        assert ended(script(task, ["--resume", str(tmp_path / folder_of(task) / "run")], log)) == 1
    run = tmp_path / folder_of(task) / "run"
    assert set(errors(log)) == {
        f"error: --resume {run}: another process is at work on this run; wait for it or stop it"
    }
    os.kill(first, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    assert ended(first) == -signal.SIGKILL


def test_a_second_sweep_and_a_run_that_another_process_holds(tmp_path: Path) -> None:
    file, results = sweep_file(tmp_path), tmp_path / "out"
    results.mkdir()
    held = lock(results)
    assert held is not None
    assert ended(sweep(file, results, tmp_path / "second.log")) == 1
    assert errors(tmp_path / "second.log") == [
        f"error: {results}: another sweep is at work in this folder; wait for it, stop it, or choose another"
    ]
    held.close()
    run = results / "rl" / "plain-seed0"
    run.mkdir(parents=True)
    held = lock(run)
    assert ended(sweep(file, results, tmp_path / "held.log")) == 1
    (line,) = errors(tmp_path / "held.log")
    assert line == ("error: 1 of 2 runs: another process is at work on it (plain-seed0), the others are finished")
    assert held is not None
    held.close()
    assert ended(sweep(file, results, tmp_path / "again.log")) == 0, (tmp_path / "again.log").read_text()


def test_64_runs_that_start_in_one_folder(tmp_path: Path) -> None:
    def start() -> None:
        settings = cli.RunSettings(results_dir=tmp_path / "results")
        run = Run(settings, "test", "same", __import__("torch").device("cpu"))
        run.log("train", 1, {"loss": float(os.getpid())})

    processes = [fork(start, tmp_path / f"{k}.log") for k in range(64)]
    assert [ended(process) for process in processes] == [0] * 64
    runs = list((tmp_path / "results" / "test").iterdir())
    assert len(runs) == 64
    losses = {(run / "history.csv").read_text().splitlines()[1] for run in runs}
    assert len(losses) == 64
    assert all(yaml.safe_load((run / "config.yaml").read_text())["seed"] == 0 for run in runs)
