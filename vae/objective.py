"""What a VAE is trained on: the evidence lower bound (ELBO) of Kingma & Welling 2014, and the likelihoods of a pixel.

An image x has a posterior q(z|x) = N(m, s²) over codes z, and a code has a likelihood p(x|z). The ELBO of an image is
E log p(x|z) − KL(q(z|x) ‖ p(z)), here in nats (784 pixels, natural logarithm). `vae/bounds.py` evaluates it.

`--likelihood` says how p(x|z) describes a pixel:

- `dynamic`: a pixel is black or white. It is drawn anew each time it is seen, and its grey value is the probability of
  white (Salakhutdinov & Murray 2008). Bernoulli likelihood; test images are drawn once, the same for every run. The
  bound is one on the log-probability of binary images and compares with published ones for "dynamic" or "stochastic"
  MNIST.
- `static`: the training images are drawn once too, so that each keeps its one binary version. This is not Larochelle's
  fixed draw, which is a download; the bounds are close to those but not the same.
- `bernoulli`: the grey values themselves in the cross-entropy, as most example code has it. This is no density of grey
  values (it does not integrate to one), so its "NLL" compares with nothing but itself.
- `gaussian`: grey values in [0, 1] with Gaussian noise of one learned deviation (Rybkin et al. 2021). A density may
  exceed one, so the bound may be negative; it compares with other densities of pixels in [0, 1] only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from common.data import Dataset, Split
from common.device import random_stream
from common.fast import replaced_by
from vae import fast
from vae.models import VAE
from vae.priors import Prior, kl_divergence, log_density

Likelihood = Literal["bernoulli", "dynamic", "static", "gaussian"]
Objective = Literal["elbo", "iwae"]

# -- the objective -----------------------------------------------------------------------------------------------------


def training_terms(
    model: VAE, images: Tensor, prior: Prior, generator: torch.Generator, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns reconstruction error −E log p(x|z) and KL in nats, means over images `(B, 1, 28, 28)`; ELBO = −(sum).

    The expectation is estimated with one code for each image (Kingma & Welling 2014, Eq. 10). The KL is in closed form
    for a Gaussian prior. For a mixture it has none, and is estimated at the same code, as log q(z|x) − log p(z).
    """
    mean, log_variance = model.encode(images, labels)  # q(z|x), both (B, latent)
    noise = torch.randn(mean.shape, device=mean.device, generator=generator)  # ε ~ N(0, 1)
    if isinstance(prior, Normal):
        codes, kl = codes_and_kl(mean, log_variance, noise, prior)
    else:
        codes = reparameterised(mean, log_variance, noise)
        kl = (log_posterior(noise, log_variance) - log_density(codes, prior)).mean()
    logits = model.decode(codes, labels)
    return -log_likelihood(model, logits, images).mean(), kl


