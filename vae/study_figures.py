"""The figures of a study: samples side by side, differences with their intervals, and quality against β."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from common import stats
from common.plotting import COLOURS, MARKERS, figure
from common.stats import Interval
from vae.figures import show

Values = Mapping[str, Sequence[float]]  # figure → a value for each seed
Curve = Mapping[float, Values]  # β → figures
QUALITIES = {
    "fid": "FID",
    "random_fid": "FID, random features",
    "density": "density",
    "coverage": "coverage",
    "confidence": "confidence of the classifier",
    "balance": "balance of the classes",
}


def sheet_of_samples(samples: Mapping[str, Tensor], captions: Mapping[str, str], caption: str) -> Figure:
    """Samples of several models `(64, 1, 28, 28)` side by side, each under its name and figures."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    size = (3.1 * columns, 3.7 * rows + 0.5)
    sheet, panels = figure("Samples from each model's own prior", caption, rows=rows, columns=columns, size=size)
    for axes, (name, images) in zip(panels, samples.items(), strict=False):
        show(axes, list(images.split(8)), caption=caption)
        axes.set_title(captions[name], fontsize=8)
    for axes in panels[len(samples) :]:
        axes.set_visible(False)
    return sheet


def panel_caption(title: str, values: Values) -> str:
    """Returns a model's name over its figures, means over the seeds, for the sheet of samples."""
    mean = {key: stats.mean(numbers).estimate for key, numbers in values.items()}
    return (
        f"{title.replace(', prior', chr(10) + 'prior')}\n"
        f"ELBO {stats.number(mean['elbo'], 1)}, NLL ≤ {stats.number(mean['nll'], 1)}, FID {mean['fid']:.1f}"
    )


def claims(differences: Mapping[str, Mapping[str, Mapping[str, Any]]], caption: str) -> Figure:
    """Paired differences with their intervals, one row for each claim; conclusive ones are coloured."""
    figures = {"fid": "FID (lower is better)", "elbo": "ELBO [nats] (higher is better)"}
    size = (11, 1.3 + 0.42 * len(differences))
    sheet, panels = figure("Differences, seed by seed, with 95 % intervals", caption, columns=2, size=size)
    for axes, (key, label) in zip(panels, figures.items(), strict=True):
        for place, by_figure in enumerate(differences.values()):
            difference = Interval(**by_figure[key])
            estimate, low, high = difference.estimate, difference.low, difference.high
            colour = COLOURS[1] if difference.conclusive else "0.5"
            axes.plot([low, high], [place, place], color=colour)
            axes.plot(estimate, place, "o", color=colour)
        axes.axvline(0, color="0.2", linewidth=0.8)
        axes.set_yticks(range(len(differences)), list(differences) if axes is panels[0] else [""] * len(differences))
        axes.set(xlabel=f"difference in {label}", ylim=(len(differences) - 0.5, -0.5))
    return sheet


def quality_against_beta(curves: Mapping[str, Curve], title: str, caption: str) -> Figure:
    """Every measure of the samples against β: a line for each pairing of prior and samples, mean with its interval.

    `curves` holds every pairing's figures by β, not all the same ones. Of two seeds each is drawn in place of an
    interval.
    """
    sheet, panels = figure(f"Samples against β: {title}", caption, rows=2, columns=3, size=(11, 6.4))
    every = sorted({beta for curve in curves.values() for beta in curve})
    a_model = next(iter(next(iter(curves.values())).values()))
    measured = {name: label for name, label in QUALITIES.items() if name in a_model}
    for axes in panels[len(measured) :]:
        axes.set_visible(False)
    for axes, (measure, label) in zip(panels, measured.items(), strict=False):
        for place, (pairing, curve) in enumerate(curves.items()):
            betas, colour, marker = sorted(curve), COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            seeds = len(curve[betas[0]][measure])
            means = [stats.mean(curve[beta][measure]) for beta in betas]
            estimates = np.array([of.estimate for of in means])
            reach = np.abs(np.array([(of.low, of.high) for of in means]).T - estimates)
            where = [beta * 1.04 ** (place - (len(curves) - 1) / 2) for beta in betas]  # side by side
            axes.errorbar(
                where,
                estimates,
                reach if seeds > 2 else None,
                capsize=2,
                elinewidth=0.8,
                label=pairing,
                color=colour,
                marker=marker,
                linestyle="--" if place % 2 else "-",
            )
            if seeds == 2:  # the interval of two is far wider than they lie apart
                each = [curve[beta][measure] for beta in betas]
                axes.plot(where, each, "_", color=colour, markersize=5, alpha=0.7)
        axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        distance = measure.endswith("fid")
        axes.set(xlabel="β in training", ylabel=label, yscale="log" if distance else "linear")
        if every[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=every[1])  # 0 has a place left of the smallest β
        axes.set_xticks(every, [f"{beta:g}" for beta in every])
        axes.xaxis.minorticks_off()
        if distance:  # 1200 in place of 1.2 × 10³
            axes.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
        axes.set_title("lower is better" if distance else "higher is better", fontsize=8)
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return sheet


def samples_against_beta(samples: Mapping[str, Mapping[float, Tensor]], title: str, caption: str) -> Figure:
    """Samples by pairing and β, all of the same standard normal draws; images `(16, 1, 28, 28)`."""
    betas = sorted({beta for of in samples.values() for beta in of})
    size = (1.55 * len(betas) + 1.4, 1.6 * len(samples) + 0.9)
    name = f"The same draws, decoded by every model: {title}"
    sheet, panels = figure(name, caption, rows=len(samples), columns=len(betas), size=size)
    cells = [(pairing, beta) for pairing in samples for beta in betas]
    for axes, (pairing, beta) in zip(panels, cells, strict=True):
        if beta in samples[pairing]:
            show(axes, list(samples[pairing][beta].split(4)), caption=caption)
        else:
            axes.set(xticks=[], yticks=[], frame_on=False)
        if pairing == next(iter(samples)):
            axes.set_title(f"β = {beta:g}", fontsize=9)
        if beta == betas[0]:
            axes.set_ylabel(pairing.replace(", samples", ",\nsamples"), fontsize=8)
    return sheet
