"""Arms × seeds of one script: which runs the command makes, in which order, and what it refuses."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import common.sweep.command
from common.errors import UsageError
from common.sweep.command import Sweep, default_folder, main, require_sensible_settings
from common.sweep.file import Arm
from common.sweep.jobs import Executor, Job, Work, run_jobs
from tests.common.sweep.conftest import table


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
