"""The objective against torch.distributions, and what each likelihood sees of an image."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from common import data
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