def importance_weighted_terms(
    model: VAE,
    images: Tensor,
    prior: Prior,
    samples: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss −log 1/K Σ p(x|z)p(z)/q(z|x), reconstruction error and KL, in nats, means over images.

    K = `samples` codes an image, reparameterised (Burda et al. 2016, Eq. 8). Reconstruction error and KL, which are
    for the log, are means over the K codes: minus their sum estimates the ELBO.
    """
    mean, log_variance = model.encode(images, labels)  # (B, latent)
    noise = torch.randn((samples, *mean.shape), device=mean.device, generator=generator)  # (K, B, latent)
    codes = reparameterised(mean, log_variance, noise)
    logits = model.decode(codes.flatten(0, 1), None if labels is None else labels.repeat(samples))
    seen = images.expand(samples, *images.shape).flatten(0, 1)  # (K·B, 1, 28, 28)
    likelihood = log_likelihood(model, logits, seen).view(samples, -1)  # (K, B)
    ratio = log_posterior(noise, log_variance) - log_density(codes, prior)
    bound = torch.logsumexp(likelihood - ratio, 0) - math.log(samples)
    return -bound.mean(), -likelihood.mean(), ratio.mean()


@replaced_by(fast.codes_and_kl)
def codes_and_kl(mean: Tensor, log_variance: Tensor, noise: Tensor, prior: Normal) -> tuple[Tensor, Tensor]:
    """Returns one code for each posterior, `(B, latent)`, and KL(q(z|x) ‖ p(z)) in nats, its mean over images."""
    return reparameterised(mean, log_variance, noise), kl_divergence(mean, log_variance, prior).sum(1).mean()


def reparameterised(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Returns codes z = m + s·ε in the shape of the noise ε; gradients pass to m and s (section 2.4 of the paper)."""
    deviation = (0.5 * log_variance).exp()
    return mean + deviation * noise


def log_posterior(noise: Tensor, log_variance: Tensor) -> Tensor:
    """Returns log q(z|x) in nats, `(..., B)`, at the codes m + s·ε of the noise ε `(..., B, latent)`."""
    return -(0.5 * (noise * noise + log_variance + math.log(2 * math.pi))).sum(-1)


def log_likelihood(model: VAE, logits: Tensor, images: Tensor) -> Tensor:
    """Returns log p(x|z) in nats, `(B,)`, for logits and images `(B, 1, 28, 28)`; `images` broadcasts over logits."""
    if model.log_noise is None:
        return bernoulli_log_likelihood(logits, images.expand_as(logits))
    return gaussian_log_likelihood(logits, images, model.log_noise)


@replaced_by(fast.bernoulli_log_likelihood)
def bernoulli_log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Returns Σ x·ln p + (1 − x)·ln(1 − p) with p = σ(logits), `(B,)`: binary cross-entropy, summed over pixels.

    A sum: a mean over pixels would make the KL 784 times too heavy (Kingma & Welling 2014, appendix C.1).
    """
    return -F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def gaussian_log_likelihood(logits: Tensor, images: Tensor, log_noise: Tensor) -> Tensor:
    """Returns Σ ln N(x; σ(logits), noise²), `(B,)`, summed over pixels (Rybkin et al. 2021)."""
    mean, deviation = torch.sigmoid(logits), log_noise.exp()
    # A diverged network has no finite mean: `fit` names the term and the step, and torch would not.
    log_probability: Tensor = Normal(mean, deviation, validate_args=False).log_prob(images)
    return log_probability.flatten(1).sum(1)


def penalty(kl: Tensor, beta: float, capacity: float | None, warmup: float) -> Tensor:
    """Returns what the loss adds to the reconstruction error for `kl`; `warmup` rises from 0 to 1 during the warm-up.

    β·KL with β growing during the warm-up (Higgins et al. 2017, Eq. 4; Bowman et al. 2016), or β·|KL − C| with the
    capacity C growing (Burgess et al. 2018, Eq. 8, where β is called γ).
    """
    if capacity is not None:
        return beta * (kl - warmup * capacity).abs()
    return warmup * beta * kl


# -- what the model sees of an image -----------------------------------------------------------------------------------

Observe = Callable[[Tensor, torch.Generator], Tensor]


def pixels(images: Tensor) -> Tensor:
    """Returns uint8 images `(B, 1, 28, 28)` as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def drawn_binary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns float32 images of 0 and 1 for uint8 images; a pixel is 1 with its grey value as probability."""
    uniform = torch.rand(images.shape, device=images.device, generator=generator)
    return (255 * uniform < images).float()  # never for 0, always for 255: uniform is below 1


def observer(likelihood: Likelihood) -> Observe:
    """Returns the function from uint8 training images to what the model sees of them in one step."""
    return drawn_binary if likelihood == "dynamic" else lambda images, generator: pixels(images)


def binary_once(split: Split, purpose: str) -> Split:
    """Returns the split with black and white images, drawn once and the same in every run."""
    generator = random_stream(0, f"binary {purpose}")
    binary = drawn_binary(split.images.cpu(), generator).mul_(255).to(torch.uint8)
    return Split(binary.to(split.images.device), split.labels)


def as_seen(dataset: Dataset, likelihood: Likelihood) -> Dataset:
    """Returns the dataset as the likelihood sees it: black and white for `dynamic` and `static`, drawn once.

    With `dynamic` the training images stay grey: they are drawn anew in every step.
    """
    if likelihood not in ("dynamic", "static"):
        return dataset
    train = binary_once(dataset.train, "train") if likelihood == "static" else dataset.train
    validation, test = binary_once(dataset.validation, "validation"), binary_once(dataset.test, "test")
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)
