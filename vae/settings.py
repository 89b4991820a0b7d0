"""Every constant of the VAE experiment; `python vae/train.py --help` prints this file."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval, MinLen
from torch.distributions import Normal

from common.cli import RunSettings
from common.errors import UsageError
from vae.models import ARCHITECTURE_TITLES, Architecture
from vae.objective import Likelihood
from vae.priors import PRIORS, PriorName, prior_label

Count = Annotated[int, Interval(ge=1, le=1_000_000)]
Width = Annotated[int, Interval(ge=1, le=8192)]


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Train a VAE on MNIST, evaluate it on the test images at β = 1, draw its samples and its codes."""

    smoke: ClassVar[dict[str, Any]] = {
        "dataset": "digits",
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "nll_samples": 20,
        "generated": 400,
    }

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """Dataset; auto takes MNIST if it is available, else scikit-learn's digits, with a warning."""
    max_images: Annotated[int, Ge(1000)] | None = None
    """Images to use at most, the same share of the training, held-out and test images; none means all of them."""

    # 1. Model
    arch: Architecture = "conv"
    """Encoder and decoder: fully connected, convolutional, or Pythae's wide convolutional network (for a GPU)."""
    latent: Width = 16
    """Dimensions of the code; 2 and 16 in the original report."""
    hidden: Annotated[tuple[Width, ...], MinLen(1)] = (512, 256)
    """Widths of the fully connected encoder, mirrored in the decoder; 400 is the network of PyTorch's example."""
    channels: Width = 64
    """Feature maps of the convolutional encoder and decoder."""
    prior: PriorName = "normal"
    """Prior of every code dimension: normal is N(0, 1), gaussian12 is N(1, 2²)."""
    prior_mean: float | None = None
    """Mean of the prior, instead of the named one's."""
    prior_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of the prior, instead of the named one's."""
    initialisation: Literal["plain", "mapped"] = "plain"
    """Starting weights: PyTorch's own, or those for N(0, 1) mapped to this prior by z′ = μ₀ + σ₀z (the control)."""

    # 2. Objective
    likelihood: Likelihood = "dynamic"
    """What a pixel is: black or white drawn anew (dynamic) or once (static), grey in the cross-entropy, Gaussian."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of the KL in training (Higgins et al. 2017); the evaluation always has β = 1."""
    kl_warmup_epochs: Annotated[float, Ge(0)] = 0.0
    """Epochs over which the weight of the KL (or the capacity) rises linearly from 0."""
    capacity: Annotated[float, Ge(0)] | None = None
    """Target C of the KL in nats: β·|KL − C|, with a large β such as 30 (Burgess et al. 2018); none means β·KL."""

    # 3. Training
    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 128
    """Images a step."""
    learning_rate: Annotated[float, Gt(0)] = 2e-3
    """Peak learning rate of Adam (Kingma & Ba 2015); the rate rises to it linearly and falls to 0 linearly."""
    warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Fraction of the training after which the learning rate peaks."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay per step of the weights' moving average, which becomes the model; 0 takes the last weights."""

    # 4. Evaluation
    nll_samples: Count | None = None
    """Codes an image for the importance-weighted bound; none means 5,000 on a GPU and 100 on a CPU."""
    generated: Annotated[int, Interval(ge=100, le=10_000)] = 10_000
    """Images from each sampler, and at most as many test images, for FID, density and coverage."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        if self.kl_warmup_epochs > self.epochs:
            raise UsageError(
                f"--kl-warmup-epochs {self.kl_warmup_epochs:g} with --epochs {self.epochs}: the warm-up would end "
                "after the training"
            )
        if self.initialisation == "mapped" and self.prior_parameters == PRIORS["normal"]:
            raise UsageError("--initialisation mapped under N(0, 1): there is nothing to map; choose another prior")

    @property
    def prior_parameters(self) -> tuple[float, float]:
        """Mean and standard deviation of the prior."""
        mean, std = PRIORS[self.prior]
        return (
            mean if self.prior_mean is None else self.prior_mean,
            std if self.prior_std is None else self.prior_std,
        )

    def prior_on(self, device: torch.device) -> Normal:
        """Returns the prior of one code dimension."""
        mean, std = self.prior_parameters
        return Normal(torch.tensor(mean, device=device), torch.tensor(std, device=device))

    @property
    def prior_label(self) -> str:
        """The prior as a figure's title writes it."""
        return prior_label(*self.prior_parameters)

    @property
    def prior_name(self) -> str:
        """The prior's name, or `custom` if mean or deviation was set."""
        return self.prior if self.prior_mean is None and self.prior_std is None else "custom"

    @property
    def model_name(self) -> str:
        """The model in a run folder's name."""
        mean, std = self.prior_parameters
        prior = self.prior if self.prior_name != "custom" else f"prior{mean:g}_{std:g}"
        beta = f"-beta{self.beta:g}" if self.beta != 1 else ""
        return f"{self.arch}{beta}-{prior}-{self.latent}"

    @property
    def model_title(self) -> str:
        """The model in words, as a figure's title writes it."""
        name = ARCHITECTURE_TITLES.get(self.arch, self.arch)
        kind = "VAE" if self.beta == 1 else f"β-VAE (β = {self.beta:g})"
        if self.capacity is not None:
            kind += f", capacity {self.capacity:g} nats"
        return f"{name} {kind}, prior {self.prior_label}, {self.latent} dimension{'s' * (self.latent > 1)}"
