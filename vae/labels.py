"""What the figures write beside codes and classes, whatever the prior and however many classes there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from common.stats import number

# Ten classes that stay apart in print and for colour-blind readers: Paul Tol's "muted", and black.
CLASS_COLOURS = (
    *("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#000000"),
)
DIGITS = tuple("0123456789")
MOST_NAMED = 40  # classes; a legend has no room for more


def class_colours(classes: int) -> list[Any]:
    """Returns a colour for each class: up to ten that stay apart, of more the colours of the rainbow."""
    if classes <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS[:classes]) if classes > 1 else [CLASS_COLOURS[1]]
    return [colormaps["turbo"](label / (classes - 1)) for label in range(classes)]


def short(name: str) -> str:
    """Returns a class's name as a figure shows it: at most 15 letters, and nothing that matplotlib reads as code."""
    plain = name.replace("_", " ").strip() or "–"  # a legend leaves out what begins with _
    return (plain if len(plain) <= 15 else f"{plain[:14]}…").replace("$", r"\$")


def class_legend(axes: Axes, classes: Sequence[str], *others: str, markerscale: float = 1) -> None:
    """Draws the legend of the classes beside the axes: in columns if they are many, none if there is only one."""
    if len(classes) > MOST_NAMED:
        axes.set_title(f"{len(classes)} classes, in colours from the first to the last", fontsize=8)
        return
    if len(classes) == 1 and not others:
        return
    title = "digit" if tuple(classes) == DIGITS else "class"
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": -(-len(classes) // 20)}
    legend = axes.legend(markerscale=markerscale, title=title, **place)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def tick_labels(values: Tensor) -> tuple[list[str], str]:
    """Returns short labels of rising codes `(N,)`, and how the axis calls what they are of, with {} for the code.

    One decimal is enough for most priors. Of very large, small or close values a power of ten is taken out, and of
    values close together and far from 0 also what they share.
    """
    codes = values.double()
    centre, spread = float(codes.mean()), float(codes.max() - codes.min())
    shift = float(f"{centre:.6g}") if abs(centre) > 20 * spread else 0.0
    codes = codes - shift
    exponent = math.floor(math.log10(max(float(codes.abs().max()), 1e-30)))
    exponent = 0 if -1 <= exponent <= 2 else exponent
    step = max(float(codes.diff().abs().min()) / 10**exponent, 1e-4)
    decimals = max(1, math.ceil(-math.log10(step)))
    labels = [number(round(code / 10**exponent, decimals) + 0.0, decimals) for code in codes.tolist()]  # no minus 0.0
    name = f"({{}} − {shift:g})".replace("− -", "+ ") if shift else "{}"
    return labels, f"{name} / $10^{{{{{exponent}}}}}$" if exponent else name


def examples(labels: Tensor, count: int) -> list[int]:
    """Returns the rows of `count` images, as many of each class as there can be: the first of each, the second, …"""
    by_class = [(labels == label).nonzero().flatten().tolist() for label in labels.unique()]
    return [row for turn in itertools.zip_longest(*by_class) for row in turn if row is not None][:count]
