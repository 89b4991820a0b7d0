"""A sweep that is run again: what it skips, what has changed since, what failed, and how it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.errors import RunError
from common.locks import lock
from common.sweep.command import Sweep, main
from common.sweep.jobs import JobsFailed
from tests.common.sweep.conftest import table


@pytest.mark.slow
def test_finished_runs_are_skipped_and_failed_ones_told(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = sweep_of([{"rate": [1, 9]}], seeds=2)
    with pytest.raises(JobsFailed, match=r"2 of 4 runs failed.*rate9-seed0, rate9-seed1: error: the rate is too high"):
        main(sweep)
    assert [row["state"] for row in table(tmp_path)] == ["finished", "finished", "not finished", "not finished"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("rate1*/metrics.json")}
    with pytest.raises(JobsFailed):
        main(sweep)
    assert len(stamps) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    before = (tmp_path / "out" / "table.csv").read_text()
    with pytest.raises(RunError, match="arm rate1 had another kind there"):  # other settings, other runs
        main(sweep_of([{"rate": [1]}], shared={"kind": "other"}))
    (tmp_path / "out" / "arms.json").unlink()
    with pytest.raises(RunError, match="already a run with kind None, not other"):
        main(sweep_of([{"rate": [1]}], shared={"kind": "other"}))
    assert (tmp_path / "out" / "table.csv").read_text() == before


def test_arms_that_need_a_failed_run_are_skipped(
    sweep_of: Callable[..., Sweep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = {"weights": "{runs}/bad-seed{seed}/weights", "rate": 2}
    further = {"weights": "{runs}/second-seed{seed}/weights", "rate": 3}
    arms = {"bad": {"rate": 9}, "second": needs, "third": further, "good": {"rate": 1}}
    with pytest.raises(JobsFailed, match=r"1 of 4 runs failed, 2 skipped \(second-seed0 needs bad-seed0, third-seed0"):
        main(sweep_of(arms=arms))
    assert "skipped: second-seed0: it needs bad-seed0, which is not finished" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out" / "toy").glob("*.log")} == {"bad-seed0.log", "good-seed0.log"}
    assert {row["arm"] for row in table(tmp_path) if row["state"] == "finished"} == {"good"}


def test_what_another_process_holds_has_not_failed(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = sweep_of([{"rate": [1, 2]}])
    run, results = tmp_path / "out" / "toy" / "rate1-seed0", tmp_path / "out"
    run.mkdir(parents=True)
    for folder, told in ((run, r"1 of 2 runs: another process is at work on it \(rate1"), (results, "another sweep")):
        ready, done = os.pipe()
        if not (holder := os.fork()):
            held = lock(folder)
            os.write(done, b"x" if held else b"-")
            time.sleep(600)
            os._exit(1)
        assert os.read(ready, 1) == b"x"
        with pytest.raises(RunError, match=told):
            main(sweep)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert [row["state"] for row in table(tmp_path)] == ["not finished", "finished"]
    main(sweep)
    assert [row["state"] for row in table(tmp_path)] == ["finished", "finished"]


def test_a_setting_that_is_taken_back_is_noticed(sweep_of: Callable[..., Sweep]) -> None:
    main(sweep_of([{"rate": [1]}], shared={"kind": "other"}))
    with pytest.raises(RunError, match="arm rate1 had another kind there"):
        main(sweep_of([{"rate": [1]}]))


@pytest.mark.slow
def test_an_arm_without_runs_may_change(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    main(sweep_of([{"rate": [1]}], seeds=1))
    shutil.rmtree(tmp_path / "out" / "toy" / "rate1-seed0")
    main(sweep_of([{"rate": [1]}], shared={"kind": "other"}))
    script = str(tmp_path / "toy" / "run.py")
    kept = {"rate1": {"script": script, "kind": "other", "rate": 1}}
    assert json.loads((tmp_path / "out" / "arms.json").read_text()) == kept


def test_runs_of_another_script_or_of_no_sweep_are_not_taken_for_an_arms(
    sweep_of: Callable[..., Sweep], tmp_path: Path
) -> None:
    """Two scripts of a task write to one folder."""
    arms = tmp_path / "out" / "arms.json"
    main(sweep_of([{"rate": [1]}]))
    known = json.loads(arms.read_text())
    arms.write_text(json.dumps({"rate1": {**known["rate1"], "script": "toy/other.py"}}))
    with pytest.raises(RunError, match="arm rate1 had another script there"):
        main(sweep_of([{"rate": [1]}]))
    arms.write_text(json.dumps({}))
    with pytest.raises(RunError, match="no sweep here made the runs of arm rate1"):
        main(sweep_of([{"rate": [1]}]))
    arms.write_text(json.dumps({"rate1": {"rate": 1}}))  # of a version that did not keep the script
    main(sweep_of([{"rate": [1]}]))
    assert json.loads(arms.read_text()) == known


def test_a_finished_sweep_does_without_the_files_it_began_from(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = sweep_of([{"rate": [1]}])
    change = {"script": "pruning/run.py", "grids": [{"dense_weights": "gone/{seed}"}]}
    sweep.file.write_text(yaml.safe_dump(yaml.safe_load(sweep.file.read_text()) | change | {"shared": {}, "seeds": 1}))
    run = tmp_path / "out" / "pruning" / "all-seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"dense_weights": "gone/0", "seed": 0}))
    (run / "metrics.json").write_text(json.dumps({"dataset": {"name": "toys"}, "loss": 1.0}))
    main(sweep)
    assert [row["loss"] for row in table(tmp_path)] == ["1.0"]


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_nothing_half_written(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    """The command as typed, stopped while two runs are under way: they go on where they were when it is typed again."""
    sweep = sweep_of([{"rate": [1, 2, 3]}])
    (tmp_path / "toy" / "wait").touch()
    typed = [sys.executable, "-m", "common.sweep", str(sweep.file), "--results-dir", str(tmp_path / "out")]
    process = subprocess.Popen([*typed, "--processes", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(list((tmp_path / "out").rglob("config.yaml"))) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted; the same command does what is missing" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("metrics.json"))
    (tmp_path / "toy" / "wait").unlink()
    main(sweep)
    assert [row["state"] for row in table(tmp_path)] == ["finished"] * 3


@pytest.mark.slow
def test_a_run_does_not_outlive_its_sweep(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    """`kill -9` of the sweep: a run that went on unseen would be in the way of the next attempt."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    sweep = sweep_of([{"rate": [1]}])
    (tmp_path / "toy" / "wait").touch()
    typed = [sys.executable, "-m", "common.sweep", str(sweep.file), "--results-dir", str(tmp_path / "out")]
    process = subprocess.Popen(typed, stderr=subprocess.DEVNULL)
    wait_for(lambda: bool(list((tmp_path / "out").rglob("config.yaml"))))
    process.kill()
    process.wait()
    time.sleep(0.5)
    (tmp_path / "toy" / "wait").unlink()  # it would finish now
    time.sleep(1)
    assert not list((tmp_path / "out").rglob("metrics.json"))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Returns once `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
