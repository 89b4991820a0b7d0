"""How a trained VAE is evaluated: the ELBO at β = 1, the importance-weighted likelihood, codes and decoded images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Normal

from common.device import random_stream
from common.training import progress_bar
from vae.models import VAE
from vae.objective import log_likelihood, log_posterior, pixels, reparameterised
from vae.priors import Prior, kl_divergence, log_density, marginals

LEAST_KL, LEAST_SHOWN = 0.1, 0.01  # nats; share of the variance
FAR = 10  # nats a dimension, more than an image needs


@torch.inference_mode()
def evaluate_bounds(
    model: VAE,
    images: Tensor,
    prior: Prior,
    *,
    samples: int,
    seed: int,
    labels: Tensor | None = None,
    decoded_at_once: int = 500,
) -> dict[str, float]:
    """Returns `elbo`, `reconstruction`, `kl` and `nll` in nats, means over uint8 `images`; always at β = 1.

    `elbo` = −(`reconstruction` + `kl`): the reconstruction error is averaged over `samples` codes an image. The KL is
    in closed form for a Gaussian prior; for a mixture it is log q(z|x) − log p(z), averaged over the same codes. `nll`
    is −log 1/K Σ p(x|z)p(z)/q(z|x) over the same K codes (Burda et al. 2016, Eq. 8): an upper bound on −log p(x) that
    tightens as K grows. A conditional model's bounds are on log p(x|y), with the true `labels` (N,). Computed in
    float32 (on CUDA with TensorFloat32 products) whatever the training used, `decoded_at_once` codes at a time.
    """
    device = images.device
    generator = random_stream(seed, "codes of the bounds", device)
    at_once = min(samples, max(1, decoded_at_once // min(len(images), 100)))  # codes an image in one call
    sums = {"reconstruction": 0.0, "kl": 0.0, "nll": 0.0}
    training = model.training
    model.eval()
    bar = progress_bar("bounds", 0, len(images) * samples, unit="code", delay=2)
    for rows in torch.arange(len(images), device=device).split(max(1, decoded_at_once // at_once)):
        x = pixels(images[rows])
        classes = None if labels is None else labels[rows]
        mean, log_variance = model.encode(x, classes)
        log_total = torch.full((len(x),), -math.inf, device=device)
        for start in range(0, samples, at_once):
            count = min(at_once, samples - start)
            noise = torch.randn((count, *mean.shape), device=device, generator=generator)  # (codes, B, latent)
            codes = reparameterised(mean, log_variance, noise)
            logits = model.decode(codes.flatten(0, 1), None if classes is None else classes.repeat(count))
            likelihood = log_likelihood(model, logits, x.expand(count, *x.shape).flatten(0, 1)).view(count, -1)
            log_prior, log_q = log_density(codes, prior), log_posterior(noise, log_variance)  # (codes, B)
            weights = likelihood + log_prior - log_q  # log p(x, z)/q(z|x)
            log_total = torch.logaddexp(log_total, torch.logsumexp(weights, 0))
            sums["reconstruction"] -= float(likelihood.sum(dtype=torch.float64)) / samples
            bar.update(count * len(x))
            if not isinstance(prior, Normal):
                sums["kl"] += float((log_q - log_prior).sum(dtype=torch.float64)) / samples
        if isinstance(prior, Normal):
            sums["kl"] += float(kl_divergence(mean, log_variance, prior).sum(dtype=torch.float64))
        sums["nll"] -= float((log_total - math.log(samples)).sum(dtype=torch.float64))
    bar.close()
    model.train(training)
    bounds = {name: value / len(images) for name, value in sums.items()}
    return {"elbo": -(bounds["reconstruction"] + bounds["kl"]), **bounds}


@torch.inference_mode()
def posterior_means(
    model: VAE, images: Tensor, labels: Tensor | None = None, batch_size: int = 1000
) -> tuple[Tensor, Tensor]:
    """Returns the posterior's mean and deviation, `(N, latent)`, for all uint8 images, in float32."""
    classes = [None] * len(images) if labels is None else labels.split(batch_size)
    batches = zip(_shown("codes", images, batch_size), classes, strict=False)
    encoded = [model.encode(pixels(batch), of) for batch, of in batches]
    means, log_variances = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return means, (0.5 * log_variances).exp()


