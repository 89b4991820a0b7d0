"""The figures of a run: training curves, samples, reconstructions, quality; one function for each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from common.data import Split
from common.plotting import COLOURS, figure
from vae.bounds import decoded
from vae.labels import DIGITS, MOST_NAMED, examples, short
from vae.models import SIDE, VAE
from vae.objective import pixels

History = Mapping[str, list[float]]


def image_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Returns one image `(1, H, W)` in [0, 1] that shows `rows` of images `(N, 1, 28, 28)` under one another."""
    padded = [torch.nn.functional.pad(row, (gap // 2,) * 4, value=0.2) for row in rows]
    strips = [torch.cat(list(row), dim=2) for row in padded]
    width = max(strip.shape[2] for strip in strips)  # a row may have fewer images
    strips = [torch.nn.functional.pad(strip, (0, width - strip.shape[2]), value=0.2) for strip in strips]
    return torch.cat(strips, dim=1).clamp(0, 1)


def show(axes: Axes, rows: Sequence[Tensor], gap: int = 2, caption: str = "") -> None:
    """Draws `rows` of images: of a folder as they are, of the named datasets black ink on white."""
    colours = "gray" if caption.startswith("image folder") else "gray_r"
    axes.imshow(image_grid(rows, gap)[0].cpu().numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Writes a label beside each row that `show` drew."""
    axes.set_yticks([(SIDE + 2) * (row + 0.5) for row in range(len(labels))], labels)
    axes.tick_params(length=0)


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
    """Test images as the model sees them, over what it decodes from their posterior means; of ten classes two each."""
    rows = sorted(examples(test.labels, columns), key=lambda row: (int(test.labels[row]), row))
    images, labels = pixels(test.images[rows]), test.labels[rows]
    with torch.inference_mode():
        reconstructed = decoded(model, model.encode(images, labels)[0], labels)
    sheet, (axes,) = figure(f"Reconstructions: {title}", caption, size=(10, 1.9))
    show(axes, [images, reconstructed], caption=caption)
    label_rows(axes, ["test image as seen", "reconstruction"])
    return sheet


def samples(images: Tensor, title: str, caption: str, columns: int = 10) -> Figure:
    """A square of images `(N, 1, 28, 28)`."""
    sheet, (axes,) = figure(title, caption, size=(6, 6.5))
    show(axes, list(images.split(columns)), caption=caption)
    return sheet


def samples_by_class(model: VAE, codes: Tensor, title: str, caption: str, classes: Sequence[str] = DIGITS) -> Figure:
    """What a conditional model makes of the same codes `(N, latent)` in every class: a row a class."""
    shown = [short(name) for name in classes[:MOST_NAMED]]
    rows = [decoded(model, codes, torch.full((len(codes),), c, device=codes.device)) for c in range(len(shown))]
    sheet, (axes,) = figure(f"Samples by class: {title}", caption, size=(6.4, 0.9 + 0.56 * len(rows)))
    show(axes, rows, caption=caption)
    label_rows(axes, [f"digit {name}" for name in shown] if tuple(classes) == DIGITS else shown)
    axes.set_xlabel("a code from the prior each column")
    return sheet


def quality(rows: Mapping[str, Mapping[str, Any]], title: str, caption: str, classes: Sequence[str] = DIGITS) -> Figure:
    """FID, density and coverage of both samplers between ceiling and floor, and the classes of their samples."""
    classified = all("classes" in row for row in rows.values())
    size = (11, 3.6) if classified else (8.5, 3.6)
    sheet, (distance, shares, *rest) = figure(f"Samples: {title}", caption, columns=2 + classified, size=size)
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
    if classified:
        _class_shares(rest[0], rows, classes)
    else:
        distance.set_xlabel("Fréchet distance to test images, in the\nspace of random convolutions (lower is better)")
    return sheet


def _class_shares(axes: Axes, rows: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Draws how many of the samples, and of real images, the classifier takes for each class."""
    shown = [name for name in rows if "samples" in name or "real" in name]
    width = 0.84 / len(shown)
    for place, name in enumerate(shown):
        colour = "0.75" if "real" in name else COLOURS[5 * place % len(COLOURS)]
        percent = [100 * fraction for fraction in rows[name]["classes"]]
        label = f"{name} ({rows[name]['confidence']:.0%} sure)"
        offset = width * (place - (len(shown) - 1) / 2)
        axes.bar(np.arange(len(percent)) + offset, percent, 0.96 * width, color=colour, label=label)
    axes.set(xlabel="class by the classifier", ylabel="images [%]")
    if len(classes) <= 15:
        turned = sum(map(len, classes)) > 20
        axes.set_xticks(range(len(classes)), [short(name) for name in classes], rotation=90 if turned else 0)
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.legend(fontsize=7, loc="upper right")


def table(metrics: Mapping[str, Any]) -> str:
    """Returns the bounds and the quality of samples as text for the terminal."""
    lines = [
        f"ELBO {metrics['elbo']:.2f} = −(reconstruction {metrics['reconstruction']:.2f} + KL {metrics['kl']:.2f}) "
        f"nats, NLL at most {metrics['nll']:.2f} ({metrics['nll_samples']} codes), "
        f"{metrics['active_units']} of {metrics['latent']} units active, likelihood {metrics['likelihood']}",
        f"{'':26}{'FID':>9}{'density':>9}{'coverage':>10}{'confidence':>12}{'random FID':>12}",
    ]
    for name, row in metrics["quality"].items():
        confidence = f"{row['confidence']:>12.3f}" if "confidence" in row else f"{'–':>12}"
        figures = f"{row['fid']:>9.2f}{row['density']:>9.3f}{row['coverage']:>10.3f}{confidence}"
        figures += f"{row['random_fid']:>12.2f}"
        lines.append(f"{name:26}{figures}")
    return "\n".join(lines)
