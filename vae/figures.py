"""The figures: training curves, samples, reconstructions and the space of codes; one function for each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import Normal

from common.data import Split
from common.plotting import COLOURS, figure
from common.stats import Interval, number
from vae.bounds import decoded
from vae.models import SIDE, VAE
from vae.objective import pixels
from vae.priors import kl_divergence

History = Mapping[str, list[float]]
# Ten classes that stay apart in print and for colour-blind readers: Paul Tol's "muted", and black.
CLASS_COLOURS = (
    *("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#000000"),
)


def image_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Returns one image `(1, H, W)` in [0, 1] that shows `rows` of images `(N, 1, 28, 28)` under one another."""
    padded = [torch.nn.functional.pad(row, (gap // 2,) * 4, value=0.2) for row in rows]
    return torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1).clamp(0, 1)


def _show(axes: Axes, rows: Sequence[Tensor], gap: int = 2) -> None:
    """Draws `rows` of images, black ink on white."""
    axes.imshow(image_grid(rows, gap)[0].cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks([(SIDE + 2) * (row + 0.5) for row in range(len(labels))], labels)
    axes.tick_params(length=0)


def _tick(value: Tensor) -> str:
    return number(round(float(value), 1) + 0.0, 1)  # no minus before 0.0


def training(history: History, title: str, caption: str) -> Figure:
    """ELBO, reconstruction error and KL, epoch by epoch, on training and held-out images."""
    sheet, panels = figure(f"Training: {title}", caption, columns=3, size=(10, 3.2))
    train = {
        "elbo": [-r - k for r, k in zip(history["reconstruction/train"], history["kl/train"], strict=True)],
        **{name: history[f"{name}/train"] for name in ("reconstruction", "kl")},
    }
    labels = {"elbo": "ELBO at β = 1 [nats]", "reconstruction": "reconstruction error [nats]", "kl": "KL [nats]"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        axes.plot(history["step"], train[name], color=COLOURS[0], linestyle=":", marker=".", label="training")
        axes.plot(history["step"], history[f"{name}/validation"], color=COLOURS[1], marker=".", label="held out")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        first = len(history["step"]) // 10  # the first epochs would flatten the rest
        settled = [*train[name][first:], *history[f"{name}/validation"][first:]]
        if name != "kl" and len(settled) > 6:
            span = max(settled) - min(settled)
            axes.set_ylim(min(settled) - 0.1 * span, max(settled) + 0.1 * span)
    panels[0].legend()
    return sheet


def reconstructions(model: VAE, test: Split, title: str, caption: str, columns: int = 20) -> Figure:
    """Test images as the model sees them, and below what it decodes from their posterior means; two of each class."""
    by_class = [rows for c in range(10) if len(rows := (test.labels == c).nonzero().flatten()[: columns // 10])]
    images = pixels(test.images[torch.cat(by_class)])
    with torch.inference_mode():
        reconstructed = decoded(model, model.encode(images)[0])
    sheet, (axes,) = figure(f"Reconstructions: {title}", caption, size=(10, 1.9))
    _show(axes, [images, reconstructed])
    _label_rows(axes, ["test image as seen", "reconstruction"])
    return sheet


def samples(images: Tensor, title: str, caption: str, columns: int = 10) -> Figure:
    """A square of images `(N, 1, 28, 28)`."""
    sheet, (axes,) = figure(title, caption, size=(6, 6.5))
    _show(axes, list(images.split(columns)))
    return sheet


def manifold(model: VAE, prior: Normal, title: str, caption: str, side: int = 20) -> Figure:
    """What a 2-D code decodes to, at the prior's own quantiles μ₀ + σ₀Φ⁻¹(u) (Kingma & Welling 2014, figure 4)."""
    quantiles = (torch.arange(side, device=prior.mean.device) + 0.5) / side
    ticks = prior.icdf(quantiles)
    codes = torch.stack(torch.meshgrid(ticks, ticks.flip(0), indexing="xy"), dim=2)  # the first dimension to the right
    sheet, (axes,) = figure(f"Latent plane: {title}", caption, size=(7, 7.4))
    _show(axes, list(decoded(model, codes.view(-1, 2)).split(side)), gap=0)
    marks = [0, (side - 1) // 3, side - 1 - (side - 1) // 3, side - 1]
    axes.set_xticks([SIDE * (mark + 0.5) for mark in marks], [_tick(ticks[mark]) for mark in marks])
    axes.set_yticks([SIDE * (side - mark - 0.5) for mark in marks], [_tick(ticks[mark]) for mark in marks])
    axes.set(xlabel="first dimension of the code", ylabel="second dimension of the code")
    return sheet


def latent_scatter(
    means: Tensor, deviations: Tensor, labels: Tensor, prior: Normal, title: str, caption: str
) -> Figure:
    """Posterior means of the test images by class; the prior's contours at 1, 2 and 3 deviations.

    If there are more than two dimensions it shows the two with most KL; the prior's contours are circles in any two.
    """
    if means.shape[1] == 1:
        return _latent_histogram(means, labels, prior, title, caption)
    order = kl_divergence(means, 2 * deviations.log(), prior).mean(0).argsort(descending=True)
    first, second = sorted(order[:2].tolist())
    chosen = means[:, [first, second]].cpu().numpy()
    sheet, (axes,) = figure(f"Codes of the test images: {title}", caption, size=(6.6, 6.2))
    for label in range(10):
        points = chosen[labels.cpu().numpy() == label]
        axes.scatter(
            points[:, 0], points[:, 1], s=3, alpha=0.5, color=CLASS_COLOURS[label], linewidths=0, label=str(label)
        )
    centre, deviation = float(prior.mean), float(prior.stddev)
    for multiple in (1, 2, 3):
        radius = multiple * deviation
        circle = Circle((centre, centre), radius, fill=False, color="0.2", linewidth=0.8, linestyle="--")
        axes.add_patch(circle)
        axes.annotate(f"{multiple}σ", (centre, centre + radius), fontsize=7, ha="center", va="bottom")
    reach = max(3.3 * deviation, float(np.abs(chosen - centre).max(initial=0)) * 1.02)
    axes.set(xlim=(centre - reach, centre + reach), ylim=(centre - reach, centre + reach), aspect="equal")
    axes.set(xlabel=f"dimension {first + 1} of the code", ylabel=f"dimension {second + 1} of the code")
    legend = axes.legend(markerscale=4, title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return sheet


def _latent_histogram(means: Tensor, labels: Tensor, prior: Normal, title: str, caption: str) -> Figure:
    """Posterior means of a one-dimensional code by class, and the prior's density."""
    sheet, (axes,) = figure(f"Codes of the test images: {title}", caption, size=(7, 4))
    values = [means[labels == label, 0].cpu().numpy() for label in range(10)]
    axes.hist(values, bins=80, density=True, stacked=True, color=CLASS_COLOURS, label=[str(n) for n in range(10)])
    codes = prior.mean + prior.stddev * torch.linspace(-3.5, 3.5, 200, device=prior.mean.device)
    axes.plot(
        codes.cpu().numpy(), prior.log_prob(codes).exp().cpu().numpy(), color="0.2", linestyle="--", label="prior"
    )
    axes.set(xlabel="the one dimension of the code", ylabel="density")
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5))
    return sheet


def traversals(
    model: VAE, means: Tensor, deviations: Tensor, prior: Normal, title: str, caption: str, columns: int = 11
) -> Figure:
    """One test image's code, one dimension at a time moved through ±3 deviations of the prior; most KL first."""
    kl = kl_divergence(means, 2 * deviations.log(), prior).mean(0)
    order = kl.argsort(descending=True)[:16]
    steps = torch.linspace(-3, 3, columns, device=means.device) * prior.stddev + prior.mean
    codes = means[0].repeat(len(order), columns, 1)  # (dimensions, columns, latent)
    for row, dimension in enumerate(order.tolist()):
        codes[row, :, dimension] = steps
    sheet, (axes,) = figure(f"Traversals: {title}", caption, size=(7.2, 1.2 + 0.41 * len(order)))
    _show(axes, list(decoded(model, codes.flatten(0, 1)).split(columns)))
    _label_rows(axes, [f"dimension {d + 1}: {kl[d]:.1f} nats" for d in order.tolist()])
    axes.set_xticks([(SIDE + 2) * (c + 0.5) for c in range(columns)], [_tick(step) for step in steps])
    axes.set_xlabel("value of that dimension, the others as for one test image")
    return sheet


def interpolations(model: VAE, means: Tensor, test: Split, title: str, caption: str, columns: int = 12) -> Figure:
    """Images decoded along straight lines between the codes of two test images, which stand at the ends."""
    by_class = [int(rows[0]) for c in range(10) if len(rows := (test.labels == c).nonzero())]
    pairs = list(zip(by_class, by_class[1:] + by_class[:1], strict=True))[::2] + list(
        zip(by_class[:5], by_class[5:], strict=False)
    )
    shares = torch.linspace(0, 1, columns, device=means.device).view(-1, 1)
    strips = []
    for start, end in pairs:
        between = decoded(model, means[start] + shares * (means[end] - means[start]))
        strips.append(torch.cat([pixels(test.images[[start]]), between, pixels(test.images[[end]])]))
    sheet, (axes,) = figure(f"Interpolations: {title}", caption, size=(7.4, 0.7 + 0.52 * len(strips)))
    _show(axes, strips)
    centres = [(SIDE + 2) * (c + 0.5) for c in (0, (columns + 1) / 2, columns + 1)]
    axes.set_xticks(centres, ["test image", "codes on a straight line", "test image"])
    axes.tick_params(length=0)
    return sheet


def quality(rows: Mapping[str, Mapping[str, Any]], title: str, caption: str) -> Figure:
    """FID, density and coverage of both samplers between ceiling and floor, and the classes of their samples."""
    sheet, (distance, shares, classes) = figure(f"Samples: {title}", caption, columns=3, size=(11, 3.6))
    names = list(rows)
    colours = [COLOURS[0] if "samples" in name else "0.75" for name in names]
    bars = distance.barh(names, [row["fid"] for row in rows.values()], color=colours)
    distance.bar_label(bars, [f"{row['fid']:.1f}" for row in rows.values()], padding=3, fontsize=8)
    distance.set(xscale="log", xlabel="Fréchet distance to test images (lower is better)")
    distance.margins(x=0.25)
    places = np.arange(len(names))
    for offset, key, colour in ((0.2, "density", COLOURS[2]), (-0.2, "coverage", COLOURS[4])):
        bars = shares.barh(places - offset, [row[key] for row in rows.values()], height=0.38, color=colour, label=key)
        shares.bar_label(bars, [f"{row[key]:.2f}" for row in rows.values()], padding=3, fontsize=7)
    shares.set_yticks(places, [""] * len(names))
    shares.set(xlabel="density, coverage (higher is better)")
    shares.margins(x=0.2)
    shares.legend(loc="lower right")
    for axes in (distance, shares):
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    shown = [name for name in names if "samples" in name or "real" in name]
    width = 0.84 / len(shown)
    for place, name in enumerate(shown):
        colour = "0.75" if "real" in name else COLOURS[5 * place % len(COLOURS)]
        percent = [100 * fraction for fraction in rows[name]["classes"]]
        label = f"{name} ({rows[name]['confidence']:.0%} sure)"
        offset = width * (place - (len(shown) - 1) / 2)
        classes.bar(np.arange(len(percent)) + offset, percent, 0.96 * width, color=colour, label=label)
    classes.set(xlabel="class by the classifier", ylabel="images [%]")
    classes.set_xticks(range(10))
    classes.set_ylim(0, 1.45 * classes.get_ylim()[1])
    classes.legend(fontsize=7, loc="upper right")
    return sheet


def table(metrics: Mapping[str, Any]) -> str:
    """Returns the bounds and the quality of samples as text for the terminal."""
    lines = [
        f"ELBO {metrics['elbo']:.2f} = −(reconstruction {metrics['reconstruction']:.2f} + KL {metrics['kl']:.2f}) "
        f"nats, NLL at most {metrics['nll']:.2f} ({metrics['nll_samples']} codes), "
        f"{metrics['active_units']} of {metrics['latent']} units active, likelihood {metrics['likelihood']}",
        f"{'':26}{'FID':>9}{'density':>9}{'coverage':>10}{'confidence':>12}",
    ]
    for name, row in metrics["quality"].items():
        figures = f"{row['fid']:>9.2f}{row['density']:>9.3f}{row['coverage']:>10.3f}{row['confidence']:>12.3f}"
        lines.append(f"{name:26}{figures}")
    return "\n".join(lines)


def sheet_of_samples(samples: Mapping[str, Tensor], captions: Mapping[str, str], caption: str) -> Figure:
    """Samples of several models `(64, 1, 28, 28)` side by side, each under its name and figures."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    size = (3.1 * columns, 3.7 * rows + 0.5)
    sheet, panels = figure("Samples from each model's own prior", caption, rows=rows, columns=columns, size=size)
    for axes, (name, images) in zip(panels, samples.items(), strict=False):
        _show(axes, list(images.split(8)))
        axes.set_title(captions[name], fontsize=8)
    for axes in panels[len(samples) :]:
        axes.set_visible(False)
    return sheet


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
