"""The objective against torch.distributions, and what each likelihood sees of an image."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from common import data
from common.data import Split
from vae import models, objective, priors
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


def test_what_each_likelihood_sees() -> None:
    device = torch.device("cpu")
    dataset = data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=device)

    def grey(likelihood: objective.Likelihood) -> list[bool]:
        seen = objective.as_seen(dataset, likelihood)
        return [len(split.images.unique()) > 2 for split in (seen.train, seen.validation, seen.test)]

    assert grey("dynamic") == [True, False, False]
    assert grey("static") == [False, False, False]
    assert grey("bernoulli") == grey("gaussian") == [True, True, True]
    generator = torch.Generator().manual_seed(0)
    drawn = objective.observer("dynamic")(dataset.train.images[:5], generator)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert len(objective.observer("bernoulli")(dataset.train.images[:5], generator).unique()) > 2


# -- the importance-weighted bound -------------------------------------------------------------------------------------


def prior_of(vae: VAE, name: str) -> priors.Prior:
    return priors.vamp(vae) if name == "vamp" else Normal(torch.tensor(1.0), torch.tensor(2.0))


def naive_bounds(vae: VAE, x: Tensor, prior: priors.Prior, noise: Tensor) -> list[Tensor]:
    """log 1/K Σ p(x|z)p(z)/q(z|x) of each image in double, code by code; noise (K, images, latent)."""
    bounds = []
    for index, image in enumerate(x):
        mean, log_variance = (of[0] for of in vae.encode(image[None]))
        weights = []
        for code_noise in noise[:, index]:
            code = mean + (0.5 * log_variance).exp() * code_noise
            likelihood = Bernoulli(logits=vae.decode(code[None])[0]).log_prob(image).sum()
            log_q = Normal(mean, (0.5 * log_variance).exp()).log_prob(code).sum()
            weights.append((likelihood + priors.log_density(code, prior) - log_q).double())
        bounds.append(torch.stack(weights).exp().mean().log())
    return bounds


@pytest.mark.parametrize("name", ["gaussian12", "vamp"])
def test_importance_weighted_bound_and_its_gradient_against_the_formula_by_hand(name: str) -> None:
    torch.manual_seed(0)
    vae = models.build("fc", 3, hidden=(32,), channels=8, pseudo_inputs=5 if name == "vamp" else 0)
    x = torch.rand(4, 1, 28, 28).round()
    loss, reconstruction, kl = objective.importance_weighted_terms(
        vae, x, prior_of(vae, name), 6, torch.Generator().manual_seed(2)
    )
    noise = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(2))
    expected = -torch.stack(naive_bounds(vae, x, prior_of(vae, name), noise)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss < reconstruction + kl  # Jensen
    weights = list(vae.parameters())
    ours, theirs = (torch.autograd.grad(of, weights) for of in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(gradient.abs().sum() > 0 for gradient in ours)


@pytest.mark.parametrize("name", ["gaussian12", "vamp"])
def test_one_importance_sample_is_the_elbos_estimate(name: str) -> None:
    torch.manual_seed(0)
    vae = models.build("fc", 3, hidden=(32,), channels=8, pseudo_inputs=5 if name == "vamp" else 0)
    x, prior = torch.rand(4, 1, 28, 28).round(), prior_of(vae, name)
    generators = (torch.Generator().manual_seed(1) for _ in range(2))
    loss, reconstruction, kl = objective.importance_weighted_terms(vae, x, prior, 1, next(generators))
    torch.testing.assert_close(loss, reconstruction + kl)
    elbo = objective.training_terms(vae, x, prior, next(generators))  # the same noise
    torch.testing.assert_close(reconstruction, elbo[0])
    if name == "vamp":
        torch.testing.assert_close(kl, elbo[1])  # a Gaussian's is in closed form there, and the mean of this one


def test_importance_weighted_bound_rises_with_the_number_of_codes() -> None:
    """In expectation (Burda et al. 2016, theorem 1): means over many draws, of a posterior far from the true one."""
    vae, x = model(), torch.rand(1, 1, 28, 28).round().expand(500, -1, -1, -1)
    with torch.no_grad():
        vae.from_code.weight *= 6
        losses = [
            objective.importance_weighted_terms(vae, x, STANDARD, k, torch.Generator().manual_seed(k))[0].item()
            for k in (1, 2, 5, 20)
        ]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert losses[0] - losses[3] > 0.5


def test_both_objectives_see_each_images_own_class() -> None:
    torch.manual_seed(0)
    vae = models.build("fc", 3, hidden=(32,), channels=8, classes=10)
    x, labels = torch.rand(6, 1, 28, 28).round(), torch.tensor([3, 1, 4, 1, 5, 9])

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def terms(labels: Tensor) -> list[Tensor]:
        elbo = objective.training_terms(vae, x, STANDARD, noise(), labels)
        return [*elbo, *objective.importance_weighted_terms(vae, x, STANDARD, 3, noise(), labels)]

    everything = torch.randn(3, 6, 3, generator=noise())
    by_hand = []
    for index, label in enumerate(labels):
        mean, log_variance = vae.encode(x[[index]], label[None])
        for code_noise in everything[:, index]:
            logits = vae.decode(mean + (0.5 * log_variance).exp() * code_noise, label[None])
            by_hand.append(-Bernoulli(logits=logits).log_prob(x[[index]]).sum().item())
    assert terms(labels)[3].item() == pytest.approx(sum(by_hand) / 18, rel=1e-5)
    others = terms((labels + 1) % 10)
    assert all(one != other for one, other in zip(terms(labels), others, strict=True))
