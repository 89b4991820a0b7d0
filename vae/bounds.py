"""How a trained VAE is evaluated: the ELBO at β = 1, the importance-weighted likelihood, codes and decoded images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from common.device import random_stream
from vae.models import VAE
from vae.objective import log_likelihood, pixels, reparameterised
from vae.priors import kl_divergence


@torch.inference_mode()
def evaluate_bounds(
    model: VAE, images: Tensor, prior: Normal, *, samples: int, seed: int, decoded_at_once: int = 500
) -> dict[str, float]:
    """Returns `elbo`, `reconstruction`, `kl` and `nll` in nats, means over uint8 `images`; always at β = 1.

    `elbo` = −(`reconstruction` + `kl`): the reconstruction error is averaged over `samples` codes an image, the KL is
    in closed form. `nll` is −log 1/K Σ p(x|z)p(z)/q(z|x) over the same K codes (Burda et al. 2016, Eq. 8): an upper
    bound on −log p(x) that tightens as K grows. Computed in float32 (on CUDA with TensorFloat32 products) whatever the
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
        log_total = torch.full((len(x),), -math.inf, device=device)
        for start in range(0, samples, at_once):
            count = min(at_once, samples - start)
            noise = torch.randn((count, *mean.shape), device=device, generator=generator)  # (codes, B, latent)
            codes = reparameterised(mean, log_variance, noise)
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
