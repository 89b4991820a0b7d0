"""The bounds against written-out loops, and against a model whose likelihood is known."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from common.device import random_stream
from vae import models, priors
from vae.bounds import active_units, decoded, evaluate_bounds, posterior_means, shown_variance, warning_of_collapse
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

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean = self.variance * ((images.flatten(1) - 0.5) @ self.loadings) / self.noise**2
        return mean, (self.widen**2 * self.variance).log().expand_as(mean)

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
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


def test_shown_variance_is_0_of_a_constant_decoder_and_1_of_a_perfect_one() -> None:
    vae, images = model().requires_grad_(False), some_images()
    means, _ = posterior_means(vae, images)
    assert 0 < shown_variance(vae, means, images) < 0.1  # not trained
    vae.from_code.weight.zero_()
    assert shown_variance(vae, means, images) == pytest.approx(0, abs=1e-6)
    logits = torch.logit(images.float() / 255, eps=1e-6)
    vae.decode = lambda codes, labels=None: logits  # type: ignore[method-assign]
    assert shown_variance(vae, means, images) == pytest.approx(1, abs=1e-3)


def test_a_class_that_is_given_does_not_show_that_the_code_is_used() -> None:
    vae, images, labels = (
        models.build("fc", 3, hidden=(32,), channels=8, classes=2),
        some_images(),
        torch.arange(12) % 2,
    )
    vae.requires_grad_(False).eval()
    means, _ = posterior_means(vae, images, labels)
    assert shown_variance(vae, means, images, labels) > 1e-5
    vae.from_code.weight[:, :3] = 0
    by_class = decoded(vae, means, labels)
    assert not torch.equal(by_class[0], by_class[1])
    assert shown_variance(vae, means, images, labels) == pytest.approx(0, abs=1e-6)


def test_what_to_try_is_what_the_settings_allow() -> None:
    told = str(warning_of_collapse(0, 3, 0.0, 0.0, mappable=True, weight=None))
    assert "Try --objective elbo or more --epochs" in told
    assert "--beta" not in told
    told = str(warning_of_collapse(0, 3, 60.0, 0.0, mappable=False))
    assert "far from the prior). Try a lower --learning-rate or more --epochs" in told
    told = str(warning_of_collapse(0, 3, 0.0, 0.0, mappable=False, weight=0.0))
    assert "Try more --epochs or a higher --learning-rate" in told


@pytest.mark.parametrize(
    ("active", "kl", "shown", "told"),
    [
        (3, 20.0, 0.6, None),
        (1, 0.3, 0.02, None),
        (0, 0.001, 0.0, "collapsed: 0 of 3 units are active (KL 0.001 nats"),
        (3, 0.05, 0.5, "the decoder ignores its code (KL 0.05 nats"),
        (3, 20.0, 0.005, "the decoder ignores its code (KL 20 nats; of the images' variance 0.5% shows"),
        (0, 60.0, 0.05, "the codes are far from the prior). Try --initialisation mapped --mapped-rates"),
    ],
)
def test_a_code_that_says_nothing_is_told_with_what_to_try(
    active: int, kl: float, shown: float, told: str | None
) -> None:
    warning = warning_of_collapse(active, 3, kl, shown, mappable=True)
    if told is None:
        assert warning is None
    else:
        assert told in str(warning)
        assert "Try --initialisation mapped" in str(warning) or "Try a smaller --beta" in str(warning)


def test_bounds_of_a_mixture_average_the_kl_over_the_codes() -> None:
    torch.manual_seed(0)
    vae = models.build("fc", 3, hidden=(32,), channels=8, pseudo_inputs=4)
    images = some_images(4).round().clamp(0, 1) * 255
    with torch.no_grad():
        prior = priors.vamp(vae)
        ours = evaluate_bounds(vae, images, prior, samples=6, seed=3)
        noise = torch.randn((6, 4, 3), generator=random_stream(3, "codes of the bounds"))
        x = images.float() / 255
        mean, log_variance = vae.encode(x)
        posterior = Normal(mean, (0.5 * log_variance).exp())
        codes = mean + posterior.stddev * noise
        components = Independent(Normal(prior.means, (0.5 * prior.log_variances).exp()), 1)
        log_prior = MixtureSameFamily(Categorical(torch.ones(4)), components).log_prob(codes)
        ratio = posterior.log_prob(codes).sum(2) - log_prior
        likelihood = torch.stack([Bernoulli(logits=vae.decode(of)).log_prob(x).sum((1, 2, 3)) for of in codes])
    nll = -(torch.logsumexp(likelihood - ratio, 0) - math.log(6)).mean()
    expected = {
        "reconstruction": -likelihood.mean(),
        "kl": ratio.mean(),
        "nll": nll,
        "elbo": (likelihood - ratio).mean(),
    }
    assert ours == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


def test_bounds_of_a_conditional_model_are_those_of_each_class_alone() -> None:
    torch.manual_seed(0)
    vae = models.build("fc", 3, hidden=(32,), channels=8, classes=10)
    images = some_images(1).expand(8, 1, 28, 28)
    labels = torch.arange(8) % 2
    both = evaluate_bounds(vae, images, STANDARD, samples=2000, seed=0, labels=labels)
    alone = [evaluate_bounds(vae, images, STANDARD, samples=2000, seed=1, labels=labels * 0 + c) for c in (0, 1)]
    assert both["kl"] == pytest.approx((alone[0]["kl"] + alone[1]["kl"]) / 2, rel=1e-5)
    middle = (alone[0]["reconstruction"] + alone[1]["reconstruction"]) / 2
    assert both["reconstruction"] == pytest.approx(middle, abs=0.05)
    assert abs(alone[0]["reconstruction"] - alone[1]["reconstruction"]) > 0.5
    many = images.expand(8, 1, 28, 28).repeat(200, 1, 1, 1)
    means, _ = posterior_means(vae, many, labels.repeat(200))  # more than one batch
    assert len(means.unique(dim=0)) == 2
    images_by_class = decoded(vae, means[:1].expand(1600, 3), labels.repeat(200))
    torch.testing.assert_close(images_by_class[0], images_by_class[1598])
    assert not torch.equal(images_by_class[0], images_by_class[1])
