"""Accuracy against what pruning saves: measured time, multiply-adds and bytes, of every run of the report page."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from common import data
from common.plotting import COLOURS, MARKERS, figure
from common.report.document import Block, Heading, Picture, link
from pruning.records import Metrics, Run

# The networks that a user of the pruned network would run. Masks on dense kernels save no time, so the faster counts.
OFFERED = ("smaller", "pruned", "pruned_csr")
PANELS = {
    "one": "time of one image, relative to dense",
    "batch": "time of a batch, relative to dense",
    "multiply_adds": "multiply-adds, relative to dense",
    "bytes": "file (float16), relative to the dense file (float32)",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is left of a cost of the dense network, as a fraction, with the quartiles of a measurement."""

    value: float
    low: float
    high: float


def measured(metrics: Metrics, batch: str) -> Cost | None:
    """Returns the time of `batch` relative to the dense network's; None where it was not measured.

    It is the smaller network's where filters were pruned, else the faster of dense and of sparse kernels.
    """
    times = metrics.latency.get(batch, {})
    offered = {name: times[name] for name in OFFERED if name in times}
    if not offered or not times.get("dense", 0) > 0:
        return None
    name = "smaller" if "smaller" in offered else min(offered, key=lambda of: offered[of])
    low, high = metrics.latency_quartiles.get(batch, {}).get(name, [times[name]] * 2)
    return Cost(*(seconds / times["dense"] for seconds in (times[name], low, high)))


def largest_batch(metrics: Metrics) -> str | None:
    """Returns the name of the larger batch that was timed, `batch_128` say."""
    sizes = [name for name in metrics.latency if name.removeprefix("batch_").isdigit()]
    return max(sizes, key=lambda name: int(name.removeprefix("batch_")), default=None)


def measured_text(metrics: Metrics) -> str:
    """Returns how many times faster the pruned network was, and at which batch; nothing where it was not measured."""
    batch = largest_batch(metrics)
    cost = measured(metrics, batch) if batch else None
    return f"{metrics.saved(1 / cost.value)}, batch of {str(batch).removeprefix('batch_')}" if cost else ""


def costs(metrics: Metrics) -> dict[str, Cost]:
    """Returns the panels that a run has a place in, with what is left of each cost."""
    macs, size = 1 / metrics.theoretical_speedup, metrics.sparse_bytes / metrics.dense_bytes
    timed = {"one": measured(metrics, "batch_1"), "batch": measured(metrics, largest_batch(metrics) or "")}
    return {panel: cost for panel, cost in timed.items() if cost} | {
        "multiply_adds": Cost(macs, macs, macs),
        "bytes": Cost(size, size, size),
    }


def accuracy_against_savings(runs: Sequence[Run]) -> list[Block]:
    """Returns a figure for each dataset with two runs or more: accuracy against time, multiply-adds and bytes."""
    by_data: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_data[data.caption(run.metrics.dataset)].append(run)
    drawn = {caption: of for caption, of in by_data.items() if len(of) > 1}
    blocks: list[Block] = [Heading("Accuracy against what is saved", link("savings", ""))] if drawn else []
    text = "Test accuracy after fine-tuning of every run, against what is left of the time (median; bars: quartiles), "
    text += "the multiply-adds and the bytes of its dense network. A time is that of the smaller network where whole "
    text += "filters were pruned, else the faster of dense and sparse kernels. The runs differ in their training too."
    return blocks + [Picture(text, savings(of, caption)) for caption, of in drawn.items()]


def savings(runs: Sequence[Run], caption: str) -> Figure:
    """Returns the figure: a panel for each cost; colours say what is pruned, markers which rule chose how much."""
    sheet, panels = figure("Accuracy against what is saved", caption, rows=2, columns=2, size=(10, 7))
    allocations = dict.fromkeys(run.metrics.allocation for run in runs)
    markers = dict(zip(allocations, itertools.cycle(MARKERS), strict=False))
    kinds = dict.fromkeys(_kind(run) for run in runs)
    colours = dict(zip(kinds, itertools.cycle(COLOURS), strict=False))
    for axes, (panel, label) in zip(panels, PANELS.items(), strict=True):
        for run in runs:
            cost = costs(run.metrics).get(panel)
            if cost is not None:
                bars = [[cost.value - cost.low], [cost.high - cost.value]]
                look: Any = {"color": colours[_kind(run)], "marker": markers[run.metrics.allocation], "alpha": 0.7}
                accuracy = 100 * run.metrics.finetuned_accuracy
                axes.errorbar([cost.value], [accuracy], xerr=bars if cost.low < cost.high else None, ls="", **look)
        axes.axvline(1.0, color="0.4", linewidth=0.8)
        axes.set(xlabel=label, ylabel="test accuracy [%]", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    shown = [Line2D([], [], ls="", marker="o", color=colour, label=kind) for kind, colour in colours.items()]
    shown += [Line2D([], [], ls="", marker=marker, color="0.3", label=name) for name, marker in markers.items()]
    panels[0].legend(handles=shown, loc="best")
    return sheet


def _kind(run: Run) -> str:
    metrics = run.metrics
    return f"filters by {metrics.filter_importance}" if metrics.granularity == "filter" else "single weights"
