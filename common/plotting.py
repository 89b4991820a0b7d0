"""The style of all figures, and how they are saved."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#333333")  # after Okabe & Ito
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")


def figure(
    title: str, caption: str, *, rows: int = 1, columns: int = 1, size: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `size` inches and its axes, row by row; `caption` names the dataset."""
    matplotlib.rcParams.update(STYLE)
    sheet = Figure(figsize=size, layout="constrained")
    axes = sheet.subplots(rows, columns, squeeze=False)
    stand_in = caption.startswith("STAND-IN")
    lines = [textwrap.fill(line, int(13 * size[0])) for line in (title, caption)]  # 13 letters an inch
    sheet.suptitle("\n".join(lines), fontsize=10, color="#b00020" if stand_in else "black")
    return sheet, list(axes.flat)


def png_bytes(sheet: Figure, dpi: int = 160) -> bytes:
    """Returns the figure as a PNG file."""
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()
