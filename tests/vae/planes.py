"""Small decoders with pictures that vary, and runs that hold one for the report page."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tests.common.report.runs import vae_run
from vae import distil, plane
from vae.models import VAE


def fully_connected(latent: int, widths: tuple[int, ...], act: nn.Module, *, spread: float = 2.0) -> VAE:
    """Returns a VAE with such a decoder, its weights `spread` times those of torch's start."""
    sizes = [*widths, plane.PIXELS]
    up = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), act)]
    decoder = nn.Sequential(*up[:-1], nn.Unflatten(1, (1, 28, 28)))
    model = VAE(nn.Flatten(), decoder, act, widths[0], latent, learn_noise=False)
    with torch.no_grad():
        for parameter in [*model.from_code.parameters(), *decoder.parameters()]:
            parameter.mul_(spread)
    return model.eval().requires_grad_(False)


def posteriors(
    latent: int, prior: tuple[float, float] = (0.0, 1.0), images: int = 300
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns means, deviations and labels of test images, near the prior."""
    generator = torch.Generator().manual_seed(3)
    means = prior[0] + prior[1] * torch.randn(images, latent, generator=generator)
    return means, torch.full_like(means, 0.2 * prior[1]), torch.arange(images) % 10


def plane_of(model: VAE, prior: tuple[float, float] = (0.0, 1.0)) -> plane.Plane:
    """Returns what the page shows of the model."""
    made = distil.made(model, *posteriors(model.from_code.in_features, prior), Normal(*map(torch.tensor, prior)))
    assert made is not None
    return made


def run_with_plane(folder: Path, model: VAE, prior: tuple[float, float] = (0.0, 1.0), **changes: Any) -> Path:
    """Writes a finished run of the model, with its decoder for the page; `changes` are of its metrics."""
    vae_run(folder)
    path = folder / "metrics.json"
    told = {"latent": model.from_code.in_features, "prior_mean": prior[0], "prior_std": prior[1]}
    path.write_text(json.dumps(json.loads(path.read_text()) | told | changes))
    name = "manifold.png" if told["latent"] == 2 else "traversals.png"
    (folder / "figures" / "reconstructions.png").rename(folder / "figures" / name)
    plane.write(folder / plane.FILE, plane_of(model, prior))
    return folder