@torch.inference_mode()
def decoded(model: VAE, codes: Tensor, labels: Tensor | None = None, batch_size: int = 1000) -> Tensor:
    """Returns the mean images `(N, 1, 28, 28)` in [0, 1] that the decoder makes of codes `(N, latent)`."""
    classes = [None] * len(codes) if labels is None else labels.split(batch_size)
    batches = zip(_shown("decoded codes", codes, batch_size), classes, strict=False)
    return torch.cat([torch.sigmoid(model.decode(batch, of)) for batch, of in batches])


def _shown(what: str, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yields `rows` in batches; a bar says how many are done, if that takes longer than two seconds."""
    with progress_bar(what, 0, len(rows), delay=2) as bar:
        for batch in rows.split(batch_size):
            yield batch
            bar.update(len(batch))


def active_units(means: Tensor, prior: Prior) -> int:
    """Returns how many code dimensions vary with the image: Var E[z|x] > 0.01 σ₀² (Burda et al. 2016, section 5.2).

    σ₀² is the prior's variance in that dimension.
    """
    return int((means.var(0) > 0.01 * marginals(prior).variance).sum())


def shown_variance(model: VAE, means: Tensor, images: Tensor, labels: Tensor | None = None) -> float:
    """Returns how much of the uint8 images' variance over the set, summed over pixels, shows in what is decoded.

    `means` (N, latent) are their codes. It is 0 if the decoder makes the same image of every code. Of a conditional
    model it is the variance within the classes `labels` (N,): the class is known without the code.
    """
    within = labels if model.classes else None
    return _variance(decoded(model, means, labels), within) / max(_variance(pixels(images), within), 1e-12)


def _variance(images: Tensor, labels: Tensor | None) -> float:
    """Returns the variance of images `(N, 1, 28, 28)`, summed over pixels; with labels that within the classes."""
    if labels is None:
        return float(images.var(0).sum())
    parts = [images[labels == label] for label in labels.unique()]
    return sum(float(part.var(0, correction=0).sum()) * len(part) for part in parts) / len(images)


def warning_of_collapse(
    active: int, latent: int, kl: float, shown: float, *, mappable: bool, weight: float | None = 1.0
) -> str | None:
    """Returns what to tell the user of a model whose codes say nothing of the image, with what to try; None if they do.

    `kl` is in nats, `shown` from `shown_variance`. `mappable`: the start can be mapped to the prior, and was not.
    `weight` is β, None for a bound that does not weigh its KL. Posterior collapse: Bowman et al. 2016; He et al. 2019.
    """
    if active == 0:
        found = f"the model collapsed: 0 of {latent} units are active"
    elif kl < LEAST_KL or shown < LEAST_SHOWN:
        found = "the decoder ignores its code"
    else:
        return None
    far = kl > FAR * latent
    if far and mappable:
        try_ = "--initialisation mapped --mapped-rates"
    elif far:
        try_ = "a lower --learning-rate or more --epochs"
    elif weight is None:
        try_ = "--objective elbo or more --epochs"
    elif weight == 0:  # nothing pushes the codes together: it has not learned yet
        try_ = "more --epochs or a higher --learning-rate"
    else:
        try_ = "a smaller --beta, --kl-warmup-epochs or more --epochs"
    why = "; the codes are far from the prior" if far else ""
    measured = f"KL {kl:.2g} nats; of the images' variance {shown:.1%} shows in those decoded from their codes{why}"
    return f"WARNING: {found} ({measured}). Try {try_}"
