"""The figures of the experiment: training, sensitivity, weights before and after, layers, accuracy, bytes and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from common.plotting import COLOURS, MARKERS, figure
from common.stats import Interval
from pruning.allocation import Allocation
from pruning.masks import Masks
from pruning.measures import CHANCE, at_chance, ratio
from pruning.sensitivity import Sensitivity

History = Mapping[str, list[float]]
TIMED = {  # the networks of `latency` in metrics.json
    "dense": "dense",
    "pruned": "pruned,\ndense\nkernels",
    "pruned_csr": "pruned,\nsparse\nkernels",
    "smaller": "smaller\nnetwork",
}
Rule = tuple[str, str]  # allocation and schedule; the schedule names regrowth and distillation if they are used


def training(dense: History, finetuned: History, caption: str) -> Figure:
    """Returns the figure of loss and accuracy in training and fine-tuning, epoch by epoch."""
    sheet, (loss, accuracy) = figure("Training and fine-tuning", caption, columns=2, size=(8, 3.2))
    last = dense["step"][-1] if dense else 0.0  # with --dense-weights there was no training
    for history, offset, name, colour in (
        (dense, 0.0, "dense", COLOURS[0]),
        (finetuned, last, "fine-tuning", COLOURS[1]),
    ):
        if not history:
            continue
        epochs = [offset + step for step in history["step"]]
        loss.plot(epochs, history["loss/train"], color=colour, marker="o", label=name)
        accuracy.plot(
            epochs, _percent(history["accuracy/train"]), color=colour, ls=":", marker=".", label=f"{name}, training"
        )
        held_out = _percent(history["accuracy/validation"])
        accuracy.plot(epochs, held_out, color=colour, marker="o", label=f"{name}, held out")
    for axes, label in ((loss, "training loss [nats]"), (accuracy, "accuracy [%]")):
        axes.axvline(last + 0.5, color="0.6", linewidth=0.8)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return sheet


def sensitivity(curves: Sensitivity, dense_accuracy: float, chosen: Mapping[str, float], caption: str) -> Figure:
    """Returns the figure of held-out accuracy against the sparsity of a single layer.

    A ring marks the `chosen` sparsity of a layer, if the scan reached it. A curve without a point at sparsity 0 begins
    at `dense_accuracy`.
    """
    sheet, (axes,) = figure("Sensitivity: one layer pruned, nothing retrained", caption, size=(7, 4.4))
    for (name, curve), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        points = {0.0: dense_accuracy, **{float(sparsity): accuracy for sparsity, accuracy in curve.items()}}
        sparsities, accuracies = list(points), list(points.values())
        label = f"conv {list(curves).index(name) + 1} ({name}): {chosen[name]:.2%}"
        axes.plot(_percent(sparsities), _percent(accuracies), color=colour, marker=marker, label=label)
        if chosen[name] <= sparsities[-1]:
            height = float(np.interp(chosen[name], sparsities, accuracies))
            axes.plot(100 * chosen[name], 100 * height, "o", ms=11, mfc="none", mec=colour, mew=1.4)
    axes.plot([], [], "o", ms=9, mfc="none", mec="0.3", label="chosen sparsity, where measured")
    axes.axhline(100 * dense_accuracy, color="0.4", linewidth=0.8, linestyle="--", label="dense")
    axes.set(xlabel="sparsity of the layer [%]", ylabel="accuracy on the held-out split [%]", xlim=(-2, 101))
    axes.legend(ncols=2, loc="lower left")
    return sheet


def stages(
    curves: Mapping[str, Sequence[Interval]], names: Sequence[str], said: Sequence[float | None], caption: str
) -> Figure:
    """Returns the figure of accuracies in per cent at the stages of `names`, a line for each of the `curves`.

    `said` is what the original report gives at each stage, drawn beside them; None where it gives nothing.
    """
    columns = max(1, 80 // (8 + max(map(len, curves), default=0)))  # of the legend: as many as the longest name allows
    rows = math.ceil((len(curves) + 1) / columns)
    sheet, (axes,) = figure("Accuracy before and after pruning", caption, size=(7, 4 + 0.18 * rows))
    for place, (name, means) in enumerate(curves.items()):
        where = [stage + 0.06 * (place - (len(curves) - 1) / 2) for stage in range(len(names))]  # side by side
        estimates = [mean.estimate for mean in means]
        # One seed has no interval.
        reach = [[(m.estimate - m.low) or math.nan for m in means], [(m.high - m.estimate) or math.nan for m in means]]
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.errorbar(where, estimates, reach, capsize=3, label=name, color=colour, marker=marker)
    given = [(stage, accuracy) for stage, accuracy in enumerate(said) if accuracy is not None]
    if given:
        axes.plot(*zip(*given, strict=True), color="black", linestyle="--", marker="x", label="the original report")
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.set(ylabel="test accuracy [%]")
    sheet.legend(loc="outside lower center", ncols=columns)
    return sheet


def weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor], masks: Masks, caption: str) -> Figure:
    """Returns the histograms of every layer's weights: dense, and kept ones after fine-tuning.

    Each histogram spans 99.9 % of the dense weights.
    """
    sheet, panels = figure("Weights before and after pruning", caption, rows=2, columns=4, size=(11, 5))
    for axes, (name, weight) in zip(panels, before.items(), strict=True):
        dense, kept = weight.flatten().float().cpu(), after[name][masks[name]].float().cpu()
        limit = float(dense.abs().quantile(0.999))
        edges = torch.linspace(-limit, limit, 121)
        for values, colour, label in ((dense, COLOURS[5], "dense"), (kept, COLOURS[1], "kept, fine-tuned")):
            counts = torch.histogram(values, edges).hist
            axes.stairs(counts.numpy(), edges.numpy(), fill=True, color=colour, alpha=0.6, label=label)
        axes.set_title(f"{name}: {kept.numel() / dense.numel():.2%} kept")
        axes.locator_params(axis="x", nbins=5)  # more labels would overlap
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.set_xlabel("weight")
    panels[0].legend()
    panels[0].set_ylabel("weights a bin")
    panels[4].set_ylabel("weights a bin")
    return sheet


def layers(table: Sequence[Mapping[str, Any]], caption: str) -> Figure:
    """Returns the figure of weights and multiply-adds of every layer, before and after pruning."""
    sheet, (left, right) = figure("Where the weights and the work are", caption, columns=2, size=(9, 3.4))
    names = [row["name"].removeprefix("features.") for row in table]
    for axes, whole, rest, label in (
        (left, "weights", "nonzero", "weights [millions]"),
        (right, "multiply_adds", "multiply_adds_after", "multiply-adds an image [millions]"),
    ):
        axes.bar(names, [row[whole] / 1e6 for row in table], color="0.85", label="dense")
        axes.bar(names, [row[rest] / 1e6 for row in table], color=COLOURS[0], label="kept")
        for x, row in enumerate(table):
            axes.annotate(f"{row[rest] / row[whole]:.0%}", (x, row[whole] / 1e6), ha="center", va="bottom", fontsize=7)
        axes.set(xlabel="convolution (features.N)", ylabel=label)
        axes.grid(axis="x", visible=False)
    left.legend()
    return sheet


def outcome(metrics: Mapping[str, Any], caption: str) -> Figure:
    """Returns the figure of accuracy (dense, pruned, recalibrated, fine-tuned), file sizes and time a batch."""
    sheet, (accuracy, size, time) = figure("What pruning costs and saves", caption, columns=3, size=(11, 3.6))
    steps = {"dense": "dense_accuracy", "pruned": "pruned_accuracy"}
    steps |= {"recalibrated": "recalibrated_accuracy", "fine-tuned": "finetuned_accuracy"}
    _bars(accuracy, list(steps), [100 * metrics[key] for key in steps.values()], "{:.2f}")
    accuracy.set(ylabel="test accuracy [%]", ylim=(0, 108))
    smaller = {"smaller": metrics["smaller"]} if "smaller" in metrics else {}
    files = {"dense": {"bytes": metrics["dense_bytes"]}, **smaller, **metrics["sparse_files"]}
    _bars(size, list(files), [file["bytes"] / 1e6 for file in files.values()], "{:.2f}")
    size.set(ylabel="file [MB]")
    batches = metrics["latency"]
    for k, (batch, times) in enumerate(batches.items()):
        positions = [index + 0.4 * k for index in range(len(times))]
        relative = [seconds / times["dense"] for seconds in times.values()]
        label = f"batch of {batch.removeprefix('batch_')} ({1e3 * times['dense']:.0f} ms dense)"
        bars = time.bar(positions, relative, width=0.38, color=COLOURS[k], label=label)
        time.bar_label(bars, [f"{value:.2f}×" for value in relative], fontsize=7)
        time.set_xticks([index + 0.2 for index in range(len(times))], [TIMED[name] for name in times])
    time.set(ylabel="measured time, relative to dense", yscale="log")
    time.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.yaxis.set_major_formatter("{x:g}")
    time.yaxis.set_minor_formatter(NullFormatter())
    time.legend(loc="upper left")
    return sheet


def accuracy_against_sparsity(
    curves: Mapping[Rule, Sequence[tuple[float, Interval]]],
    dense: Mapping[str, Interval],
    caption: str,
    unit: str = "convolution weights",
) -> Figure:
    """Returns the figure of every rule's test accuracy against the share of weights pruned, or of another `unit`.

    If the accuracies span more than five points, a second panel shows the top five. If there is only one sparsity, the
    rules stand side by side, with their names below. An allocation has the same colour in every figure. One-shot has
    dashed lines and hollow markers; the first six other schedules differ in line and grey. Bars are intervals over
    seeds. `dense` are the controls, by name.
    """
    intervals = [mean for points in curves.values() for _, mean in points] + list(dense.values())
    highest = 100 * max(mean.high for mean in intervals)
    spread = highest - 100 * min(mean.low for mean in intervals) > 5
    sparsities = sorted({round(100 * sparsity, 1) for points in curves.values() for sparsity, _ in points})
    alone = len(sparsities) == 1
    columns = 2 if spread else 1
    width = columns * max(4.75 if spread else 6.0, 1.8 * len(curves) * alone)
    sheet, panels = figure("Accuracy against sparsity", caption, columns=columns, size=(width, 4.2))
    allocations = dict.fromkeys([*get_args(Allocation), *(allocation for allocation, _ in curves)])
    styles = dict(zip(allocations, itertools.cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    further = sorted({schedule for _, schedule in curves} - {"gradual", "one-shot"})
    lines = {"gradual": ("-", None), "one-shot": ("--", "white")}
    looks = itertools.cycle((line, grey) for grey in ("0.8", "0.5", "0.2") for line in ("-.", ":"))
    lines |= dict(zip(further, looks, strict=False))
    for axes in panels:
        for index, ((allocation, schedule), points) in enumerate(curves.items()):
            colour, marker = styles[allocation]
            line, fill = lines[schedule]
            across = [float(index)] if alone else [100 * sparsity for sparsity, _ in points]
            means = [100 * mean.estimate for _, mean in points]
            bars = [[100 * (m.estimate - m.low) for _, m in points], [100 * (m.high - m.estimate) for _, m in points]]
            bars = [[length or math.nan for length in side] for side in bars]  # one seed has no interval
            look = {"color": colour, "marker": marker, "ls": line, "mfc": fill or colour}
            drawn = axes.errorbar(across, means, bars, capsize=3, **look)
            drawn.set_label("" if alone else f"{allocation}, {schedule}")
        for stroke, (name, level) in zip(itertools.cycle(["--", ":", "-."]), dense.items(), strict=False):
            axes.axhline(100 * level.estimate, color="0.4", linewidth=0.8, linestyle=stroke, label=f"dense, {name}")
            axes.axhspan(100 * level.low, 100 * level.high, color="0.4", alpha=0.15, linewidth=0)
        axes.set(xlabel=f"{unit} pruned [%]", ylabel="test accuracy after fine-tuning [%]")
        axes.set_xticks(sparsities)
        if alone:
            names = ["\n".join([allocation, *schedule.split(", ")]) for allocation, schedule in curves]
            axes.set_xticks(range(len(curves)), names)
            axes.set(xlabel=f"{sparsities[0]:g} % of the {unit} pruned", xlim=(-0.7, len(curves) - 0.3))
    if spread:
        panels[1].set(ylim=(highest - 5, highest + 0.3), title="the top five percentage points")
    if panels[0].get_legend_handles_labels()[1]:
        panels[0].legend(handlelength=3.5)
    return sheet


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], form: str) -> None:
    bars = axes.bar(names, values, color=[COLOURS[0], *[COLOURS[1]] * (len(values) - 1)])
    axes.bar_label(bars, [form.format(value) for value in values], fontsize=8)
    axes.tick_params(axis="x", labelrotation=20)
    axes.grid(axis="x", visible=False)


def _percent(fractions: Sequence[float]) -> list[float]:
    return [100 * fraction for fraction in fractions]


def table(metrics: Mapping[str, Any]) -> str:
    """Returns the table of layers and the totals as text for the terminal."""
    lines = [f"{'layer':14}{'sparsity':>10}{'weights':>12}{'nonzero':>12}{'M multiply-adds':>18}{'after':>8}"]
    for row in metrics["layers"]:
        macs = f"{row['multiply_adds'] / 1e6:>18.2f}{row['multiply_adds_after'] / 1e6:>8.2f}"
        lines.append(f"{row['name']:14}{row['sparsity']:>10.4f}{row['weights']:>12,}{row['nonzero']:>12,}{macs}")
    images = metrics["dataset"]["test"]
    useless = at_chance(metrics["finetuned_accuracy"], images)
    lines += smaller_lines(metrics, useless)
    lines += [
        f"conv weights kept {metrics['conv_weights_kept']:.4f}, "
        f"compression {ratio(metrics['compression_ratio'], useless)}, "
        f"theoretical speed-up {ratio(metrics['theoretical_speedup'], useless)}",
        f"test accuracy: dense {metrics['dense_accuracy']:.4f}, pruned {metrics['pruned_accuracy']:.4f}, "
        f"recalibrated {metrics['recalibrated_accuracy']:.4f}, fine-tuned {metrics['finetuned_accuracy']:.4f}",
    ]
    lines.append(
        f"{'file':10}{'unpruned':>12} bytes{'coding':>9}{'pruned':>14} bytes{'pruning':>9}{'both':>9}  accuracy"
    )
    for values, file in metrics["sparse_files"].items():
        parts = ("coding_ratio", "pruning_ratio", "dense_over_sparse")
        coding, pruning, both = (f"{file[part]:,.1f}×" for part in parts)
        lines.append(
            f"{values:10}{file['unpruned_bytes']:>12,}{coding:>15}{file['bytes']:>14,}{pruning:>15}{both:>9}"
            f"  {file['accuracy']:.4f}" + (f" ({CHANCE})" if at_chance(file["accuracy"], images) else "")
        )
    return "\n".join(lines)


def smaller_lines(metrics: Mapping[str, Any], useless: bool) -> list[str]:
    """Returns what a run that pruned filters left, as lines for the terminal; none for another run.

    What a `useless` network, at chance, saves is marked.
    """
    if "smaller" not in metrics:
        return []
    smaller = metrics["smaller"]
    faster = (
        f"{ratio(speedup, useless)} as fast for a batch of {batch.removeprefix('batch_')}"
        for batch, speedup in smaller["speedup"].items()
    )
    return [
        f"filters left {metrics['filters_left']:,} of {metrics['filters']:,}; gone are "
        f"{metrics['filter_sparsity']:.4f} of the filters, {1 - metrics['conv_weights_kept']:.4f} of the weights",
        f"smaller network: widths {' '.join(map(str, smaller['widths']))}, {smaller['bytes']:,} bytes, "
        f"{', '.join(faster)}, accuracy {smaller['accuracy']:.4f}",
    ]
