"""Likelihoods and bounds against torch.distributions, written-out loops, and a model whose likelihood is known."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from common.data import Split
from vae import models, objective
from vae.models import VAE

STANDARD = Normal(torch.tensor(0.0), torch.tensor(1.0))


def model(learn_noise: bool = False) -> VAE:
    torch.manual_seed(0)
    return models.build("fc", 3, hidden=(32,), channels=8, learn_noise=learn_noise)


def some_images(count: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_bernoulli_log_likelihood(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(5, 1, 28, 28, generator=generator)
    x = (torch.rand(5, 1, 28, 28, generator=generator) < 0.5).float()
    expected = Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(objective.log_likelihood(model(), logits, x), expected)


def test_the_likelihood_is_float32_under_autocast(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(5, 1, 28, 28, generator=generator)
    x = (torch.rand(5, 1, 28, 28, generator=generator) < 0.5).float()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = objective.log_likelihood(model(), logits, x)
    torch.testing.assert_close(autocast, objective.log_likelihood(model(), logits, x))


def test_gaussian_log_likelihood(generator: torch.Generator) -> None:
    noisy = model(learn_noise=True)
    logits, x = torch.randn(5, 1, 28, 28, generator=generator), torch.rand(5, 1, 28, 28, generator=generator)
    assert noisy.log_noise is not None
    expected = Normal(logits.sigmoid(), noisy.log_noise.exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(objective.log_likelihood(noisy, logits, x), expected)


def test_bernoulli_of_grey_values_is_the_mean_over_drawn_ones(generator: torch.Generator) -> None:
    """What `bernoulli` and `dynamic` share: E_b log p(b) over pixels drawn from grey x is the cross-entropy."""
    grey = some_images(1)
    logits = torch.randn(1, 1, 28, 28, generator=generator)
    drawn = objective.drawn_binary(grey.expand(20_000, -1, -1, -1), generator)
    mean = objective.log_likelihood(model(), logits.expand_as(drawn), drawn).mean()
    exact = objective.log_likelihood(model(), logits, objective.pixels(grey))
    assert mean.item() == pytest.approx(exact.item(), abs=0.5)


def test_binary_pixels_have_their_grey_value_as_probability(generator: torch.Generator) -> None:
    grey = torch.tensor([0, 1, 51, 128, 254, 255], dtype=torch.uint8).view(1, 1, 1, 6).expand(200_000, 1, 1, 6)
    drawn = objective.drawn_binary(grey, generator)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean((0, 1, 2)), grey[0, 0, 0] / 255, atol=0.004, rtol=0)
    assert drawn[..., 0].max() == 0
    assert drawn[..., 5].min() == 1


def test_one_binary_version_for_all_runs_and_another_for_each_split() -> None:
    split = Split(some_images(), torch.zeros(12, dtype=torch.int64))
    one, again, other = (objective.binary_once(split, purpose) for purpose in ("test", "test", "train"))
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert set(one.images.unique().tolist()) == {0, 255}


def test_training_terms_are_the_mean_over_images_of_sums_over_pixels(generator: torch.Generator) -> None:
    """The trap: a mean over pixels would make the KL 784 times too heavy and collapse the code."""
    vae, x = model(), (some_images().float() / 255).round()
    reconstruction, kl = objective.training_terms(vae, x, STANDARD, torch.Generator().manual_seed(5))
    mean, log_variance = vae.encode(x)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    logits = vae.decode(mean + (0.5 * log_variance).exp() * noise)
    by_hand = -sum(Bernoulli(logits=row).log_prob(image).sum().item() for row, image in zip(logits, x, strict=True))
    assert reconstruction.item() == pytest.approx(by_hand / 12, rel=1e-5)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    assert kl.item() == pytest.approx(
        torch.distributions.kl_divergence(posterior, STANDARD).sum().item() / 12, rel=1e-5
    )


@pytest.mark.parametrize("prior", [STANDARD, Normal(torch.tensor(1.0), torch.tensor(2.0))])
def test_gradients_of_code_and_divergence_are_those_autograd_derives(prior: Normal) -> None:
    generator = torch.Generator().manual_seed(2)
    mean, log_variance, noise, pull = torch.randn(4, 6, 3, generator=generator).unbind()
    mean, log_variance = mean.requires_grad_(), log_variance.requires_grad_()
    codes, kl = objective._CodeAndDivergence.apply(mean, log_variance, noise, prior)
    gradients = torch.autograd.grad((codes * pull).sum() + 3 * kl, (mean, log_variance))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    derived = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(kl, derived)
    loss = ((mean + posterior.stddev * noise) * pull).sum() + 3 * derived
    torch.testing.assert_close(gradients, torch.autograd.grad(loss, (mean, log_variance)))


@pytest.mark.parametrize(
    ("beta", "capacity", "warm", "expected"),
    [
        (1, None, 1, 10),
        (4, None, 1, 40),
        (4, None, 0.25, 10),
        (0, None, 1, 0),
        (3, 4, 1, 18),
        (3, 4, 0.5, 24),
        (3, 12, 1, 6),
    ],
)
def test_penalty(beta: float, capacity: float | None, warm: float, expected: float) -> None:
    assert objective.penalty(torch.tensor(10.0), beta, capacity, warm).item() == pytest.approx(expected)


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
    fast = objective.evaluate_bounds(vae, images, prior, samples=6, seed=3)
    generator = objective.random_stream(3, "codes of the bounds")
    noise = torch.randn((6, 4, 3), generator=generator)
    with torch.no_grad():
        assert fast == pytest.approx(naive_bounds(vae, images, prior, noise), rel=1e-5)


def test_bounds_do_not_depend_on_how_many_codes_are_decoded_at_once_in_expectation() -> None:
    vae, images = model(), some_images(30)
    whole, parts = (
        objective.evaluate_bounds(vae, images, STANDARD, samples=50, seed=0, decoded_at_once=n) for n in (5000, 70)
    )
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
    bounds = objective.evaluate_bounds(exact, images, STANDARD, samples=1, seed=0)
    assert bounds["nll"] == pytest.approx(truth, abs=0.02)  # for any code p(x, z)/q(z|x) is p(x)
    many = objective.evaluate_bounds(exact, images, STANDARD, samples=400, seed=0)
    assert -many["elbo"] == pytest.approx(truth, abs=0.1)


def test_bound_tightens_with_more_codes_towards_the_likelihood() -> None:
    wrong = LinearGaussian(widen=2.0)
    images = wrong.images(40)
    truth = wrong.nll(images.float() / 255)
    bounds = [objective.evaluate_bounds(wrong, images, STANDARD, samples=k, seed=0) for k in (1, 10, 2000)]
    slack = [bound["nll"] - truth for bound in bounds]
    assert slack[0] > slack[1] > slack[2] > -0.02
    assert slack[0] > 0.5
    assert slack[2] < 0.05
    assert all(-bound["elbo"] > bound["nll"] - 0.3 for bound in bounds)


def test_active_units_are_counted_in_units_of_the_prior(generator: torch.Generator) -> None:
    means = torch.randn(5000, 4, generator=generator) * torch.tensor([1.0, 0.3, 0.15, 0.01])
    assert objective.active_units(means, STANDARD) == 3
    assert objective.active_units(means, Normal(torch.tensor(1.0), torch.tensor(2.0))) == 2


def test_evaluation_leaves_mode_and_global_random_state_alone() -> None:
    vae = model().train()
    state = torch.get_rng_state()
    objective.evaluate_bounds(vae, some_images(), STANDARD, samples=2, seed=0)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)
