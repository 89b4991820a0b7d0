"""FID against closed forms, density and coverage against brute force, the mixture, the blur."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from vae import metrics, samplers


def gaussian(mean: list[float], covariance: torch.Tensor) -> metrics.Moments:
    return metrics.Moments(torch.tensor(mean, dtype=torch.float64), covariance.double())


def test_frechet_distance_of_commuting_gaussians() -> None:
    """|μ₁ − μ₂|² + Σ (s₁ − s₂)² when the covariances share their axes."""
    one = gaussian([0, 1, 2], torch.diag(torch.tensor([1.0, 4.0, 0.0])))
    other = gaussian([1, 1, 0], torch.diag(torch.tensor([9.0, 1.0, 0.25])))
    assert metrics.frechet_distance(one, other) == pytest.approx(5 + 4 + 1 + 0.25)


def test_frechet_distance_against_the_matrix_root(generator: torch.Generator) -> None:
    from scipy.linalg import sqrtm

    a, b = (torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) for _ in range(2))
    one, other = metrics.moments(a), metrics.moments(b)
    root = np.real(sqrtm((one.covariance @ other.covariance).numpy()))
    trace = np.trace(one.covariance.numpy() + other.covariance.numpy() - 2 * root)
    expected = float((one.mean - other.mean).square().sum()) + trace
    assert metrics.frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    assert metrics.frechet_distance(one, other) == pytest.approx(metrics.frechet_distance(other, one))


def test_moments_are_numpys(generator: torch.Generator) -> None:
    features = torch.randn(50, 4, generator=generator)
    ours = metrics.moments(features)
    np.testing.assert_allclose(ours.covariance.numpy(), np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(ours.mean.numpy(), features.double().numpy().mean(0), rtol=1e-10)


def brute_force(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float]:
    radii = []
    for i in range(len(real)):
        others = sorted(math.dist(real[i].tolist(), real[j].tolist()) for j in range(len(real)) if j != i)
        radii.append(others[k - 1])
    inside = [
        [math.dist(f.tolist(), r.tolist()) <= radius for r, radius in zip(real, radii, strict=True)] for f in fake
    ]
    density = sum(map(sum, inside)) / (k * len(fake))
    return density, sum(any(column) for column in zip(*inside, strict=True)) / len(real)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(0, 3), k=st.integers(1, 5))
def test_density_and_coverage_against_brute_force(seed: int, shift: float, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    real, fake = (torch.randn(n, 3, generator=generator) + s for n, s in ((30, 0.0), (25, shift)))
    radii = metrics.neighbour_radii(real, k, rows_at_once=7)
    assert metrics.density_and_coverage(real, radii, fake, k, rows_at_once=4) == pytest.approx(
        brute_force(real, fake, k)
    )


def test_density_and_coverage_of_the_same_distribution_and_of_a_collapsed_one(generator: torch.Generator) -> None:
    real, alike = torch.randn(2, 1000, 8, generator=generator)
    radii = metrics.neighbour_radii(real)
    density, coverage = metrics.density_and_coverage(real, radii, alike)
    assert density == pytest.approx(1, abs=0.15)
    assert coverage > 0.9
    density, coverage = metrics.density_and_coverage(real, radii, real[:1].expand(1000, 8))
    assert coverage < 0.05  # all samples the same: nothing is covered


def test_blur_keeps_the_ink_and_spreads_it() -> None:
    dot = torch.zeros(1, 1, 28, 28)
    dot[..., 14, 14] = 1
    blurred = metrics.blurred(dot, 1.0)
    assert blurred.sum().item() == pytest.approx(1, rel=1e-5)
    assert blurred[0, 0, 14, 14].item() == pytest.approx(1 / (2 * math.pi), rel=0.02)
    torch.testing.assert_close(blurred, blurred.transpose(2, 3))


def test_prior_codes_come_from_the_models_own_prior() -> None:
    codes = samplers.prior_codes(Normal(torch.tensor(1.0), torch.tensor(2.0)), 50_000, 3, seed=0)
    torch.testing.assert_close(codes.mean(0), torch.ones(3), atol=0.04, rtol=0)
    torch.testing.assert_close(codes.std(0), 2 * torch.ones(3), atol=0.04, rtol=0)


def test_mixture_codes_fill_the_clusters_the_codes_have(generator: torch.Generator) -> None:
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    which = torch.randint(3, (6000,), generator=generator)
    means = centres[which] + 0.1 * torch.randn(6000, 2, generator=generator)
    mixture = samplers.fitted_mixture(means, seed=0)
    codes = samplers.mixture_codes(mixture, 3000, seed=0)
    distance = torch.cdist(codes, centres).min(1)
    assert distance.values.max() < 1
    assert distance.indices.bincount(minlength=3).min() > 850
    assert torch.equal(codes, samplers.mixture_codes(mixture, 3000, seed=0))
    assert (distance.indices[:1000] != distance.indices[0]).any()  # not sorted by component
