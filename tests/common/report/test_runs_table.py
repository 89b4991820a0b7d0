"""Runs as a table: what is written comes back, and a damaged table is named, the rest of the page shown."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from common.report import runs_table
from common.report.command import Report, main
from common.report.folders import find, usable
from common.report.runs_table import Row
from tests.common.report.runs import vae_run


def put(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in runs_table.written(rows).items():
        (folder / name).write_bytes(content)


VALUES: dict[str, Any] = {
    **{"number": 0.1 + 0.2, "big": 10**20, "true": True, "none": None, "text": 'a, "b"\nβ', "empty": ""},
    **{"digits": "12", "word": "NaN", "null": "null", "list": [1, [2.5, "x"]], "no list": [], "record": {}},
    **{"deep": {"a b": {"c": 1e-9, "d": None}, "e": "1"}, "slash": {"a/b": 1}},
}


def test_whatever_the_values_they_come_back(tmp_path: Path) -> None:
    """Values that runs share, values that differ, and values that one run lacks."""
    other = {name: value for name, value in VALUES.items() if name != "list"} | {"number": -1.5, "text": "other"}
    rows = [Row("a", VALUES, VALUES), Row("b/c", other, other), Row("d", other | {"seed": 2}, VALUES)]
    put(tmp_path, rows)
    assert runs_table.read(tmp_path) == rows
    put(tmp_path, rows[:1])
    assert runs_table.read(tmp_path) == rows[:1]


def test_the_table_holds_what_differs_and_every_number(tmp_path: Path) -> None:
    rows = [Row(f"seed{s}", {"seed": s, "arch": "fc"}, {"elbo": -9.5, "of": {"n": "m"}}) for s in range(2)]
    put(tmp_path, rows)
    assert (tmp_path / "runs.csv").read_text() == "name,settings/seed,elbo\nseed0,0,-9.5\nseed1,1,-9.5\n"
    assert (tmp_path / "settings.yaml").read_text() == "settings:\n  arch: fc\nmetrics:\n  of:\n    n: m\n"


def test_a_number_that_is_none_comes_back_as_such(tmp_path: Path) -> None:
    put(tmp_path, [Row("a", {}, {"loss": math.nan}), Row("b", {}, {"loss": 1.0})])
    assert math.isnan(runs_table.read(tmp_path)[0].metrics["loss"])


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("runs.csv", "", "the head must begin with 'name'"),
        ("runs.csv", "arm,elbo\na,1\n", "the head must begin with 'name'"),
        ("runs.csv", "name,elbo,elbo\na,1,2\n", "name every column once"),
        ("runs.csv", b"name\n\xff\n", "runs.csv: 'utf-8'"),
        ("settings.yaml", None, "settings.yaml is missing"),
        ("settings.yaml", "settings: [", "settings.yaml: "),
        ("settings.yaml", "words", "settings.yaml: "),
        ("settings.yaml", "settings: 1\nmetrics: {}", "must hold names and values"),
        ("runs.csv", "name,elbo\na\n", "runs.csv, line 2: 1 cells, the head has 2"),
        ("runs.csv", "name,elbo\na,1\na,2\n", "runs.csv, line 3: 'a' is there twice"),
        ("runs.csv", "name,elbo\n,1\n", "'' is no name for a run"),
        ("runs.csv", "name,elbo\n../../x,1\n", "'../../x' is no name for a run"),
        ("runs.csv", "name,of,of/n\na,1,2\n", "of/n has no place"),
        ("runs.csv", "name,elbo\na,12\nb,3", "cut off in its last line"),
    ],
)
def test_damage_is_told_once_and_the_rest_is_shown(
    tmp_path: Path, file: str, content: str | bytes | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "study", [Row("a", {"arch": "fc"}, {"elbo": 1.0})])
    vae_run(tmp_path / "whole")
    if content is None:
        (tmp_path / "study" / file).unlink()
    else:
        (tmp_path / "study" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    main(Report(tmp_path, output=tmp_path / "page.html"))
    error = capsys.readouterr().err
    assert told in error
    assert error.count(told) == 1
    assert ">whole</a>" in (tmp_path / "page.html").read_text()


@dataclasses.dataclass(frozen=True)
class Elbo:
    """What a section could ask of a run."""

    elbo: float


def test_an_edited_cell_is_a_damaged_run(tmp_path: Path) -> None:
    put(tmp_path, [Row(f"seed{s}", {"arch": "fc", "seed": s}, {"elbo": 1.0}) for s in range(2)])
    table = tmp_path / "runs.csv"
    table.write_text(table.read_text().replace("seed1,1,1.0", "seed1,1,about one"))
    folders = find(tmp_path)
    assert [folder.metrics["elbo"] for folder in folders] == [1.0, "about one"]
    usable(folders, Elbo)
    assert [folder.damaged for folder in folders] == [False, True]


def test_curves_are_those_of_the_run_and_stage(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text(
        "run,stage,step,a,b\nx,eval,1,2.5,\nx,eval,2,3.5,\nx,train,1,,7\ny,eval,1,9,\n"
    )
    assert runs_table.read_curves(tmp_path, "x", "eval") == {"step": [1.0, 2.0], "a": [2.5, 3.5]}
    assert runs_table.read_curves(tmp_path, "z", "eval") == {}
