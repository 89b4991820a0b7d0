"""Where the codes of new images come from: the model's prior, or a mixture fitted to codes of training images.

A conditional model needs a class with each code. Both samplers draw it by the classes' frequency in the training
images, independently of the code: the prior does not know the class, and the mixture is fitted to the codes of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Normal

from common.data import Split
from common.device import random_stream, stream_seed
from common.experiment import say
from common.training import progress_bar
from vae.priors import Prior, codes_of

COMPONENTS, ITERATIONS = 10, 100


def prior_codes(prior: Prior, count: int, latent: int, seed: int) -> Tensor:
    """Returns codes `(count, latent)` drawn from the model's own prior."""
    generator = random_stream(seed, "prior codes")
    device = (prior.mean if isinstance(prior, Normal) else prior.means).device
    noise = torch.randn(count, latent, generator=generator).to(device)
    return codes_of(prior, noise, generator)


def drawn_classes(labels: Tensor, count: int, seed: int) -> Tensor:
    """Returns classes `(count,)` drawn by their frequency in `labels` `(N,)`."""
    return classes_by(labels.bincount(), count, seed).to(labels.device)


def classes_by(counts: Tensor, count: int, seed: int) -> Tensor:
    """Returns classes `(count,)` drawn by the number of images in each, `counts` `(classes,)`."""
    frequency = counts.float().cpu()
    return torch.multinomial(frequency, count, replacement=True, generator=random_stream(seed, "classes of samples"))


def drawn_images(training: Split, count: int, seed: int) -> Split:
    """Returns `count` training images drawn at random, which pseudo-inputs start from; no image twice if possible."""
    order = torch.randperm(len(training), generator=random_stream(seed, "pseudo-inputs"))
    rows = order[torch.arange(count) % len(training)].to(training.images.device)
    return Split(training.images[rows], training.labels[rows])


def fitted_mixture(means: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns a Gaussian mixture fitted to the posterior means `(N, latent)` of images, float64.

    `weights` (components,), `means` (components, latent) and `covariances` (components, latent, latent).
    """
    components = min(COMPONENTS, len(means))
    say(f"    fitting a mixture of {components} Gaussians to {len(means):,} codes of {means.shape[1]} dimensions")
    random_state = stream_seed(seed, "mixture codes")
    # One iteration of EM a call, each from where the last one ended: the same mixture as in one call, and a bar.
    codes = means.double().cpu().numpy()
    spread = codes.var(0).mean()  # of codes under a narrow prior 1e-5 would be most of the variance
    mixture = GaussianMixture(
        components,
        reg_covar=1e-5 * min(1.0, max(100 * spread, 1e-30)),
        random_state=random_state,
        warm_start=True,
        max_iter=1,
        covariance_type="full",
    )
    with progress_bar("mixture", 0, ITERATIONS, unit="iteration", delay=2.0) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(ITERATIONS):
            mixture.fit(codes)
            bar.update()
            if mixture.converged_:
                break
    return {name: torch.from_numpy(getattr(mixture, f"{name}_")) for name in ("weights", "means", "covariances")}


def mixture_codes(mixture: Mapping[str, Tensor], count: int, seed: int) -> Tensor:
    """Returns codes `(count, latent)`, float32, from a mixture that `fitted_mixture` made.

    The decoder was trained on codes from the posteriors, and these need not lie where the prior has its mass
    (ex-post density estimation, Ghosh et al. 2020, section 4).
    """
    drawn_by = GaussianMixture(len(mixture["weights"]), random_state=stream_seed(seed, "mixture codes"))
    for name, tensor in mixture.items():
        setattr(drawn_by, f"{name}_", tensor.numpy())
    codes, _ = drawn_by.sample(count)
    order = torch.randperm(count, generator=random_stream(seed, "mixture order"))  # sklearn sorts by component
    return torch.from_numpy(codes)[order].float()
