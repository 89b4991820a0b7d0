"""Every fast twin equals the plain formula in value and gradient."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from common import fast as switch
from vae import fast, models, objective, priors

PRIORS = [(0.0, 1.0), (1.0, 2.0), (-3.0, 0.5)]
PAIRS = [
    (priors.kl_divergence, fast.kl_divergence),
    (priors.mixture_log_density, fast.mixture_log_density),
    (objective.codes_and_kl, fast.codes_and_kl),
    (objective.bernoulli_log_likelihood, fast.bernoulli_log_likelihood),
]


def normal(mean: float, std: float) -> Normal:
    return Normal(torch.tensor(mean), torch.tensor(std))


def require_equal(
    plain: Callable[..., Tensor], twin: Callable[..., Tensor], wanted: Sequence[Tensor], rest: Sequence[object]
) -> None:
    """Checks values, and gradients by the `wanted` tensors, in float32 as outside of and within autocast."""
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = [as_tuple(function(*wanted, *rest)) for function in (plain, twin)]
        generator = torch.Generator().manual_seed(7)
        pulls = [torch.randn(value.shape, generator=generator) for value in values[0]]
        assert all(value.dtype == torch.float32 for value in values[1])
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
        losses = [sum((v * p).sum() for v, p in zip(value, pulls, strict=True)) for value in values]
        gradients = [torch.autograd.grad(loss, wanted) for loss in losses]
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("prior", PRIORS)
def test_divergence(prior: tuple[float, float], generator: torch.Generator) -> None:
    mean, log_variance = torch.randn(2, 6, 3, generator=generator).requires_grad_().unbind()
    require_equal(priors.kl_divergence.__wrapped__, fast.kl_divergence, (mean, log_variance), (normal(*prior),))


@pytest.mark.parametrize("prior", PRIORS)
def test_codes_and_divergence(prior: tuple[float, float], generator: torch.Generator) -> None:
    mean, log_variance, noise = torch.randn(3, 6, 3, generator=generator).unbind()
    wanted = (mean.requires_grad_(), log_variance.requires_grad_())
    require_equal(objective.codes_and_kl.__wrapped__, fast.codes_and_kl, wanted, (noise, normal(*prior)))


@pytest.mark.parametrize("prior", PRIORS)
def test_codes_and_divergence_against_torch_distributions(
    prior: tuple[float, float], generator: torch.Generator
) -> None:
    """The plain formulas are ours too; these are not."""
    mean, log_variance, noise, pull = torch.randn(4, 6, 3, generator=generator).unbind()
    mean, log_variance = mean.requires_grad_(), log_variance.requires_grad_()
    codes, kl = fast.codes_and_kl(mean, log_variance, noise, normal(*prior))
    gradients = torch.autograd.grad((codes * pull).sum() + 3 * kl, (mean, log_variance))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    derived = torch.distributions.kl_divergence(posterior, normal(*prior)).sum(1).mean()
    torch.testing.assert_close(kl, derived)
    loss = ((mean + posterior.stddev * noise) * pull).sum() + 3 * derived
    torch.testing.assert_close(gradients, torch.autograd.grad(loss, (mean, log_variance)))


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_mixture_log_density(spread: float, generator: torch.Generator) -> None:
    codes, means = spread * torch.randn(6, 3, generator=generator), spread * torch.randn(9, 3, generator=generator)
    log_variances = torch.randn(9, 3, generator=generator)
    wanted = tuple(tensor.requires_grad_() for tensor in (codes, means, log_variances))
    require_equal(priors.mixture_log_density.__wrapped__, fast.mixture_log_density, wanted, ())


def test_mixture_of_narrow_posteriors_far_from_0(generator: torch.Generator) -> None:
    """Deviations of 0.03, codes at 4: squares of 18,000 are taken apart, a tenth of a nat stays right."""
    means = 4 * torch.randn(9, 16, generator=generator).sign()
    log_variances = torch.full((9, 16), 2 * math.log(0.03))
    codes = means[:5] + 0.03 * torch.randn(5, 16, generator=generator)
    plain = priors.mixture_log_density.__wrapped__(*(t.double() for t in (codes, means, log_variances)))
    torch.testing.assert_close(fast.mixture_log_density(codes, means, log_variances).double(), plain, atol=0.1, rtol=0)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("grey", [False, True])
def test_bernoulli_log_likelihood(scale: float, grey: bool, generator: torch.Generator) -> None:
    logits = (scale * torch.randn(5, 1, 28, 28, generator=generator)).requires_grad_()
    images = torch.rand(5, 1, 28, 28, generator=generator)
    images = images if grey else images.round()
    plain, twin = objective.bernoulli_log_likelihood.__wrapped__, fast.bernoulli_log_likelihood
    require_equal(plain, twin, (logits,), (images,))


def test_certain_pixels_give_finite_values_and_gradients() -> None:
    """All factors ½ (the smallest product), and logits far beyond the range in which a probability differs from 1."""
    for value in (0.0, 200.0, -200.0):
        logits = torch.full((2, 1, 28, 28), value, requires_grad=True)
        images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand_as(logits)
        require_equal(
            objective.bernoulli_log_likelihood.__wrapped__, fast.bernoulli_log_likelihood, (logits,), (images,)
        )
        assert fast.bernoulli_log_likelihood(logits, images).isfinite().all()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["fc", "conv"])
def test_one_training_step(
    prior: tuple[float, float], precision: torch.dtype, arch: models.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and the gradients of all weights, as `vae/train.py` computes them, with the switch on and off."""
    torch.manual_seed(0)
    model = models.build(arch, 3, hidden=(32,), channels=8)
    images = torch.rand(6, 1, 28, 28).round()
    steps = []
    for plain in (False, True):
        monkeypatch.setattr(switch, "PLAIN", plain)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            terms = objective.training_terms(model, images, normal(*prior), torch.Generator().manual_seed(3))
        steps.append((*terms, *torch.autograd.grad(sum(terms), list(model.parameters()))))
    # In bfloat16 a difference in the last digit of a code may round the next product the other way.
    rounding = {"rtol": 1e-4, "atol": 1e-4} if precision == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(steps[0], steps[1], **rounding)


@pytest.mark.parametrize(("chosen", "twin"), PAIRS)
def test_the_twin_is_called_unless_the_switch_says_plain(
    chosen: Callable[..., object], twin: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chosen.__wrapped__  # type: ignore[attr-defined]
    assert chosen.__name__ == plain.__name__ == twin.__name__
    assert chosen.__doc__ == plain.__doc__
    arguments = (torch.randn(2, 784, requires_grad=True), torch.rand(2, 784))
    if chosen is priors.mixture_log_density:
        arguments = (torch.randn(2, 5, requires_grad=True), torch.rand(3, 5), torch.rand(3, 5))
    elif chosen is not objective.bernoulli_log_likelihood:
        arguments += (normal(0, 1),) if chosen is priors.kl_divergence else (torch.rand(2, 784), normal(0, 1))
    for is_plain, function in ((False, twin), (True, plain)):
        monkeypatch.setattr(switch, "PLAIN", is_plain)
        expected, got = (as_tuple(call(*arguments)) for call in (function, chosen))
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
        assert [type(value.grad_fn) for value in got] == [type(value.grad_fn) for value in expected]
