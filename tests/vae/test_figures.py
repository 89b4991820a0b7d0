"""What is written on a figure lies on it."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.data import Split
from common.plotting import figure, png_bytes
from vae import code_figures, figures, models
from vae.labels import examples, short
from vae.priors import vamp
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
    require_inside(code_figures.traversals(model, means, torch.ones(5, latent), prior, "a title", "MNIST"))


def test_long_titles_are_broken() -> None:
    title = "convolutional β-VAE (β = 30), capacity 10 nats, prior N(1, 2²), 16 dimensions: prior samples, FID 330.1"
    sheet, _ = figure(title, "MNIST", size=(6, 6.5))
    require_inside(sheet)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0, 1), (1, 2), (0, 1e-3), (0, 1e6), (-1e6, 1), (1, 1e-5), (0, 1e15), (5, 90), (0.5, 1e-3), (0.1, 1e-3)],
)
def test_manifold_and_traversals_have_different_short_labels_for_any_prior(mean: float, std: float) -> None:
    prior = Settings(prior_mean=mean, prior_std=std).prior_on(torch.device("cpu"))
    model = models.build("fc", 2, hidden=(8,), channels=0).eval().requires_grad_(False)
    means = torch.full((5, 2), float(mean))
    sheets = [
        code_figures.manifold(model, prior, means, torch.tensor(0), "a title", "MNIST"),
        code_figures.traversals(model, means, torch.full((5, 2), float(std)), prior, "a title", "MNIST"),
    ]
    for sheet in sheets:
        labels = [label.get_text() for label in sheet.axes[0].get_xticklabels()]
        assert len(set(labels)) == len(labels) > 3
        assert max(map(len, labels)) <= 6
        require_inside(sheet)


@pytest.mark.parametrize("count", [1, 10, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 26, 60))])
def test_any_number_of_classes_is_drawn(count: int) -> None:
    classes = [f"_class {i} with a long name, $ and _" for i in range(count)]
    labels = torch.arange(count).repeat(4)
    test = Split(torch.randint(256, (len(labels), 1, 28, 28)).to(torch.uint8), labels)
    means, prior = torch.randn(len(labels), 2), Settings(prior="normal").prior_on(torch.device("cpu"))
    model = models.build("fc", 2, hidden=(8,), channels=0).eval().requires_grad_(False)
    require_inside(figures.reconstructions(model, test, "a title", "MNIST"))
    require_inside(code_figures.interpolations(model, means, test, "a title", "MNIST"))
    row = {"fid": 3.0, "density": 0.5, "coverage": 0.5}
    judged = row | {"confidence": 0.9, "classes": [1 / count] * count} if count > 1 else row
    names = ["prior samples", "real training images"]
    assert png_bytes(figures.quality(dict.fromkeys(names, judged), "a title", "MNIST", classes))
    for codes in (means, means[:, :1]):
        sheet = code_figures.latent_scatter(codes, torch.ones_like(codes), labels, prior, "a title", "MNIST", classes)
        FigureCanvasAgg(sheet).draw()
        legend = sheet.axes[0].get_legend()
        assert legend is None or legend.get_window_extent().x1 <= sheet.bbox.x1
        named = [text.get_text() for text in legend.get_texts()] if legend is not None else []
        assert len([name for name in named if name != "prior"]) == (count if 1 < count <= 40 or named else 0)


def test_a_row_with_fewer_images_ends_earlier() -> None:
    grid = figures.image_grid([torch.ones(3, 1, 28, 28), torch.ones(2, 1, 28, 28)])
    assert grid.shape == (1, 60, 90)
    assert (grid[0, 31:59, 31:59] == 1).all()
    assert (grid[0, 30:, 60:] == 0.2).all()


def test_examples_take_turns_between_the_classes() -> None:
    labels = torch.tensor([2, 0, 0, 1, 0, 2])
    assert examples(labels, 4) == [1, 3, 0, 2]
    assert examples(labels, 99) == [1, 3, 0, 2, 5, 4]
    assert examples(torch.zeros(5), 3) == [0, 1, 2]


def test_class_names_are_short_and_no_code() -> None:
    assert [short(name) for name in ("_a_b", "x" * 20, "___", "a$b")] == ["a b", "x" * 14 + "…", "–", r"a\$b"]


def vamp_model(latent: int, classes: int = 0) -> models.VAE:
    torch.manual_seed(0)
    model = models.build("fc", latent, hidden=(8,), channels=0, classes=classes, pseudo_inputs=6)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_figures_of_a_learned_prior(latent: int) -> None:
    model, means, labels = vamp_model(latent), torch.randn(50, latent), torch.arange(50) % 10
    prior = vamp(model)
    scatter = code_figures.latent_scatter(means, torch.ones(50, latent), labels, prior, "a title", "MNIST")
    (axes,) = scatter.axes
    if latent > 1:
        shown = int(axes.get_xlabel().split()[1]) - 1
        crosses = torch.from_numpy(axes.collections[-1].get_offsets().data[:, 0]).float()
        torch.testing.assert_close(crosses, prior.means[:, shown])
        assert not axes.patches  # no contours
    traversed = code_figures.traversals(model, means, torch.ones(50, latent), prior, "a title", "MNIST")
    require_inside(traversed)
    assert [label.get_text() for label in traversed.axes[0].get_xticklabels()][::5] == ["−3.0", "0.0", "3.0"]


def test_the_plane_of_a_learned_prior_is_at_quantiles_of_the_codes() -> None:
    means = torch.stack([torch.linspace(0, 8, 1001), torch.linspace(-4, 4, 1001)], dim=1)
    model = vamp_model(2, classes=10)
    sheet = code_figures.manifold(model, vamp(model), means, torch.tensor(7), "a title", "MNIST", side=4)
    (axes,) = sheet.axes
    across, up = ([label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels()))
    assert across == ["1.0", "3.0", "5.0", "7.0"]  # quantiles 1/8, 3/8, 5/8, 7/8
    assert up == ["−3.0", "−1.0", "1.0", "3.0"]
    assert any("class 7" in text.get_text() for text in sheet.texts)


def test_samples_by_class_decode_the_same_codes_in_every_class() -> None:
    model, codes = vamp_model(2, classes=10), torch.randn(4, 2)
    (axes,) = figures.samples_by_class(model, codes, "a title", "MNIST").axes
    drawn = torch.from_numpy(axes.images[0].get_array().data)  # rows of 30 pixels, columns of 30
    row = drawn[30 * 7 + 1 : 30 * 8 - 1, 1:29]
    torch.testing.assert_close(row, torch.sigmoid(model.decode(codes[:1], torch.tensor([7])))[0, 0])
    assert drawn.shape == (300, 120)


@pytest.mark.parametrize("count", [2, 26, 60])
def test_conditional_figures_have_the_names_of_any_number_of_classes(count: int) -> None:
    classes = [f"_class {i} with a long name, $ and _" for i in range(count)]
    labels = torch.arange(count).repeat(2)[:-1]  # the last class is rare
    model, means = vamp_model(2, classes=count), torch.randn(len(labels), 2)
    test = Split(torch.randint(256, (len(labels), 1, 28, 28)).to(torch.uint8), labels)
    by_class = figures.samples_by_class(model, means[:4], "a title", "MNIST", classes)
    require_inside(by_class)
    assert [label.get_text() for label in by_class.axes[0].get_yticklabels()] == list(map(short, classes[:40]))
    plane = code_figures.manifold(model, vamp(model), means, labels[1], "a title", "MNIST", classes, side=4)
    assert any(short(classes[1]) in text.get_text() for text in plane.texts)
    require_inside(code_figures.interpolations(model, means, test, "a title", "MNIST"))
    scatter = code_figures.latent_scatter(
        means, torch.ones_like(means), labels, vamp(model), "a title", "MNIST", classes
    )
    assert "crosses" in scatter.axes[0].get_title()
    assert ("60 classes" in scatter.axes[0].get_title()) == (count == 60)


def test_interpolations_end_in_each_images_own_class() -> None:
    model, labels = vamp_model(2, classes=10), torch.arange(20) % 10
    test = Split(torch.zeros(20, 1, 28, 28, dtype=torch.uint8), labels)
    means = torch.randn(20, 2)
    (axes,) = code_figures.interpolations(model, means, test, "a title", "MNIST").axes
    drawn = torch.from_numpy(axes.images[0].get_array().data)
    for column, index in ((1, 0), (12, 1)):  # the first line goes from a 0 to a 1
        ours = drawn[1:29, 30 * column + 1 : 30 * column + 29]
        torch.testing.assert_close(ours, torch.sigmoid(model.decode(means[[index]], labels[[index]]))[0, 0])
