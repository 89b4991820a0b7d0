"""Accuracy against what is saved: the costs of a run by hand, runs of before, and the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.report.command import Report, main
from common.report.compact import Compact
from common.report.compact import main as compact
from common.report.document import Picture
from common.report.folders import find, usable
from pruning.records import Metrics, Run
from pruning.savings import Cost, accuracy_against_savings, costs, measured_text
from tests.common.report.runs import CIFAR10, pruning_run

LATENCY = {
    "batch_1": {"dense": 0.010, "pruned": 0.011, "pruned_csr": 0.008},
    "batch_64": {"dense": 0.2, "pruned": 0.21, "pruned_csr": 1.0},
}


def filter_run(folder: Path, smaller: bool = True) -> Path:
    """A run as of today: of filters with `smaller`, else of weights."""
    run = pruning_run(folder, figures=(), **({"granularity": "filter", "allocation": "uniform"} if smaller else {}))
    latency = {batch: times | ({"smaller": times["dense"] / 2} if smaller else {}) for batch, times in LATENCY.items()}
    spread = {batch: {name: [0.9 * t, 1.2 * t] for name, t in times.items()} for batch, times in latency.items()}
    added: dict[str, Any] = {"latency": latency, "latency_quartiles": spread}
    added |= {"filter_sparsity": 0.4, "filters": 2752, "filters_left": 1651} if smaller else {}
    metrics = json.loads((run / "metrics.json").read_text()) | added
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


def metrics_of(run: Path) -> Metrics:
    ((_, metrics),) = usable(find(run), Metrics)
    return metrics


def test_costs_by_hand(tmp_path: Path) -> None:
    filters = costs(metrics_of(filter_run(tmp_path / "filters")))
    assert filters["multiply_adds"] == Cost(*[1 / 3.19] * 3)
    assert filters["bytes"].value == 4_350_000 / 36_951_520
    for panel in ("one", "batch"):
        of = filters[panel]
        assert (of.value, of.low, of.high) == pytest.approx((0.5, 0.45, 0.6))
    weights = costs(metrics_of(filter_run(tmp_path / "weights", smaller=False)))
    assert weights["one"].value == pytest.approx(0.8)  # the faster of the two kernels
    assert weights["batch"].value == pytest.approx(1.05)


def test_runs_of_before_have_no_spread_or_no_time(tmp_path: Path) -> None:
    bare = metrics_of(pruning_run(tmp_path / "bare", figures=()))
    assert list(costs(bare)) == ["multiply_adds", "bytes"]
    assert measured_text(bare) == ""
    before = filter_run(tmp_path / "before", smaller=False)
    metrics = json.loads((before / "metrics.json").read_text())
    del metrics["latency_quartiles"]
    (before / "metrics.json").write_text(json.dumps(metrics))
    of = costs(metrics_of(before))["batch"]
    assert of.low == of.value == of.high
    assert measured_text(metrics_of(before)) == "0.95×, batch of 64"


def test_a_figure_for_each_dataset_with_two_runs(tmp_path: Path) -> None:
    runs = [filter_run(tmp_path / "a"), filter_run(tmp_path / "b", smaller=False)]
    alone = pruning_run(tmp_path / "alone", figures=(), dataset=CIFAR10 | {"name": "digits", "stand_in_for": "cifar10"})
    of = [Run(folder, metrics) for run in [*runs, alone] for folder, metrics in usable(find(run), Metrics)]
    blocks = accuracy_against_savings(of)
    (picture,) = (block for block in blocks if isinstance(block, Picture))
    assert [len(axes.containers) for axes in picture.source.axes] == [2, 2, 2, 2]  # type: ignore[union-attr]
    assert accuracy_against_savings(of[:1]) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_the_page_tells_filters_from_weights(tmp_path: Path, compacted: bool) -> None:
    filter_run(tmp_path / "runs" / "filters")
    filter_run(tmp_path / "runs" / "weights", smaller=False)
    if compacted:
        compact(Compact(tmp_path / "runs", tmp_path / "compact"))
    main(Report(tmp_path / ("compact" if compacted else "runs"), format="md", output=tmp_path / "page.md"))
    text = (tmp_path / "page.md").read_text()
    assert "Accuracy against what is saved" in text
    (row,) = (line for line in text.splitlines() if "uniform, filters by l2" in line)
    assert "| 40.0 % of filters |" in row
    assert row.endswith("| 2.00×, batch of 64 |")
    assert "| 0.95×, batch of 64 |" in text
