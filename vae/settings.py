"""Every constant of the VAE experiment; `python vae/train.py --help` prints this file."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval, MinLen
from torch.distributions import Normal

from common.cli import RunSettings
from common.errors import UsageError
from vae.models import Architecture
from vae.objective import Likelihood
from vae.priors import PRIORS, PriorName, prior_label

Count = Annotated[int, Interval(ge=1, le=1_000_000)]
Width = Annotated[int, Interval(ge=1, le=8192)]


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Train a VAE on MNIST, evaluate it on the test images at β = 1, draw what it makes."""

    smoke: ClassVar[dict[str, Any]] = {
        "dataset": "digits",
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "nll_samples": 20,
        "generated": 400,
    }

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """Images; auto takes MNIST where it can be had, else scikit-learn's digits, with a warning."""
    max_images: Annotated[int, Ge(1000)] | None = None
    """Images to use at most, the same share of training, held-out and test images, for a quick look; none: all."""

    # 1. Model
    arch: Architecture = "conv"
    """Encoder and decoder: fully connected, convolutional, or Pythae's wide convolutional network (for a GPU)."""
    latent: Width = 16
    """Dimensions of the code; 2 and 16 in the reference study."""
    hidden: Annotated[tuple[Width, ...], MinLen(1)] = (512, 256)
    """Widths of the fully connected encoder, mirrored in the decoder; 400 is the network of PyTorch's example."""
    channels: Width = 64
    """Feature maps of the convolutional encoder and decoder."""
    prior: PriorName = "normal"
    """Prior of every code dimension: normal is N(0, 1), gaussian12 is N(1, 2²)."""
    prior_mean: float | None = None
    """Mean of the prior in place of the named one's."""
    prior_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of the prior in place of the named one's."""
    initialisation: Literal["plain", "mapped"] = "plain"
    """Starting weights: PyTorch's own, or those of N(0, 1) carried to this prior by z′ = μ₀ + σ₀z (the control)."""

    # 2. Objective
    likelihood: Likelihood = "dynamic"
    """What a pixel is: black or white drawn anew (dynamic) or once (static), grey in the cross-entropy, Gaussian."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of the KL in training (Higgins et al. 2017); the evaluation is at 1 always."""
    kl_warmup_epochs: Annotated[float, Ge(0)] = 0.0
    """Epochs over which the weight of the KL (or the capacity) rises linearly from 0."""
    capacity: Annotated[float, Ge(0)] | None = None
    """Nats of KL aimed at, β·|KL − C| with a large β such as 30 (Burgess et al. 2018); none means the plain β·KL."""

    # 3. Training
    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 128
    """Images a step."""
    learning_rate: Annotated[float, Gt(0)] = 2e-3
    """Peak learning rate of Adam (Kingma & Ba 2015); rises to it linearly and falls to 0 linearly."""
    warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Fraction of the training after which the learning rate peaks."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay a step of the weights' moving average, which is what is kept; 0 keeps the last weights."""

    # 4. Evaluation
    nll_samples: Count | None = None
    """Codes an image for the importance-weighted bound; none means 5,000 on a GPU and 100 on a CPU."""
    generated: Annotated[int, Interval(ge=100, le=10_000)] = 10_000
    """Images drawn from each sampler, and test images at most, for FID, density and coverage."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        if self.kl_warmup_epochs > self.epochs:
            raise UsageError(
                f"--kl-warmup-epochs {self.kl_warmup_epochs:g} with --epochs {self.epochs}: the warm-up would not end "
                "before the training does"
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
