"""The tables of a sweep: arms with means, differences from a baseline, named comparisons, runs that are missing."""

import dataclasses
import json
from pathlib import Path

import pytest

from common.files import write_atomically
from common.sweep.file import Arm, SweepFile
from common.sweep.jobs import Work
from common.sweep.outcomes import Outcome, outcome, shared_numbers, tables

FILE = SweepFile("toy.py", arms={"a": {}, "b": {}}, seeds=3)


def outcomes(**values: list[float]) -> list[Outcome]:
    """Finished runs of arms, one value a seed."""
    return [
        Outcome(Arm(name, {}, {}), seed, "finished", "toys", {"loss": value})
        for name, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


def test_a_baseline_and_named_comparisons_each_have_a_table() -> None:
    file = SweepFile("toy.py", arms={"a": {}, "b": {}}, baseline="a", comparisons={"a less b": ("a", "b")})
    means, from_a, named = tables(outcomes(a=[1.0, 2.0], b=[4.0, 5.0]), ["loss"], file)
    assert means.head == ["arm", "seeds", "loss"]
    assert [row[:2] for row in means.rows] == [["a", "2"], ["b", "2"]]
    assert from_a.caption.startswith("Differences from a, seed by seed")
    assert (from_a.head, from_a.rows) == (["arm", "seeds", "loss"], [["b", "2", "+3.000"]])
    assert (named.head, named.rows) == (["difference", "seeds", "loss"], [["a less b", "2", "−3.000"]])


def test_only_seeds_that_both_arms_have_finished_are_compared() -> None:
    runs = outcomes(a=[1.0, 2.0, 9.0], b=[4.0, 5.0])
    runs.append(Outcome(Arm("b", {}, {}), 2, "not finished"))
    file = SweepFile("toy.py", arms={"a": {}, "b": {}}, comparisons={"b − a": ("b", "a")})
    means, named = tables(runs, ["loss"], file)
    assert [row[1] for row in means.rows] == ["3", "2"]
    assert named.rows == [["b − a", "2", "+3.000"]]


def test_a_column_that_no_run_has_is_told(capsys: object, tmp_path: Path) -> None:
    (means,) = tables(outcomes(a=[1.0]), ["loss", "lost"], FILE)
    assert means.rows == [["a", "1", "1.000", ""]]
    assert "no figure in metrics.json is called lost" in capsys.readouterr().err  # type: ignore[attr-defined]


def test_a_margin_of_no_column_is_told(capsys: object) -> None:
    tables(outcomes(a=[1.0]), ["loss"], dataclasses.replace(FILE, margins={"losss": 0.5}))
    assert "margins: no column is called losss" in capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.parametrize(("dataset", "name"), [(None, ""), ("cifar10", ""), (7, ""), ([1], ""), ({"name": "x"}, "x")])
def test_a_run_need_not_name_its_data(dataset: object, name: str, tmp_path: Path) -> None:
    write_atomically(
        tmp_path / "toy" / "a-seed0" / "metrics.json", json.dumps({"loss": 1, "dataset": dataset}).encode()
    )
    found = outcome(Work("toy/run.py", "toy", tmp_path), Arm("a", {}, {}), 0)
    assert (found.state, found.dataset, found.figures["loss"]) == ("finished", name, 1)


def test_figures_of_the_machine_are_no_results() -> None:
    runs = [Outcome(Arm("a", {}, {}), s, "finished", "toys", {"loss": s, "seconds": s, "n": 1.0}) for s in (0, 1)]
    assert shared_numbers(runs) == ["loss"]
    assert shared_numbers(runs[:1]) == ["loss", "n"]
    assert shared_numbers([]) == []
