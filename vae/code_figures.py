"""The figures of the space of codes: where images and the prior lie in it, and what its points decode to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor
from torch.distributions import Normal

from common.data import Split
from common.plotting import figure
from vae.bounds import decoded
from vae.figures import label_rows, show
from vae.labels import DIGITS, class_colours, class_legend, examples, short, tick_labels
from vae.models import SIDE, VAE
from vae.objective import pixels
from vae.priors import Prior, kl_divergence, log_density, marginals


def manifold(
    model: VAE,
    prior: Prior,
    means: Tensor,
    label: Tensor,
    title: str,
    caption: str,
    classes: Sequence[str] = DIGITS,
    side: int = 20,
) -> Figure:
    """What a 2-D code decodes to, at the prior's own quantiles μ₀ + σ₀Φ⁻¹(u) (Kingma & Welling 2014, figure 4).

    A mixture has no such quantiles: there it is those of the posterior `means` `(N, 2)`, dimension by dimension. A
    conditional model decodes all in the class `label`.
    """
    quantiles = (torch.arange(side, device=means.device) + 0.5) / side
    if isinstance(prior, Normal):
        across = up = prior.icdf(quantiles)
        units = ""
    else:
        across, up = means.quantile(quantiles, dim=0).T
        units = " (quantiles of the test images)"
    if model.classes:
        title = f"{title}, class {short(classes[int(label)])}"
    codes = torch.stack(torch.meshgrid(across, up.flip(0), indexing="xy"), dim=2)  # the first dimension to the right
    sheet, (axes,) = figure(f"Latent plane: {title}", caption, size=(7, 7.4))
    show(axes, list(decoded(model, codes.view(-1, 2), label.expand(side * side)).split(side)), gap=0, caption=caption)
    marks = [0, (side - 1) // 3, side - 1 - (side - 1) // 3, side - 1]
    labels, name = tick_labels(across[marks])
    axes.set_xticks([SIDE * (mark + 0.5) for mark in marks], labels)
    axes.set_xlabel(f"{name.format('first dimension of the code')}{units}")
    labels, name = tick_labels(up[marks])
    axes.set_yticks([SIDE * (side - mark - 0.5) for mark in marks], labels)
    axes.set_ylabel(name.format("second dimension of the code"))
    return sheet


def latent_scatter(
    means: Tensor,
    deviations: Tensor,
    labels: Tensor,
    prior: Prior,
    title: str,
    caption: str,
    classes: Sequence[str] = DIGITS,
) -> Figure:
    """Posterior means of the test images by class; a Gaussian prior's contours at 1, 2 and 3 deviations.

    If there are more than two dimensions it shows the two with most KL; the prior's contours are circles in any two.
    Of a mixture it shows the means of its components, as crosses, and takes KLs from the Gaussians of its marginals.
    """
    if means.shape[1] == 1:
        return _latent_histogram(means, labels, prior, title, caption, classes)
    order = kl_divergence(means, 2 * deviations.log(), marginals(prior)).mean(0).argsort(descending=True)
    first, second = sorted(order[:2].tolist())
    chosen = means[:, [first, second]].cpu().numpy()
    sheet, (axes,) = figure(f"Codes of the test images: {title}", caption, size=(6.6, 6.2))
    point = 3 if len(chosen) > 2000 else 10
    for label, (name, colour) in enumerate(zip(classes, class_colours(len(classes)), strict=True)):
        points = chosen[labels.cpu().numpy() == label]
        axes.scatter(points[:, 0], points[:, 1], s=point, alpha=0.5, color=colour, linewidths=0, label=short(name))
    if isinstance(prior, Normal):
        _contours(axes, float(prior.mean), float(prior.stddev), chosen)
    else:
        of_prior = prior.means[:, [first, second]].cpu().numpy()
        axes.scatter(of_prior[:, 0], of_prior[:, 1], s=10, marker="x", color="0.6", linewidths=0.7, zorder=0.5)
        axes.set(aspect="equal")
    axes.set(xlabel=f"dimension {first + 1} of the code", ylabel=f"dimension {second + 1} of the code")
    axes.ticklabel_format(scilimits=(-2, 4))
    class_legend(axes, classes, markerscale=4 if point == 3 else 2)
    if not isinstance(prior, Normal):
        axes.set_title(f"{axes.get_title()}\ncrosses: means of the prior's components".strip(), fontsize=8)
    return sheet


def _contours(axes: Axes, centre: float, deviation: float, points: np.ndarray) -> None:
    """Draws circles at 1, 2 and 3 deviations of a Gaussian prior, and lets the axes hold them and all points."""
    reach = max(3.3 * deviation, float(np.abs(points - centre).max(initial=0)) * 1.02)
    for multiple in (1, 2, 3):
        radius = multiple * deviation
        circle = Circle((centre, centre), radius, fill=False, color="0.2", linewidth=0.8, linestyle="--")
        axes.add_patch(circle)
        if deviation > reach / 15 or multiple == 3:  # not over one another
            axes.annotate(f"{multiple}σ", (centre, centre + radius), fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(centre - reach, centre + reach), ylim=(centre - reach, centre + reach), aspect="equal")


def _latent_histogram(
    means: Tensor, labels: Tensor, prior: Prior, title: str, caption: str, classes: Sequence[str]
) -> Figure:
    """Posterior means of a one-dimensional code by class, and the prior's density."""
    sheet, (axes,) = figure(f"Codes of the test images: {title}", caption, size=(7, 4))
    values = [means[labels == label, 0].cpu().numpy() for label in range(len(classes))]
    names = [short(name) for name in classes]
    axes.hist(values, bins=80, density=True, stacked=True, color=class_colours(len(classes)), label=names)
    spread = marginals(prior)
    codes = (spread.mean + spread.stddev * torch.linspace(-3.5, 3.5, 200, device=means.device)).view(-1, 1)
    density = log_density(codes, prior).exp().cpu().numpy()
    axes.plot(codes[:, 0].cpu().numpy(), density, color="0.2", linestyle="--", label="prior")
    axes.set(xlabel="the one dimension of the code", ylabel="density")
    axes.ticklabel_format(scilimits=(-2, 4))
    class_legend(axes, classes, "prior")
    return sheet


