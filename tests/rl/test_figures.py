"""Bands over seeds: of two the curves themselves, since the interval of two is far wider than they are."""

import pytest

from common.plotting import figure
from rl.figures import band


@pytest.mark.parametrize(("seeds", "lines", "bands"), [(1, 1, 1), (2, 3, 0), (3, 1, 1)])
def test_two_seeds_are_drawn_each(seeds: int, lines: int, bands: int) -> None:
    _, (axes,) = figure("title", "caption", size=(4, 3))
    band(axes, [0, 1, 2], [[seed, seed + 1.0, seed + 2.0] for seed in range(seeds)], "black", "mean")
    assert len(axes.lines) == lines
    assert len(axes.collections) == bands
    if seeds == 2:
        low, high = axes.get_ylim()
        assert -0.5 < low < high < 3.5
