"""The prior over codes, the KL divergence from it, and the exact map from one Gaussian prior to another."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.distributions import Normal

from common.fast import replaced_by
from vae import fast

PriorName = Literal["normal", "gaussian12"]

PRIORS: dict[PriorName, tuple[float, float]] = {  # mean and standard deviation of every dimension of the code
    "normal": (0.0, 1.0),  # what the original report writes as "Normal(1,0)"
    "gaussian12": (1.0, 2.0),  # N(1, 2²), as torch.distributions.Normal(1, 2)
}


def prior_label(mean: float, std: float) -> str:
    """Returns the prior as figures and tables write it."""
    return f"N({mean:g}, {std:g}²)" if std != 1 else f"N({mean:g}, 1)"


@replaced_by(fast.kl_divergence)
def kl_divergence(mean: Tensor, log_variance: Tensor, prior: Normal) -> Tensor:
    """Returns KL(N(mean, variance) ‖ prior) of every code dimension in nats, in the shape of `mean` (B, latent).

    ln(σ₀/s) + (s² + (m − μ₀)²) / (2σ₀²) − ½ with m, s of the posterior and μ₀, σ₀ of the prior
    (Kingma & Welling 2014, appendix B, for any mean and deviation).
    """
    log_ratio = prior.stddev.log() - 0.5 * log_variance
    return log_ratio + (log_variance.exp() + (mean - prior.mean).square()) / (2 * prior.variance) - 0.5


def mapped_to(weights: dict[str, Tensor], prior: Normal) -> dict[str, Tensor]:
    """Returns the weights of a VAE under N(0, 1) as those of the same model under `prior`, by z′ = μ₀ + σ₀z.

    The posterior's mean and deviation are mapped, and the decoder's first layer maps back. Every image keeps its
    reconstruction, its KL and its ELBO exactly. If training under another Gaussian prior gives another result, this
    comes from where training starts and how its steps are scaled, not from the prior.
    """
    mapped = {name: tensor.clone() for name, tensor in weights.items()}
    mean, deviation = float(prior.mean), float(prior.stddev)
    latent = len(weights["posterior.bias"]) // 2
    mapped["posterior.weight"][:latent] *= deviation
    mapped["posterior.bias"][:latent] *= deviation
    mapped["posterior.bias"][:latent] += mean
    mapped["posterior.bias"][latent:] += 2 * math.log(deviation)  # the second half is the log-variance
    mapped["from_code.weight"] /= deviation
    mapped["from_code.bias"] -= mapped["from_code.weight"].sum(1) * mean
    return mapped