def traversals(
    model: VAE,
    means: Tensor,
    deviations: Tensor,
    prior: Prior,
    title: str,
    caption: str,
    label: Tensor | None = None,
    columns: int = 11,
) -> Figure:
    """One test image's code, one dimension at a time moved through ±3 deviations of the prior; most KL first.

    Deviations and KLs under a mixture are those of the Gaussians of its marginals; there the ticks count deviations,
    which differ by dimension. A conditional model decodes all in the class `label` of that image.
    """
    gaussians = marginals(prior)
    kl = kl_divergence(means, 2 * deviations.log(), gaussians).mean(0)
    order = kl.argsort(descending=True)[:16]
    multiples = torch.linspace(-3, 3, columns, device=means.device)
    steps = (multiples[:, None] * gaussians.stddev + gaussians.mean).expand(columns, means.shape[1])
    codes = means[0].repeat(len(order), columns, 1)  # (dimensions, columns, latent)
    for row, dimension in enumerate(order.tolist()):
        codes[row, :, dimension] = steps[:, dimension]
    labels = None if label is None else label.expand(len(order) * columns)
    sheet, (axes,) = figure(f"Traversals: {title}", caption, size=(7.2, 1.2 + 0.41 * len(order)))
    show(axes, list(decoded(model, codes.flatten(0, 1), labels).split(columns)), caption=caption)
    label_rows(axes, [f"dimension {d + 1}: {kl[d]:.1f} nats" for d in order.tolist()])
    ticks, what = (steps[:, 0], "value") if isinstance(prior, Normal) else (multiples, "deviations from the mean")
    shown, name = tick_labels(ticks)
    axes.set_xticks([(SIDE + 2) * (c + 0.5) for c in range(columns)], shown)
    axes.set_xlabel(f"{name.format(f'{what} of that dimension')}, the others as for one test image")
    return sheet


def interpolations(model: VAE, means: Tensor, test: Split, title: str, caption: str, columns: int = 12) -> Figure:
    """Images decoded along straight lines between the codes of two test images, which stand at the ends.

    A conditional model's classes go along the same lines, as weights of the two.
    """
    ends = examples(test.labels, 10)  # of ten classes one of each
    pairs = list(zip(ends, ends[1:] + ends[:1], strict=True))[::2] + list(zip(ends[:5], ends[5:], strict=False))
    shares = torch.linspace(0, 1, columns, device=means.device).view(-1, 1)
    strips, one_hot = [], torch.nn.functional.one_hot(test.labels, model.classes or -1).float()

    def line(points: Tensor, start: int, end: int) -> Tensor:
        return points[start] + shares * (points[end] - points[start])

    for start, end in pairs:
        between = decoded(model, line(means, start, end), line(one_hot, start, end))
        strips.append(torch.cat([pixels(test.images[[start]]), between, pixels(test.images[[end]])]))
    sheet, (axes,) = figure(f"Interpolations: {title}", caption, size=(7.4, 0.7 + 0.52 * len(strips)))
    show(axes, strips, caption=caption)
    centres = [(SIDE + 2) * (c + 0.5) for c in (0, (columns + 1) / 2, columns + 1)]
    axes.set_xticks(centres, ["test image", "codes on a straight line", "test image"])
    axes.tick_params(length=0)
    return sheet
