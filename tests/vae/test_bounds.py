"""The bounds against written-out loops, and against a model whose likelihood is known."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from common.device import random_stream
from vae import models
from vae.bounds import active_units, evaluate_bounds
from vae.models import VAE

STANDARD = Normal(torch.tensor(0.0), torch.tensor(1.0))


def model() -> VAE:
    torch.manual_seed(0)
    return models.build("fc", 3, hidden=(32,), channels=8)


def some_images(count: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def naive_bounds(vae: VAE, images: Tensor, prior: Normal, noise: Tensor) -> dict[str, float]:
    """Image by image, code by code, with torch.distributions; noise (codes, images, latent)."""
    elbos, kls, reconstructions, nlls = [], [], [], []
    for index, image in enumerate(images):
        x = image[None].float() / 255
        mean, log_variance = vae.encode(x)
        posterior = Normal(mean[0], (0.5 * log_variance[0]).exp())
        weights, likelihoods = [], []
        for code_noise in noise[:, index]:
            code = posterior.mean + posterior.stddev * code_noise
            likelihood = Bernoulli(logits=vae.decode(code[None])[0]).log_prob(x[0]).sum()
            likelihoods.append(likelihood.item())
            weights.append(likelihood + prior.log_prob(code).sum() - posterior.log_prob(code).sum())
        reconstructions.append(-sum(likelihoods) / len(likelihoods))
        kls.append(torch.distributions.kl_divergence(posterior, prior).sum().item())
        elbos.append(-reconstructions[-1] - kls[-1])
        nlls.append(-(torch.stack(weights).logsumexp(0).item() - math.log(len(weights))))
    columns = {"elbo": elbos, "reconstruction": reconstructions, "kl": kls, "nll": nlls}
    return {name: sum(values) / len(values) for name, values in columns.items()}


@pytest.mark.parametrize("prior", [STANDARD, Normal(torch.tensor(1.0), torch.tensor(2.0))])
def test_bounds_against_loops_over_images_and_codes(prior: Normal) -> None:
    vae, images = model(), some_images(4).round().clamp(0, 1) * 255
    fast = evaluate_bounds(vae, images, prior, samples=6, seed=3)
    generator = random_stream(3, "codes of the bounds")
    noise = torch.randn((6, 4, 3), generator=generator)
    with torch.no_grad():
        assert fast == pytest.approx(naive_bounds(vae, images, prior, noise), rel=1e-5)


def test_bounds_do_not_depend_on_how_many_codes_are_decoded_at_once_in_expectation() -> None:
    vae, images = model(), some_images(30)
    whole, parts = (evaluate_bounds(vae, images, STANDARD, samples=50, seed=0, decoded_at_once=n) for n in (5000, 70))
    assert parts["kl"] == pytest.approx(whole["kl"], rel=1e-6)
    for name in ("elbo", "nll"):
        assert parts[name] == pytest.approx(whole[name], rel=2e-3)


class LinearGaussian(VAE):
    """x = 0.5 + Wz + noise: likelihood and posterior are known. `widen` makes the posterior wrong by that factor."""

    def __init__(self, widen: float = 1.0, latent: int = 2, noise: float = 0.1) -> None:
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity(), 4, latent, learn_noise=True)
        assert self.log_noise is not None
        self.log_noise.data = torch.tensor(math.log(noise))
        self.loadings = 0.06 * torch.randn(784, latent, generator=torch.Generator().manual_seed(0)) / math.sqrt(latent)
        precision = torch.eye(latent) + self.loadings.T @ self.loadings / noise**2
        # The posterior of independent dimensions: make the loadings orthogonal, so that it is diagonal.
        vectors, values, _ = torch.linalg.svd(self.loadings, full_matrices=False)
        self.loadings = vectors * values
        precision = torch.diag(torch.eye(latent) + self.loadings.T @ self.loadings / noise**2)
        self.variance, self.noise, self.widen = 1 / precision, noise, widen

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.variance * ((images.flatten(1) - 0.5) @ self.loadings) / self.noise**2
        return mean, (self.widen**2 * self.variance).log().expand_as(mean)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.logit(0.5 + codes @ self.loadings.T, eps=1e-6).view(-1, 1, 28, 28)

    def nll(self, images: Tensor) -> float:
        covariance = self.loadings @ self.loadings.T + self.noise**2 * torch.eye(784)
        marginal = MultivariateNormal(torch.full((784,), 0.5, dtype=torch.float64), covariance.double())
        return -float(marginal.log_prob(images.flatten(1).double()).mean())

    def images(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        codes = torch.randn(count, self.loadings.shape[1], generator=generator)
        x = 0.5 + codes @ self.loadings.T + self.noise * torch.randn(count, 784, generator=generator)
        return (255 * x).round().clamp(0, 255).to(torch.uint8).view(count, 1, 28, 28)


def test_bound_of_a_linear_gaussian_model_with_its_exact_posterior_is_its_likelihood() -> None:
    exact = LinearGaussian()
    images = exact.images(40)
    truth = exact.nll(images.float() / 255)
    bounds = evaluate_bounds(exact, images, STANDARD, samples=1, seed=0)
    assert bounds["nll"] == pytest.approx(truth, abs=0.02)  # for any code p(x, z)/q(z|x) is p(x)
    many = evaluate_bounds(exact, images, STANDARD, samples=400, seed=0)
    assert -many["elbo"] == pytest.approx(truth, abs=0.1)


@pytest.mark.slow
def test_bound_tightens_with_more_codes_towards_the_likelihood() -> None:
    wrong = LinearGaussian(widen=2.0)
    images = wrong.images(40)
    truth = wrong.nll(images.float() / 255)
    bounds = [evaluate_bounds(wrong, images, STANDARD, samples=k, seed=0) for k in (1, 10, 2000)]
    slack = [bound["nll"] - truth for bound in bounds]
    assert slack[0] > slack[1] > slack[2] > -0.02
    assert slack[0] > 0.5
    assert slack[2] < 0.05
    assert all(-bound["elbo"] > bound["nll"] - 0.3 for bound in bounds)


def test_active_units_are_counted_in_units_of_the_prior(generator: torch.Generator) -> None:
    means = torch.randn(5000, 4, generator=generator) * torch.tensor([1.0, 0.3, 0.15, 0.01])
    assert active_units(means, STANDARD) == 3
    assert active_units(means, Normal(torch.tensor(1.0), torch.tensor(2.0))) == 2


def test_evaluation_leaves_mode_and_global_random_state_alone() -> None:
    vae = model().train()
    state = torch.get_rng_state()
    evaluate_bounds(vae, some_images(), STANDARD, samples=2, seed=0)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)
