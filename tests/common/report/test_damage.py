"""The report page of damaged runs and folders: what is wrong is told, and the rest is shown."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from common import cli
from common.report.command import Report, main
from common.report.folders import find, usable
from tests.common.report.conftest import edit, text_of


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["results", "--output", "results"], "--output results: a folder"),
        (["results", "--format", "pdf"], "--format"),
    ],
)
def test_bad_input(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(SystemExit) as stop:
        cli.command(main, Report, arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_a_folder_without_runs_is_a_page_without_runs(tmp_path: Path) -> None:
    main(Report(tmp_path))
    assert "No runs here yet" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", ""),
        ("metrics.json", "[]"),
        ("metrics.json", "null"),
        ("metrics.json", '{"dataset": 7, "dense_accuracy": 1}'),
        ("config.yaml", "a: ["),
        ("config.yaml", "words"),
        ("config.yaml", "allocation: [lamp]\nseed: x"),
        ("config.yaml", "icm: {}\narch: {}\nmodels: 3"),
    ],
)
def test_whatever_the_damage_there_is_a_page(
    results: Path, tmp_path: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pruning/sparse98", "rl/none", "vae/fc16"):
        shutil.copytree(results / name, tmp_path / "r" / name, ignore=shutil.ignore_patterns("*.png"))
        (tmp_path / "r" / name / file).write_text(content)
    main(Report(tmp_path / "r"))
    assert "0 of them finished" in (tmp_path / "r" / "report.html").read_text()
    assert capsys.readouterr().err.count(": damaged: ") == 3


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("pruning/sparse98", "compression_ratio", float("nan")),
        ("pruning/reference", "sparse_bytes", 0),
        ("pruning/reference", "dense_bytes", 10**400),
        ("pruning/sparse98", "dataset", ["a", "list"]),
        ("pruning/reference", "dense_accuracy", 1.2),
        ("vae/fc16", "coverage", -0.1),
        ("rl/stacked", "eval_returns", ["a", "b", "c", "d", "e"]),
        ("rl/stacked", "eval_return_interval", ["1", "2"]),
        ("rl/stacked", "curiosity_parameters", "many"),
        ("vae/claims", "models", {}),
        ("vae/fc16", "elbo", float("inf")),
        ("vae/fc16", "seconds", float("nan")),
    ],
)
def test_a_figure_that_cannot_be_is_told_and_the_rest_is_shown(
    results: Path, tmp_path: Path, name: str, figure: str, value: Any
) -> None:
    copied = {"vae/fc16": "vae/fc16", "pruning/on-digits": "pruning/reference"}
    copied |= {"rl/none": "rl/none", "rl/stacked": "rl/stacked"} if name.startswith("rl/") else {}
    for source, place in (copied | ({} if name in copied.values() else {name: name})).items():
        shutil.copytree(results / source, tmp_path / place, ignore=shutil.ignore_patterns("*.png"))
    edit(tmp_path / name / "metrics.json", lambda metrics: metrics.update({figure: value}))
    for form in ("html", "md"):
        main(Report(tmp_path, format=form))  # type: ignore[arg-type]
    text = " ".join(text_of(tmp_path / "report.html").split())
    assert f"Not shown, because damaged (see Every run): {name}." in text
    assert ("dense test accuracy" in text) == (name != "pruning/reference")
    assert ("models: 1 run" in text) == (name != "vae/fc16")
    assert ("runs: 1 run" in text) == name.startswith("rl/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_listed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "vae" / "fc16", tmp_path / "r" / "closed")
    (tmp_path / "r" / "closed").chmod(0)
    main(Report(tmp_path / "r", output=tmp_path / "report.html"))
    (tmp_path / "r" / "closed").chmod(0o755)
    assert "closed" in text_of(tmp_path / "report.html")


def test_metrics_are_checked_before_they_are_used(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Wanted:
        loss: float

    for name, metrics in (("good", {"loss": 1}), ("bad", {"loss": None})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0")
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    folders = find(tmp_path)
    assert [(folder.name, wanted.loss) for folder, wanted in usable(folders, Wanted)] == [("good", 1)]
    assert {folder.name: folder.finished for folder in folders} == {"good": True, "bad": False}
