"""The divergence against torch.distributions and Monte Carlo; the map between priors changes no bound."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vae import bounds, models, objective, priors
from vae.models import VAE

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


def test_scaled_steps_move_the_mapped_weights_as_far_as_the_mapping_scales_them() -> None:
    """A first step of Adam is the learning rate in size: σ₀ times it and 1/σ₀ times it where the mapping scales."""
    torch.manual_seed(0)
    plain, scaled = (models.build("fc", 3, hidden=(8,), channels=8) for _ in range(2))
    scaled.load_state_dict(plain.state_dict())
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    priors.scale_steps(models.build("fc", 3, hidden=(8,), channels=8).to("meta"), normal(1.0, 2.0))  # on any device
    priors.scale_steps(scaled, normal(1.0, 2.0))
    images = torch.rand(16, 1, 28, 28)
    for model in (plain, scaled):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12)
        mean, log_variance = model.encode(images)
        (model.decode(mean).square().mean() + (log_variance + mean).mean()).backward()
        optimizer.step()
    moved = [
        {k: w - before[k] for k, w in model.state_dict().items()} for model in (plain, priors.steps_unscaled(scaled))
    ]
    assert moved[1].keys() == before.keys()  # plain weights again
    for name, factor in (("posterior.weight", 2.0), ("posterior.bias", 2.0), ("from_code.weight", 0.5)):
        rows = slice(0, 3) if name.startswith("posterior") else slice(None)  # the rows of the posterior's mean
        torch.testing.assert_close(moved[1][name][rows], factor * moved[0][name][rows], rtol=1e-3, atol=1e-7)
    same = ("posterior.weight", slice(3, 6)), ("from_code.bias", slice(None)), ("decoder.0.weight", slice(None))
    for name, rows in same:
        torch.testing.assert_close(moved[1][name][rows], moved[0][name][rows], rtol=1e-3, atol=1e-7)


def test_a_scaled_model_and_its_copy_become_plain_one_after_the_other() -> None:
    """The copy is the moving average of the weights."""
    model = models.build("fc", 3, hidden=(8,), channels=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    priors.scale_steps(model, normal(1.0, 2.0))
    average = copy.deepcopy(model)
    for one in (priors.steps_unscaled(model), priors.steps_unscaled(average)):
        assert list(one.state_dict()) == list(before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


def test_a_deviation_with_an_exponent_is_set_in_brackets() -> None:
    pairs = [(0, 1), (1, 2), (0, 1e6), (-2, 1e-5)]
    assert [priors.prior_label(*pair) for pair in pairs] == ["N(0, 1)", "N(1, 2²)", "N(0, (1e+06)²)", "N(-2, (1e-05)²)"]


@pytest.mark.parametrize("arch", ["fc", "deep"])
def test_the_class_columns_of_a_conditional_model_are_not_mapped(arch: models.Architecture) -> None:
    model = models.build(arch, 3, hidden=(8,), channels=8, classes=10).eval()
    codes, labels = torch.randn(4, 3), torch.arange(4)
    mapped = models.build(arch, 3, hidden=(8,), channels=8, classes=10).eval()
    mapped.load_state_dict(priors.mapped_to(model.state_dict(), normal(1.0, 2.0)))
    expected = model.decode(codes, labels)
    torch.testing.assert_close(mapped.decode(1 + 2 * codes, labels), expected, rtol=1e-4, atol=1e-4)
    priors.scale_steps(mapped, normal(1.0, 2.0))
    scaled = mapped.decode(1 + 2 * codes, labels)
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=1e-4)
    trained = mapped.from_code.parametrizations["weight"].original  # type: ignore[index, union-attr]
    torch.testing.assert_close(trained, mapped.from_code.weight * torch.tensor([2.0] * 3 + [1.0] * 10))


# -- the VampPrior -----------------------------------------------------------------------------------------------------


def vamp_model(components: int = 7, latent: int = 3, **options: int) -> VAE:
    """A small model whose components lie apart, as after some training."""
    torch.manual_seed(0)
    model = models.build("fc", latent, hidden=(16,), channels=0, pseudo_inputs=components, **options)
    with torch.no_grad():
        model.posterior.weight *= 8
    return model


def torchs_mixture(prior: priors.PosteriorMixture) -> MixtureSameFamily:
    components = Independent(Normal(prior.means, (0.5 * prior.log_variances).exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(prior.means))), components)


def test_the_mixtures_density_is_torchs(generator: torch.Generator) -> None:
    prior = priors.vamp(vamp_model())
    codes = 2 * torch.randn(4, 5, 3, generator=generator)
    torch.testing.assert_close(prior.log_prob(codes), torchs_mixture(prior).log_prob(codes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(priors.log_density(codes, prior), prior.log_prob(codes))


def test_the_components_are_the_posteriors_of_the_pseudo_inputs_with_the_weights_of_now() -> None:
    model = vamp_model()
    assert model.pseudo_inputs is not None
    with torch.no_grad():
        model.posterior.bias += 1
        model.pseudo_inputs *= 100
    shown = torch.sigmoid(model.pseudo_inputs)
    assert 0 <= shown.min() < shown.max() <= 1
    prior = priors.vamp(model)
    torch.testing.assert_close((prior.means, prior.log_variances), model.encode(shown))
    prior.log_prob(torch.randn(5, 3)).sum().backward()
    assert model.pseudo_inputs.grad is not None
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("encoder", "posterior")))


def naive_ratio(mean: Tensor, log_variance: Tensor, code: Tensor, prior: priors.PosteriorMixture) -> float:
    """log q(z|x) − log p(z) of one code, component by component."""
    log_q = Normal(mean, (0.5 * log_variance).exp()).log_prob(code).sum()
    total = 0.0
    for of_mean, of_log_variance in zip(prior.means, prior.log_variances, strict=True):
        density = Normal(of_mean, (0.5 * of_log_variance).exp()).log_prob(code).sum().exp()
        total += density.item() / len(prior.means)
    return log_q.item() - math.log(total)


def test_the_kl_is_estimated_at_the_drawn_code() -> None:
    model, images = vamp_model(), torch.rand(5, 1, 28, 28).round()
    prior = priors.vamp(model)
    _, kl = objective.training_terms(model, images, prior, torch.Generator().manual_seed(3))
    mean, log_variance = model.encode(images)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    codes = mean + (0.5 * log_variance).exp() * noise
    by_hand = [naive_ratio(*row, prior) for row in zip(mean, log_variance, codes, strict=True)]
    assert kl.item() == pytest.approx(sum(by_hand) / 5, rel=1e-4)


def test_a_mixture_of_one_component_is_that_gaussian() -> None:
    """Its KL is then known in closed form, and the estimates must have it as their mean."""
    model, images = vamp_model(1), torch.rand(4, 1, 28, 28).round()
    with torch.no_grad():
        prior = priors.vamp(model)
        mean, log_variance = model.encode(images)
        component = Normal(prior.means, (0.5 * prior.log_variances).exp())
        exact = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), component).sum(1).mean()
        uint8 = images.mul(255).to(torch.uint8)
        estimate = bounds.evaluate_bounds(model, uint8, prior, samples=4000, seed=0)["kl"]
    assert estimate == pytest.approx(exact.item(), rel=0.03, abs=0.02)


def test_the_kl_from_a_mixture_is_that_of_an_integral() -> None:
    """In one dimension, where the integral of q (log q − log p) can be summed up on a grid."""
    model, images = vamp_model(3, latent=1), torch.rand(4, 1, 28, 28).round()
    with torch.no_grad():
        prior = priors.vamp(model)
        mean, log_variance = model.encode(images)
        posterior = Normal(mean, (0.5 * log_variance).exp())
        grid = torch.linspace(-12, 12, 20_001).view(1, -1)  # (1, places)
        log_q, log_p = posterior.log_prob(grid), torchs_mixture(prior).log_prob(grid.view(-1, 1))
        exact = ((log_q - log_p) * log_q.exp()).sum(1).mul(24 / 20_000).mean()
        estimate = bounds.evaluate_bounds(model, images.mul(255).to(torch.uint8), prior, samples=4000, seed=0)["kl"]
    assert exact > 0.01
    assert estimate == pytest.approx(exact.item(), rel=0.03, abs=0.01)


def test_codes_of_the_mixture_have_its_mean_and_variance(generator: torch.Generator) -> None:
    with torch.no_grad():
        prior = priors.vamp(vamp_model())
    codes = priors.codes_of(prior, torch.randn(100_000, 3, generator=generator), generator)
    gaussians = priors.marginals(prior)
    torch.testing.assert_close(codes.mean(0), gaussians.mean, atol=0.02, rtol=0.02)
    torch.testing.assert_close(codes.var(0), gaussians.variance, atol=0.02, rtol=0.03)
    torch.testing.assert_close(torchs_mixture(prior).variance, gaussians.variance)
    assert priors.marginals(normal(1.0, 2.0)).mean == 1


def test_units_of_a_mixture_count_by_its_own_variance() -> None:
    wide = priors.PosteriorMixture(torch.tensor([[-10.0, 0.0], [10.0, 0.0]]), torch.zeros(2, 2))
    assert bounds.active_units(torch.randn(1000, 2) * 0.5, wide) == 1  # 0.25 > 0.01 · 1, but not > 0.01 · 101
