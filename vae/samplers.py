"""Where the codes of new images come from: the model's prior, or a mixture fitted to codes of training images."""

from __future__ import annotations

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Normal

from common.device import random_stream, stream_seed

COMPONENTS = 10


def prior_codes(prior: Normal, count: int, latent: int, seed: int) -> Tensor:
    """Returns codes `(count, latent)` drawn from the model's own prior."""
    noise = torch.randn(count, latent, generator=random_stream(seed, "prior codes")).to(prior.mean.device)
    return prior.mean + prior.stddev * noise


def mixture_codes(means: Tensor, count: int, seed: int) -> Tensor:
    """Returns codes `(count, latent)` from a Gaussian mixture fitted to the posterior means `(N, latent)` of images.

    The decoder was trained on codes from the posteriors, and these need not lie where the prior has its mass
    (ex-post density estimation, Ghosh et al. 2020, section 4).
    """
    random_state = stream_seed(seed, "mixture codes")
    components = min(COMPONENTS, len(means))
    mixture = GaussianMixture(components, covariance_type="full", reg_covar=1e-5, random_state=random_state)
    mixture.fit(means.double().cpu().numpy())
    codes, _ = mixture.sample(count)
    order = torch.randperm(count, generator=random_stream(seed, "mixture order"))  # sklearn sorts by component
    return torch.from_numpy(codes)[order].to(means)
