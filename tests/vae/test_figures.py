"""What is written on a figure lies on it."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.plotting import figure
from vae import figures, models
from vae.settings import Settings


def require_inside(sheet: Figure) -> None:
    """Checks the titles and the labels of all ticks, after the layout."""
    canvas = FigureCanvasAgg(sheet)
    canvas.draw()
    ticks = [label for axes in sheet.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()]
    assert sheet.texts
    for text in [*sheet.texts, *ticks]:
        box = text.get_window_extent(canvas.get_renderer())
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= sheet.bbox.x1, text.get_text()


@pytest.mark.parametrize("latent", [3, 16, 120])
def test_traversals_have_whole_labels(latent: int) -> None:
    model = models.build("fc", latent, hidden=(8,), channels=0).eval().requires_grad_(False)
    prior = Settings(prior="gaussian12").prior_on(torch.device("cpu"))
    means = torch.linspace(0, 9, latent).repeat(5, 1)  # the last dimensions, with the longest names, carry most KL
    require_inside(figures.traversals(model, means, torch.ones(5, latent), prior, "a title", "MNIST"))


def test_long_titles_are_broken() -> None:
    title = "convolutional β-VAE (β = 30), capacity 10 nats, prior N(1, 2²), 16 dimensions: prior samples, FID 330.1"
    sheet, _ = figure(title, "MNIST", size=(6, 6.5))
    require_inside(sheet)
