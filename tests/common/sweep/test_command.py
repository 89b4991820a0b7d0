"""Arms × seeds of one script: which runs the command makes, what it skips and refuses, and how it is stopped."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import common.sweep.command
from common.errors import RunError, UsageError
from common.locks import lock
from common.sweep.command import Sweep, default_folder, main, require_sensible_settings
from common.sweep.file import Arm
from common.sweep.jobs import Executor, Job, JobsFailed, Work, run_jobs


def table(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "out" / "table.csv").open()))


def test_every_combination_with_every_seed_and_one_table(
    sweep_of: Callable[..., Sweep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(sweep_of([{"rate": [1, 2], "kind": "toys"}], seeds=[3, 5], columns=["loss", "inner/score"], baseline="rate1"))
    rows = {(row["arm"], row["seed"]): row for row in table(tmp_path)}
    assert rows.keys() == {(arm, seed) for arm in ("rate1", "rate2") for seed in ("3", "5")}
    assert rows["rate2", "5"]["loss"] == "7.0"
    assert rows["rate2", "5"]["inner/score"] == "2.0"
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| rate1 | 2 | 5 [−8, 18] | 2.000 |" in text
    assert text.splitlines()[-1] == "| rate2 | 2 | +1.000 | +0 |"  # the seeds' own loss is gone in the difference
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out'}\n"
    assert "rate2" in captured.err


def test_without_columns_the_results_that_differ_are_tabulated(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    main(sweep_of([{"rate": [1]}]))
    assert list(table(tmp_path)[0]) == ["arm", "seed", "state", "data", "loss", "classes", "rate"]  # one run: all
    main(sweep_of([{"rate": [1, 2]}]))
    assert list(table(tmp_path)[0]) == ["arm", "seed", "state", "data", "loss", "rate"]


def test_named_arms_and_their_comparisons(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    arms = {"low": {"rate": 1}, "high": {"rate": 3}}
    main(sweep_of(arms=arms, seeds=1, columns=["loss"], comparisons={"high − low": ["high", "low"]}))
    assert [(row["arm"], row["loss"], row["rate"]) for row in table(tmp_path)] == [
        ("low", "1.0", "1"),
        ("high", "3.0", "3"),
    ]
    assert (tmp_path / "out" / "table.md").read_text().splitlines()[-1] == "| high − low | 1 | +2.000 |"


def test_a_later_grid_uses_what_an_earlier_one_made(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    later = {"rate": [2, 3], "weights": "{runs}/rate1-seed{seed}/weights"}
    main(sweep_of([{"rate": [1]}, later], seeds=2))
    assert {row["state"] for row in table(tmp_path)} == {"finished"}


@pytest.mark.slow
def test_a_grid_waits_only_for_the_runs_whose_files_it_takes(
    sweep_of: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[list[str]] = []

    def watched(work: Work, jobs: Sequence[Job], executor: Executor) -> dict[str, Path]:
        together.append([job.name for job in jobs])
        return run_jobs(work, jobs, executor)

    monkeypatch.setattr(common.sweep.command, "run_jobs", watched)
    weights = "{runs}/rate%s-seed{seed}/weights"
    after_1, also_after_1, after_3 = ({"rate": [r], "weights": weights % of} for r, of in ((3, 1), (4, 1), (5, 3)))
    anywhere = {"rate": [6], "weights": "{runs}"}
    main(sweep_of([{"rate": [1]}, after_1, also_after_1, after_3, {"rate": [2]}, anywhere], seeds=2))
    assert together == [
        ["rate1-seed0", "rate2-seed0", "rate1-seed1", "rate2-seed1"],
        ["rate3-seed0", "rate4-seed0", "rate3-seed1", "rate4-seed1"],
        ["rate5-seed0", "rate5-seed1"],
        ["rate6-seed0", "rate6-seed1"],
    ]


@pytest.mark.parametrize("file", ["rate9-seed{seed}/weights", "rate1-seed7/weights", "rate3-seed{seed}/weights"])
def test_a_file_of_a_run_that_nothing_before_makes_is_refused(
    sweep_of: Callable[..., Sweep], tmp_path: Path, file: str
) -> None:
    later = {"rate": [3], "weights": f"{{runs}}/{file}"}
    with pytest.raises(UsageError, match=r"weights: no arm or grid before it has a run rate\d-seed\d"):
        main(sweep_of([{"rate": [1]}, later, {"rate": [9]}], seeds=2))
    assert not (tmp_path / "out").exists()


def test_a_file_that_another_sweep_left_there_may_be_taken(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    (tmp_path / "out" / "toy" / "rate9-seed0").mkdir(parents=True)
    (tmp_path / "out" / "toy" / "rate9-seed0" / "weights").touch()
    sweep = sweep_of([{"rate": [1], "weights": "{runs}/rate9-seed{seed}/weights"}])
    main(sweep)
    assert {row["state"] for row in table(tmp_path)} == {"finished"}
    shutil.rmtree(tmp_path / "out" / "toy" / "rate9-seed0")
    main(sweep)  # nothing is left to do: nobody misses it


def test_the_smoke_test_keeps_out_of_the_folder_of_the_real_sweep() -> None:
    folders = [default_folder(Sweep(Path("configs/study.yaml"), smoke_test=smoke)) for smoke in (False, True)]
    assert folders == [Path("results/sweeps/study"), Path("results/sweeps/study-smoke-test")]


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


def test_a_script_of_the_project_may_be_named_by_its_whole_path(tmp_path: Path) -> None:
    script = str(Path("vae/train.py").resolve())
    for of in (script, "vae/train.py"):
        with pytest.raises(UsageError, match=r"arm a: .*latnt"):
            require_sensible_settings(of, [Arm("a", {}, {"latnt": 3})], [0], tmp_path)


@pytest.mark.slow
def test_runs_on_different_data_are_called_that(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    main(sweep_of([{"kind": ["real", "digits"], "rate": 1}]))
    text = (tmp_path / "out" / "table.md").read_text()
    assert "on digits, real. These runs do not compare: they used different data." in text
    (tmp_path / "out" / "toy" / "real-seed0" / "metrics.json").write_text("{")
    main(sweep_of([{"kind": ["real", "digits"], "rate": 1}]))  # done again
    assert [row["state"] for row in table(tmp_path)] == ["finished", "finished"]


def test_the_shared_settings_give_way_to_the_smoke_test(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    main(sweep_of([{"rate": [1]}], {"smoke_test": True, "data_dir": tmp_path}, shared={"kind": "real"}))
    settings = yaml.safe_load((tmp_path / "out" / "toy" / "rate1-seed0" / "config.yaml").read_text())
    assert settings["smoke_test"] is True
    assert settings["kind"] is None
    assert settings["data_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"script": "nothing.py"}, "script nothing.py: no such script"),
        ({"grids": []}, "no arms: give them by name"),
        ({"grids": [{"rate": []}]}, "empty list of values for rate"),
        ({"grids": [{"rate": [1, 1]}]}, "two arms are called rate1"),
        ({"grids": [{"rate": 1}, {"rate": 2}]}, "two arms are called all"),
        ({"grids": [{"seed": [1, 2]}]}, "seed is not for an arm to set"),
        ({"shared": {"run_name": "x"}}, "run_name is not for an arm to set"),
        ({"seeds": [1, 1]}, "the same seed twice"),
        ({"script": "README.md"}, "script README.md: no such script"),
        ({"seeds": 0}, "seeds.*greater than or equal to 1"),
        ({"baseline": "rate7"}, "baseline rate7: no such arm; there are rate1"),
        ({"colums": ["loss"]}, "colums: unexpected keyword"),
        ({"script": "pruning/train.py"}, "script pruning/train.py: not a script of runs"),
        ({"arms": {"rate1": {"rate": 2}}}, "two arms are called rate1"),
        ({"arms": {"a/b": {"rate": 2}}}, "arms: 'a/b' cannot name a folder"),
        ({"arms": {"a": {"seed": 2}}}, "seed is not for an arm to set"),
        ({"comparisons": {"gain": ["rate1", "rate7"]}}, "comparisons: gain: no arm is called rate7; there are rate1"),
        ({"comparisons": {"gain": ["rate1"]}}, r"comparisons\.gain"),
        ({"models": {}, "claims": {}}, "claims is now called comparisons, models is now called arms"),
        ({"script": "pruning/run.py"}, "arm rate1: unknown setting 'rate'"),
        ({"script": "vae/study.py", "grids": [{"epoch": 1}]}, "arm all: unknown setting 'epoch'"),
        ({"script": "rl/train_sac_icm.py", "grids": [{"discount": [0.9, 2.0]}]}, "arm discount2.0: --discount 2.0"),
        ({"script": "pruning/run.py", "grids": [{"sparsity": [0.5]}]}, "yaml: arm sparsity0.5: --sparsity 0.5 with"),
        (
            {"script": "pruning/run.py", "grids": [{"dense_weights": "nowhere/{seed}"}]},
            "arm all: --dense-weights nowhere/0: no such file",
        ),
    ],
)
def test_sweep_files_that_make_no_sense(
    sweep_of: Callable[..., Sweep], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    sweep = sweep_of([{"rate": [1]}])
    sweep.file.write_text(yaml.safe_dump(yaml.safe_load(sweep.file.read_text()) | change))
    with pytest.raises(UsageError, match=told):
        main(sweep)
    assert not (tmp_path / "out").exists()


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


def test_files_that_cannot_be_read_and_options_that_do_not_fit(sweep_of: Callable[..., Sweep], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        main(Sweep(tmp_path / "none.yaml"))
    for text, told in (("a: [", "cannot be read as YAML"), ("just words", "not a sweep"), ("", "not a sweep file")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UsageError, match=told):
            main(Sweep(tmp_path / "bad.yaml"))
    with pytest.raises(UsageError, match="--gpus 1 without --ray"):
        main(sweep_of([{"rate": [1]}], {"gpus": 1.0}))
    with pytest.raises(UsageError, match="--data-dir no/such: no such folder"):
        main(sweep_of([{"rate": [1]}], {"data_dir": Path("no/such")}))


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
