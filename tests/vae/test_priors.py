"""The divergence against torch.distributions and Monte Carlo; the map between priors changes no bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vae import bounds, models, priors

finite = st.floats(-4, 4)


def normal(mean: float, std: float) -> Normal:
    return Normal(torch.tensor(mean), torch.tensor(std))


@given(mean=finite, log_variance=finite, prior_mean=finite, prior_std=st.floats(0.1, 5))
def test_divergence_is_torchs(mean: float, log_variance: float, prior_mean: float, prior_std: float) -> None:
    prior = normal(prior_mean, prior_std)
    ours = priors.kl_divergence(torch.tensor(mean), torch.tensor(log_variance), prior)
    theirs = kl_divergence(normal(mean, math.exp(log_variance / 2)), prior)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-4)


def test_divergence_by_monte_carlo(generator: torch.Generator) -> None:
    posterior, prior = normal(0.3, 0.7), normal(1.0, 2.0)
    draws = 0.3 + 0.7 * torch.randn(400_000, generator=generator)
    estimate = (posterior.log_prob(draws) - prior.log_prob(draws)).mean()
    exact = priors.kl_divergence(torch.tensor(0.3), torch.tensor(2 * math.log(0.7)), prior)
    assert exact.item() == pytest.approx(estimate.item(), abs=0.005)


def test_divergence_is_zero_at_the_prior_alone() -> None:
    prior = normal(1.0, 2.0)
    assert priors.kl_divergence(torch.tensor(1.0), torch.tensor(2 * math.log(2)), prior).item() == pytest.approx(0)
    assert priors.kl_divergence(torch.tensor(0.0), torch.tensor(0.0), prior).item() > 0.3


def test_gradient_of_the_divergence() -> None:
    """d/dm = (m − μ₀)/σ₀², d/d ln s² = (s²/σ₀² − 1)/2, by hand."""
    mean, log_variance = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.3, -0.8))
    priors.kl_divergence(mean, log_variance, normal(1.0, 2.0)).backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert mean.grad.item() == pytest.approx((0.3 - 1) / 4)
    assert log_variance.grad.item() == pytest.approx((math.exp(-0.8) / 4 - 1) / 2)


@pytest.mark.parametrize("arch", ["fc", "conv"])
@pytest.mark.parametrize(("mean", "std"), [(1.0, 2.0), (-3.0, 0.5)])
def test_mapped_weights_give_the_same_bounds_under_the_other_prior(
    arch: models.Architecture, mean: float, std: float, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    model = models.build(arch, 3, hidden=(32,), channels=8)
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    before = bounds.evaluate_bounds(model, images, normal(0.0, 1.0), samples=7, seed=0)
    mapped = models.build(arch, 3, hidden=(32,), channels=8)
    mapped.load_state_dict(priors.mapped_to(model.state_dict(), normal(mean, std)))
    after = bounds.evaluate_bounds(mapped, images, normal(mean, std), samples=7, seed=0)
    unmapped = bounds.evaluate_bounds(model, images, normal(mean, std), samples=7, seed=0)
    assert after == pytest.approx(before, rel=1e-5)
    assert abs(unmapped["kl"] - before["kl"]) > 0.1  # the map is what makes them the same


def test_map_leaves_its_argument_alone() -> None:
    weights = models.build("fc", 2, hidden=(8,), channels=8).state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    priors.mapped_to(weights, normal(1.0, 2.0))
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
