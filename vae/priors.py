"""The prior over codes, the KL divergence from it, and the exact map from one Gaussian prior to another."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.utils import parametrize

from common.fast import replaced_by
from vae import fast
from vae.models import VAE

GaussianName = Literal["normal", "gaussian12"]
PriorName = Literal["normal", "gaussian12", "vamp"]

PRIORS: dict[GaussianName, tuple[float, float]] = {  # mean and standard deviation of every dimension of the code
    "normal": (0.0, 1.0),  # what the original report writes as "Normal(1,0)"
    "gaussian12": (1.0, 2.0),  # N(1, 2²), as torch.distributions.Normal(1, 2)
}


def prior_label(mean: float, std: float) -> str:
    """Returns the prior as figures and tables write it."""
    deviation = f"({std:g})" if "e" in f"{std:g}" else f"{std:g}"  # (1e+06)², not 1e+06²
    return f"N({mean:g}, {deviation}²)" if std != 1 else f"N({mean:g}, 1)"


def vamp_label(components: int) -> str:
    """Returns the VampPrior as figures and tables write it."""
    return f"VampPrior ({components} pseudo-inputs)"


def gaussian(parameters: tuple[float, float], device: torch.device) -> Normal:
    """Returns the prior with this mean and standard deviation, of one code dimension."""
    mean, std = parameters
    # Codes are not checked: where a training diverges, `fit` names the term and the step.
    return Normal(torch.tensor(mean, device=device), torch.tensor(std, device=device), validate_args=False)


# -- the VampPrior -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PosteriorMixture:
    """The VampPrior (Tomczak & Welling 2018, Eq. 9): 1/K Σ q(z|uₖ), of the posteriors of K learned pseudo-inputs uₖ."""

    means: Tensor  # (K, latent)
    log_variances: Tensor  # (K, latent)

    def log_prob(self, codes: Tensor) -> Tensor:
        """Returns the log-density in nats, `(...,)`, of codes `(..., latent)`."""
        flat = codes.reshape(-1, codes.shape[-1])
        return mixture_log_density(flat, self.means, self.log_variances).view(codes.shape[:-1])

    def of_noise(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Returns codes in the shape of the noise ε `(N, latent)`: a component each, drawn by `generator`, m + s·ε."""
        chosen = torch.randint(len(self.means), (len(noise),), generator=generator, device=generator.device)
        chosen = chosen.to(noise.device)
        return self.means[chosen] + (0.5 * self.log_variances[chosen]).exp() * noise


Prior = Normal | PosteriorMixture


def vamp(model: VAE) -> PosteriorMixture:
    """Returns the prior that the model's pseudo-inputs make with its weights as they are; gradients pass to both."""
    return PosteriorMixture(*model.components())


@replaced_by(fast.mixture_log_density)
def mixture_log_density(codes: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Returns ln 1/K Σ N(z; mₖ, sₖ²) in nats, `(B,)`, for codes `(B, latent)` and K components `(K, latent)`."""
    components = Normal(means, (0.5 * log_variances).exp(), validate_args=False)
    return torch.logsumexp(components.log_prob(codes[:, None]).sum(2), 1) - math.log(len(means))


# -- what every prior offers -------------------------------------------------------------------------------------------


def log_density(codes: Tensor, prior: Prior) -> Tensor:
    """Returns log p(z) in nats, `(...,)`, of codes `(..., latent)`."""
    return prior.log_prob(codes).sum(-1) if isinstance(prior, Normal) else prior.log_prob(codes)


def codes_of(prior: Prior, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Returns codes from the prior, made of standard normal noise `(N, latent)`; `generator` draws the components."""
    return prior.mean + prior.stddev * noise if isinstance(prior, Normal) else prior.of_noise(noise, generator)


def marginals(prior: Prior) -> Normal:
    """Returns a Gaussian prior as it is, and of a mixture the Gaussians `(latent,)` with its mean and variance.

    For what is said of one dimension: its unit, and the order of the dimensions in figures.
    """
    if isinstance(prior, Normal):
        return prior
    within, between = prior.log_variances.exp().mean(0), prior.means.var(0, correction=0)
    return Normal(prior.means.mean(0), (within + between).sqrt(), validate_args=False)


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
    comes from where training starts and how its steps are scaled, not from the prior. The steps do differ: Adam's are
    of one size whatever the weight's, so relative to the weights they are half as large where the mapping doubles them
    and twice as large where it halves them (`scale_steps`).
    """
    mapped = {name: tensor.clone() for name, tensor in weights.items()}
    mean, deviation = float(prior.mean), float(prior.stddev)
    latent = len(weights["posterior.bias"]) // 2
    mapped["posterior.weight"][:latent] *= deviation
    mapped["posterior.bias"][:latent] *= deviation
    mapped["posterior.bias"][:latent] += mean
    mapped["posterior.bias"][latent:] += 2 * math.log(deviation)  # the second half is the log-variance
    from_code = mapped["from_code.weight"][:, :latent]  # a conditional model has more columns, for the class
    from_code /= deviation
    mapped["from_code.bias"] -= from_code.sum(1) * mean
    return mapped


class _Scaled(nn.Module):
    """A weight as `scale` times what is trained; Adam's step on the weight is then `scale` times as large."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, trained: Tensor) -> Tensor:
        return self.get_buffer("scale") * trained

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.get_buffer("scale")


def scale_steps(model: VAE, prior: Normal) -> None:
    """Lets Adam's steps grow and shrink with the weights that `mapped_to` scaled; `steps_unscaled` ends it.

    The shift by μ₀ is left: it moves the decoder's first bias with every step of its first weights.
    """
    deviation, device = float(prior.stddev), model.posterior.weight.device
    halves = torch.tensor([deviation, 1.0], device=device).repeat_interleave(model.posterior.out_features // 2)
    parametrize.register_parametrization(model.posterior, "weight", _Scaled(halves[:, None]))
    parametrize.register_parametrization(model.posterior, "bias", _Scaled(halves))
    columns = torch.ones(model.from_code.in_features, device=device)
    columns[: model.posterior.out_features // 2] = 1 / deviation  # the rest are of a conditional model's classes
    parametrize.register_parametrization(model.from_code, "weight", _Scaled(columns))


def steps_unscaled(model: VAE) -> VAE:
    """Returns the model with plain weights again, equal to those that it had."""
    model.posterior, model.from_code = _plain(model.posterior), _plain(model.from_code)
    return model


def _plain(layer: nn.Linear) -> nn.Linear:
    """Returns the layer without parametrisation, as a new one: torch's removal breaks the copies of the layer."""
    if not parametrize.is_parametrized(layer):
        return layer
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    plain = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, **kind)
    assert isinstance(plain, nn.Linear)
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    return plain.train(layer.training)
