"""What a VAE is trained on, and the bounds it is judged by: ELBO at β = 1 and the importance-weighted likelihood.

`--likelihood` says what a pixel is taken for; all are in nats per image (784 pixels, natural logarithm):

- `dynamic`: a pixel is black or white, drawn anew each time it is seen with its grey value as the probability of white
  (Salakhutdinov & Murray 2008). Bernoulli likelihood; test images are drawn once, the same for every run. The bound is
  one on the log-probability of binary images and compares with published ones for "dynamic" or "stochastic" MNIST.
- `static`: the same draw made once for the training images too, so that each keeps its one binary version. Not
  Larochelle's fixed draw, which is a download; the bounds are close to those but not the same.
- `bernoulli`: grey values themselves in the cross-entropy, as most example code does. No density of grey values
  (it does not integrate to one), so its "NLL" compares with nothing but itself.
- `gaussian`: grey values in [0, 1] with Gaussian noise of one learned deviation (Rybkin et al. 2021). A density, so it
  may exceed one and the bound may be negative; compares with other densities of pixels in [0, 1] only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Normal

from common.data import Split
from common.device import random_stream
from vae.models import VAE
from vae.priors import kl_divergence

Likelihood = Literal["bernoulli", "dynamic", "static", "gaussian"]


def pixels(images: Tensor) -> Tensor:
    """Returns uint8 images `(B, 1, 28, 28)` as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def drawn_binary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns float32 images of 0 and 1, each pixel 1 with its grey value as probability, for uint8 images."""
    uniform = torch.rand(images.shape, device=images.device, generator=generator)
    return (255 * uniform < images).float()  # never for 0, always for 255: uniform is below 1


def binary_once(split: Split, purpose: str) -> Split:
    """Returns the split with black and white images, drawn once and the same in every run."""
    generator = random_stream(0, f"binary {purpose}")
    binary = drawn_binary(split.images.cpu(), generator).mul_(255).to(torch.uint8)
    return Split(binary.to(split.images.device), split.labels)


class _BernoulliLogLikelihood(torch.autograd.Function):
    """Σ over pixels of x·l − ln(1 + e^l), for logits l and images x `(B, pixels)`, with one logarithm for 98 pixels.

    ln(1 + e^l) = max(l, 0) − ln max(p, 1 − p) with p = σ(l). The logarithm of a product is taken in place of the sum of
    logarithms, which are the slowest of torch's vector functions on a CPU: every factor is at least ½, so 98 of them
    stay within float32. Twice as fast as `binary_cross_entropy_with_logits`, to the same digits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, images: Tensor) -> Tensor:
        means = torch.sigmoid(logits)
        ctx.save_for_backward(means, images)
        likelier = torch.rsub(means, 1)
        torch.maximum(likelier, means, out=likelier)  # in place: a tensor fewer to move between cores
        logarithms = likelier.view(len(logits), -1, 98).prod(2).log_().sum(1)
        # Not vecdot: autocast would have it in bfloat16, half a nat off.
        total: Tensor = (images * logits).sum(1) - logits.clamp(min=0).sum(1) + logarithms
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        means, images = ctx.saved_tensors
        return (images - means).mul_(gradient[:, None]), None


def log_likelihood(model: VAE, logits: Tensor, images: Tensor) -> Tensor:
    """Returns log p(x|z) in nats, `(B,)`, for logits and images `(B, 1, 28, 28)`; `images` broadcasts over logits."""
    if model.log_noise is None:
        total: Tensor = _BernoulliLogLikelihood.apply(logits.flatten(1), images.expand_as(logits).flatten(1))
        return total
    distribution = Normal(torch.sigmoid(logits), model.log_noise.exp())
    log_probability: Tensor = distribution.log_prob(images).flatten(1).sum(1)
    return log_probability


class _CodeAndDivergence(torch.autograd.Function):
    """One code for each posterior, m + s·ε (Kingma & Welling 2014, Eq. 10), and the KL's mean over images.

    With its gradient written out: on tensors this small the cost is the number of operations, and this has half as many
    as what autograd derives.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_variance: Tensor, noise: Tensor, prior: Normal) -> tuple[Tensor, Tensor]:
        """Returns codes `(B, latent)` and a scalar for the posterior's two and the noise ε, all `(B, latent)`."""
        deviation = (0.5 * log_variance).exp_()
        ctx.save_for_backward(mean, deviation, noise)
        ctx.prior = prior
        kl = kl_divergence(mean, log_variance, prior).sum() / len(mean)
        return torch.addcmul(mean, deviation, noise), kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_codes: Tensor, for_kl: Tensor) -> tuple[Tensor | None, ...]:
        mean, deviation, noise = ctx.saved_tensors
        share = for_kl / len(mean)
        precision = share / ctx.prior.variance
        for_mean = torch.addcmul(for_codes, mean - ctx.prior.mean, precision)
        # The chain rule through s = exp(½ ln s²): half of s·(ε·∂codes + s·∂KL), and −½ from the KL's −½ ln s².
        for_log_variance = torch.addcmul(precision * deviation, for_codes, noise).mul_(deviation).sub_(share).mul_(0.5)
        return for_mean, for_log_variance, None, None


