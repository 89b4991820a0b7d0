"""The compact form of runs: the page shows it as it shows the run folders, figures and curves too."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import cli
from common.report.command import Report
from common.report.command import main as report
from common.report.compact import Compact, main, short_names
from common.report.folders import Folder, find, run_at
from rl.records import read
from tests.common.report.runs import STACKED, pruning_run, rl_run, vae_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all three tasks, each task's in a folder."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        pruning_run(folder / "pruning" / f"dense-{seed}", (), allocation="uniform", conv_weights_kept=1.0, seed=seed)
        pruning_run(folder / "pruning" / f"lamp-{seed}", (), allocation="lamp", conv_weights_kept=0.05, seed=seed)
    rl_run(folder / "rl" / "none")
    rl_run(folder / "rl" / "stacked", "stacked", STACKED)
    vae_run(folder / "vae" / "fc16")
    vae_run(folder / "vae" / "beta", beta=4.0)
    return folder


@pytest.fixture(scope="module")
def compact(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compact")
    for task in ("pruning", "rl", "vae"):
        main(Compact(runs / task, folder / task))
    return folder


@pytest.mark.slow
def test_the_page_is_the_same(runs: Path, compact: Path, tmp_path: Path) -> None:
    pages = []
    for name, folder in (("runs", runs), ("compact", compact)):
        report(Report(folder, format="md", output=tmp_path / name / "page.md"))
        pages.append((tmp_path / name / "page.md").read_text())
    assert pages[0] == pages[1]
    assert "stacked − none" in pages[0]
    figures = [sorted((tmp_path / name / "page_figures").iterdir()) for name in ("runs", "compact")]
    assert [path.name for path in figures[0]] == [path.name for path in figures[1]]
    for one, other in zip(*figures, strict=True):
        pixels = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (one, other)]
        assert pixels[0].shape == pixels[1].shape
        assert np.abs(pixels[0] - pixels[1]).max() <= 8  # 256 colours in place of all


def test_a_study_is_a_few_files(compact: Path) -> None:
    names = sorted(str(path.relative_to(compact)) for path in compact.rglob("*") if path.is_file())
    assert names == [
        *("pruning/runs.csv", "pruning/settings.yaml", "rl/curves.csv", "rl/none.png", "rl/runs.csv"),
        *("rl/settings.yaml", "rl/stacked.png", "vae/beta.png", "vae/fc16.png", "vae/runs.csv", "vae/settings.yaml"),
    ]
    head, *lines = csv.reader(io.StringIO((compact / "pruning" / "runs.csv").read_text()))
    assert {"name", "settings/allocation", "settings/seed", "finetuned_accuracy"} <= set(head)
    assert "settings/epochs" not in head
    assert [line[0] for line in lines] == ["dense-0", "dense-1", "lamp-0", "lamp-1"]
    assert "layers" not in "".join(head)


def test_runs_are_found_by_their_path_in_either_form(runs: Path, compact: Path) -> None:
    whole, row = (read(run_at(folder / "rl" / "stacked")) for folder in (runs, compact))
    assert (whole.name, whole.steps, whole.curves) == (row.name, row.steps, row.curves)
    assert whole.metrics == row.metrics
    assert whole.settings == row.settings
    assert run_at(compact / "rl" / "nothing").state == "interrupted"


def test_compacted_again_it_is_the_same(compact: Path, tmp_path: Path) -> None:
    main(Compact(compact / "rl", tmp_path / "again"))
    for name in ("runs.csv", "settings.yaml", "curves.csv"):
        assert (tmp_path / "again" / name).read_text() == (compact / "rl" / name).read_text()


def test_a_damaged_sheet_is_a_figure_that_cannot_be_read(compact: Path, tmp_path: Path) -> None:
    main(Compact(compact / "vae", tmp_path / "vae"))
    (tmp_path / "vae" / "fc16.png").write_bytes(b"no picture")
    report(Report(tmp_path, output=tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert text.count("the figure cannot be read") == 1
    assert text.count("<img") == 2


def test_unfinished_runs_are_left_out_and_tables_of_a_sweep_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        pruning_run(tmp_path / "sweep" / "pruning" / name, ())
    (tmp_path / "sweep" / "pruning" / "b" / "metrics.json").unlink()
    (tmp_path / "sweep" / "table.md").write_text("| arm |")
    main(Compact(tmp_path / "sweep", tmp_path / "out"))
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out'}\n"
    assert "warning: pruning/b is left out: interrupted" in captured.err
    assert [folder.name for folder in find(tmp_path / "out")] == ["a"]
    assert (tmp_path / "out" / "table.md").exists()


def test_names_without_the_folders_that_all_share() -> None:
    def names(*given: str) -> list[str]:
        return short_names([Folder(Path(name), name, {}, {}, "finished") for name in given])

    assert names("pruning/a", "pruning/b") == ["a", "b"]
    assert names("a/b", "a/c/d") == ["b", "c/d"]
    assert names("a", "b/c") == ["a", "b/c"]
    assert names("x/y/a") == ["a"]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["nowhere", "out"], 2, "nowhere: no such folder"),
        (["empty", "out"], 1, "empty: no finished run there"),
        (["run", "out"], 2, "run: a run itself"),
        (["runs", "full"], 2, "full: not an empty folder"),
    ],
)
def test_bad_input(
    arguments: list[str],
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    pruning_run(tmp_path / "run")
    pruning_run(tmp_path / "runs" / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(SystemExit) as stop:
        cli.command(main, Compact, arguments)
    assert stop.value.code == status
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
