"""How good samples are, on features of a classifier trained here: Fréchet distance, density and coverage."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean `(D,)` and covariance `(D, D)` of a set of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Returns mean and covariance of features `(N, D)`."""
    features = features.double()
    return Moments(features.mean(0), torch.cov(features.T))


def frechet_distance(one: Moments, other: Moments) -> float:
    """Returns |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), the squared Fréchet distance of two Gaussians.

    Heusel et al. 2017, Eq. 6 (FID). The trace of (Σ₁Σ₂)^½ is the sum of the roots of the eigenvalues of the symmetric
    Σ₁^½ Σ₂ Σ₁^½, which has those of Σ₁Σ₂.
    """
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)


def neighbour_radii(real: Tensor, neighbours: int = 5, rows_at_once: int = 1000) -> Tensor:
    """Returns each real feature's distance to its k-th nearest other one, `(N,)`, for features `(N, D)`."""
    radii = []
    for start in range(0, len(real), rows_at_once):
        distances = torch.cdist(real[start : start + rows_at_once], real)
        rows = torch.arange(len(distances), device=real.device)
        distances[rows, start + rows] = 0  # exactly 0: the fast distance of a point to itself is a rounding error
        radii.append(distances.topk(neighbours + 1, largest=False).values[:, -1])
    return torch.cat(radii)


def density_and_coverage(
    real: Tensor, radii: Tensor, fake: Tensor, neighbours: int = 5, rows_at_once: int = 1000
) -> tuple[float, float]:
    """Returns density and coverage of `fake` (M, D) around `real` (N, D) with its k-th neighbour `radii` (N,).

    Density: the mean number of real neighbourhoods that a fake feature lies in, divided by k. It is about 1 for real
    images and more if fakes crowd into dense regions. Coverage: the fraction of real features with a fake one in their
    neighbourhood. Naeem et al. 2020, Eqs. 3 and 4.
    """
    inside, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in fake.split(rows_at_once):
        within = torch.cdist(rows, real) <= radii
        inside += int(within.sum())
        covered |= within.any(0)
    return inside / (neighbours * len(fake)), float(covered.float().mean())


def blurred(images: Tensor, deviation: float = 1.0) -> Tensor:
    """Returns images `(N, 1, H, W)` after a Gaussian blur of `deviation` pixels: what FID must punish."""
    reach = int(4 * deviation + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / deviation).square())
    weights = (weights / weights.sum()).to(images.dtype)
    rows = F.conv2d(images, weights.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(rows, weights.view(1, 1, 1, -1), padding=(0, reach))