def training_terms(model: VAE, images: Tensor, prior: Normal, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns reconstruction error −E log p(x|z) (one code an image) and KL, both in nats, means over the batch."""
    mean, log_variance = model.encode(images)
    noise = torch.randn(mean.shape, device=mean.device, generator=generator)
    codes, kl = _CodeAndDivergence.apply(mean, log_variance, noise, prior)
    return -log_likelihood(model, model.decode(codes), images).mean(), kl


def penalty(kl: Tensor, beta: float, capacity: float | None, warm: float) -> Tensor:
    """Returns what the loss adds to the reconstruction error for `kl`; `warm` rises from 0 to 1 during the warm-up.

    β·KL with β growing during the warm-up (Higgins et al. 2017, Eq. 4; Bowman et al. 2016), or β·|KL − C| with the
    capacity C growing (Burgess et al. 2018, Eq. 8, where β is called γ).
    """
    if capacity is not None:
        return beta * (kl - warm * capacity).abs()
    return warm * beta * kl


@torch.inference_mode()
def evaluate_bounds(
    model: VAE, images: Tensor, prior: Normal, *, samples: int, seed: int, decoded_at_once: int = 500
) -> dict[str, float]:
    """Returns `elbo`, `reconstruction`, `kl` and `nll` in nats, means over uint8 `images`; always at β = 1.

    `elbo` = −(`reconstruction` + `kl`), the reconstruction error averaged over `samples` codes an image, the KL in
    closed form. `nll` is −log 1/K Σ p(x|z)p(z)/q(z|x) over the same K codes (Burda et al. 2016, Eq. 8): an upper bound
    on −log p(x) whose slack shrinks as K grows. Computed in float32 (on CUDA with TensorFloat32 products) whatever the
    training used, `decoded_at_once` codes at a time.
    """
    device = images.device
    generator = random_stream(seed, "codes of the bounds", device)
    at_once = min(samples, max(1, decoded_at_once // min(len(images), 100)))  # codes an image in one call
    sums = {"reconstruction": 0.0, "kl": 0.0, "nll": 0.0}
    training = model.training
    model.eval()
    for batch in images.split(max(1, decoded_at_once // at_once)):
        x = pixels(batch)
        mean, log_variance = model.encode(x)
        deviation = (0.5 * log_variance).exp()
        log_total = torch.full((len(x),), -math.inf, device=device)
        for start in range(0, samples, at_once):
            count = min(at_once, samples - start)
            noise = torch.randn((count, *mean.shape), device=device, generator=generator)  # (codes, B, latent)
            codes = mean + deviation * noise
            logits = model.decode(codes.flatten(0, 1))
            likelihood = log_likelihood(model, logits, x.expand(count, *x.shape).flatten(0, 1)).view(count, -1)
            log_prior = prior.log_prob(codes).sum(2)
            log_posterior = -(0.5 * (noise * noise + log_variance + math.log(2 * math.pi))).sum(2)
            weights = likelihood + log_prior - log_posterior  # (codes, B), log p(x, z)/q(z|x)
            log_total = torch.logaddexp(log_total, torch.logsumexp(weights, 0))
            sums["reconstruction"] -= float(likelihood.sum(dtype=torch.float64)) / samples
        sums["kl"] += float(kl_divergence(mean, log_variance, prior).sum(dtype=torch.float64))
        sums["nll"] -= float((log_total - math.log(samples)).sum(dtype=torch.float64))
    model.train(training)
    bounds = {name: value / len(images) for name, value in sums.items()}
    return {"elbo": -(bounds["reconstruction"] + bounds["kl"]), **bounds}


@torch.inference_mode()
def posterior_means(model: VAE, images: Tensor, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Returns the posterior's mean and deviation, `(N, latent)`, for all uint8 images, in float32."""
    encoded = [model.encode(pixels(batch)) for batch in images.split(batch_size)]
    means, log_variances = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return means, (0.5 * log_variances).exp()


@torch.inference_mode()
def decoded(model: VAE, codes: Tensor, batch_size: int = 1000) -> Tensor:
    """Returns the mean images `(N, 1, 28, 28)` in [0, 1] that the decoder makes of codes `(N, latent)`."""
    return torch.cat([torch.sigmoid(model.decode(batch)) for batch in codes.split(batch_size)])


def active_units(means: Tensor, prior: Normal) -> int:
    """Returns how many code dimensions vary with the image: Var E[z|x] > 0.01 σ₀² (Burda et al. 2016, section 5.2)."""
    return int((means.var(0) > 0.01 * prior.variance).sum())


Observe = Callable[[Tensor, torch.Generator], Tensor]


def observer(likelihood: Likelihood) -> Observe:
    """Returns the function from uint8 training images to what the model sees of them in one step."""
    return drawn_binary if likelihood == "dynamic" else lambda images, generator: pixels(images)
