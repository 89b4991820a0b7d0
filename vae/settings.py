"""Every constant of the VAE experiment; `python vae/train.py --help` prints this file."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import AfterValidator
from torch.distributions import Normal

from common import data
from common.cli import RunSettings
from common.errors import UsageError
from common.extending import Extension
from vae.models import ARCHITECTURE_TITLES, VAE, Architecture
from vae.objective import Likelihood, Objective
from vae.priors import PRIORS, Prior, PriorName, gaussian, prior_label, vamp, vamp_label

Count = Annotated[int, Interval(ge=1, le=1_000_000)]
Width = Annotated[int, Interval(ge=1, le=8192)]
DATASETS = ("auto", "mnist", "fashion-mnist", "kmnist", "digits")
ImageSet = Annotated[
    str,
    tyro.conf.arg(metavar=f"{{{','.join(DATASETS)}}}|FOLDER"),
    AfterValidator(lambda name: data.absolute_folder(name, DATASETS)),
]
LARGEST, MOST_DEVIATIONS = 1e15, 1e6  # float32 can sum squares of the first, and of its inverse; it has 7 digits


def _require_representable(of: str, mean: float, std: float) -> None:
    """Raises UsageError for a Gaussian whose codes or KL float32 cannot hold; `of` is prior or sample."""
    if not 1 / LARGEST <= std <= LARGEST:
        raise UsageError(f"--{of}-std {std:g}: allowed are {1 / LARGEST:g} to {LARGEST:g}, which float32 can square")
    if abs(mean) > LARGEST:
        raise UsageError(f"--{of}-mean {mean:g}: allowed are {-LARGEST:g} to {LARGEST:g}, which float32 can square")
    if abs(mean) > MOST_DEVIATIONS * std:
        raise UsageError(
            f"--{of}-mean {mean:g} with --{of}-std {std:g}: a mean of at most {MOST_DEVIATIONS:g} deviations is "
            "allowed; float32 has no digits for more"
        )


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
    extension: ClassVar[Extension | None] = Extension(
        length="epochs",
        stage="vae",
        may_change=(
            *("learning_rate", "warmup", "beta", "kl_warmup_epochs", "capacity"),
            *("objective", "importance_samples", "elbo_epochs"),
            *("nll_samples", "generated", "sample_prior", "sample_mean", "sample_std"),
        ),
        missing="the optimiser's moments start at zero, and the order of the batches anew",
    )

    dataset: ImageSet = "auto"
    """Dataset; auto takes MNIST if it is available, else scikit-learn's digits, with a warning. What is none of the
    names is a folder of images: {train,test}/<class>/*, <class>/* or just images, 28×28 and grey."""
    resize: bool = False
    """Resize the images of such a folder to 28×28 and turn them to grey; their aspect is not kept."""
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
    """Prior of every code dimension: normal is N(0, 1), gaussian12 is N(1, 2²). Or of the whole code: vamp is the
    mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)."""
    pseudo_inputs: Width | None = None
    """Pseudo-inputs of --prior vamp; none means 500, as in the paper."""
    prior_mean: float | None = None
    """Mean of the prior, instead of the named one's."""
    prior_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of the prior, instead of the named one's."""
    initialisation: Literal["plain", "mapped"] = "plain"
    """Starting weights: PyTorch's own, or those for N(0, 1) mapped to this prior by z′ = μ₀ + σ₀z (control of the
    start)."""
    mapped_rates: bool = False
    """With a mapped start, multiply the learning rate of what the mapping scales by the same number: of the posterior
    means' layer by σ₀, of the decoder's first weights by 1/σ₀ (control of the steps)."""

    conditional: bool = False
    """Give the class to encoder and decoder: q(z|x, y) and p(x|z, y) (Sohn et al. 2015). The evaluation uses the true
    classes; samples have classes drawn by their frequency in the training images."""

    # 2. Objective
    objective: Objective = "elbo"
    """Bound to train on: the evidence lower bound, or the importance-weighted one, which is tighter (Burda et al.
    2016)."""
    importance_samples: Annotated[int, Interval(ge=1, le=1000)] | None = None
    """Codes that a step draws and decodes for each image with --objective iwae; none means 5."""
    elbo_epochs: Annotated[float, Ge(0)] = 0.0
    """Epochs on the ELBO, which cost less, before those with --objective iwae."""
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
    """Passes over the training split. With --extend RUN the new total."""
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
    sample_prior: Literal["own", "normal", "gaussian12"] = "own"
    """Prior that one more set of samples is drawn from: the usual mistake is to decode codes of another prior than the
    model's. With own, and no mean or deviation below, there is no such set."""
    sample_mean: float | None = None
    """Mean of that prior, instead of the named one's."""
    sample_std: Annotated[float, Gt(0)] | None = None
    """Standard deviation of that prior, instead of the named one's."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        if self.kl_warmup_epochs > self.epochs:
            raise UsageError(
                f"--kl-warmup-epochs {self.kl_warmup_epochs:g} with --epochs {self.epochs}: the warm-up would end "
                "after the training"
            )
        for option, value in (("--kl-warmup-epochs", self.kl_warmup_epochs), ("--capacity", self.capacity)):
            if self.beta == 0 and value:
                raise UsageError(f"{option} {value:g} with --beta 0: the KL has no weight; leave it out")
        self._check_vamp()
        self._check_objective()
        if self.initialisation == "mapped" and self.prior_parameters == PRIORS["normal"]:
            raise UsageError("--initialisation mapped under N(0, 1): there is nothing to map; choose another prior")
        if self.mapped_rates and self.initialisation != "mapped":
            raise UsageError("--mapped-rates needs --initialisation mapped: it controls the steps from that start")
        if self.mapped_rates and self.prior_parameters is not None and self.prior_parameters[1] == 1:
            raise UsageError("--mapped-rates under a prior of deviation 1: it multiplies the rates by 1; leave it out")
        data.require_dataset(self.dataset, DATASETS, self.resize)
        for name, arch in (("hidden", "fc"), ("channels", "conv")):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if self.arch != arch and value != default:
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise UsageError(f"--{name} {shown} with --arch {self.arch}: it is for --arch {arch} and has no effect")
        for of, parameters in (("prior", self.prior_parameters), ("sample", self.mismatched_parameters)):
            if parameters is not None:
                _require_representable(of, *parameters)

    def require_classes(self, dataset: data.Dataset) -> None:
        """Raises UsageError for a conditional model of images that have one class."""
        if self.conditional and len(dataset.classes) == 1:
            raise UsageError(f"--conditional with --dataset {self.dataset}: its images have one class; two are needed")

    def _check_vamp(self) -> None:
        if self.prior != "vamp":
            if self.pseudo_inputs is not None:
                raise UsageError(f"--pseudo-inputs {self.pseudo_inputs} with --prior {self.prior}: needs --prior vamp")
            return
        for option, value in (("--prior-mean", self.prior_mean), ("--prior-std", self.prior_std)):
            if value is not None:
                raise UsageError(f"{option} {value:g} with --prior vamp: its mixture is learned; choose another prior")
        if self.initialisation == "mapped":
            raise UsageError("--initialisation mapped with --prior vamp: only a Gaussian prior can be mapped to")
        if self.sample_prior == "own" and (self.sample_mean, self.sample_std) != (None, None):
            raise UsageError(
                "--sample-mean or --sample-std with --prior vamp: a Gaussian to start from is needed, "
                "--sample-prior normal or gaussian12"
            )

    def _check_objective(self) -> None:
        if self.objective == "elbo":
            if self.importance_samples is not None:
                given = f"--importance-samples {self.importance_samples} with --objective elbo"
                raise UsageError(f"{given}: needs --objective iwae")
            if self.elbo_epochs:
                raise UsageError(f"--elbo-epochs {self.elbo_epochs:g} with --objective elbo: needs --objective iwae")
            return
        if self.elbo_epochs >= self.epochs:
            raise UsageError(
                f"--elbo-epochs {self.elbo_epochs:g} with --epochs {self.epochs}: no epoch is left for iwae"
            )
        for option, value, allowed in (
            ("--beta", self.beta, 1),
            ("--capacity", self.capacity, None),
            ("--kl-warmup-epochs", self.kl_warmup_epochs, 0),
        ):
            if value != allowed:
                raise UsageError(
                    f"{option} {value:g} with --objective iwae: this bound has no KL to weigh; leave it out"
                )

    @property
    def mappable(self) -> bool:
        """Whether --initialisation mapped --mapped-rates would change where training starts."""
        return self.initialisation != "mapped" and self.prior_parameters is not None and self.prior_parameters[1] != 1

    @property
    def components(self) -> int:
        """Pseudo-inputs of the model; 0 without the VampPrior."""
        return (500 if self.pseudo_inputs is None else self.pseudo_inputs) if self.prior == "vamp" else 0

    @property
    def codes_a_step(self) -> int:
        """Codes for each image in a training step."""
        return (5 if self.importance_samples is None else self.importance_samples) if self.objective == "iwae" else 1

    @property
    def prior_parameters(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the prior; None for the VampPrior, which has others in every dimension."""
        if self.prior == "vamp":
            return None
        mean, std = PRIORS[self.prior]
        return (
            mean if self.prior_mean is None else self.prior_mean,
            std if self.prior_std is None else self.prior_std,
        )

    @property
    def mismatched_parameters(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the prior of the further samples; None where it is the model's own."""
        own = self.prior_parameters
        base = own if self.sample_prior == "own" else PRIORS[self.sample_prior]
        if base is None:
            return None
        mean, std = base
        chosen = (
            mean if self.sample_mean is None else self.sample_mean,
            std if self.sample_std is None else self.sample_std,
        )
        return chosen if chosen != own else None

    def prior_on(self, device: torch.device) -> Normal:
        """Returns the Gaussian prior of one code dimension."""
        assert self.prior_parameters is not None
        return gaussian(self.prior_parameters, device)

    def prior_of(self, model: VAE) -> Prior:
        """Returns the model's prior: a Gaussian, or the mixture that its pseudo-inputs make with its weights of now."""
        return vamp(model) if self.prior == "vamp" else self.prior_on(model.posterior.weight.device)

    @property
    def prior_label(self) -> str:
        """The prior as a figure's title writes it."""
        return prior_label(*self.prior_parameters) if self.prior_parameters else vamp_label(self.components)

    @property
    def prior_name(self) -> str:
        """The prior's name, or `custom` if mean or deviation was set."""
        return self.prior if self.prior_mean is None and self.prior_std is None else "custom"

    @property
    def model_name(self) -> str:
        """The model in a run folder's name."""
        prior: str = self.prior
        if self.prior_name == "custom" and self.prior_parameters:
            prior = "prior{:g}_{:g}".format(*self.prior_parameters)
        beta = f"-beta{self.beta:g}" if self.beta != 1 else ""
        iwae = f"-iwae{self.codes_a_step}" if self.objective == "iwae" else ""
        conditional = "-conditional" if self.conditional else ""
        return f"{self.arch}{conditional}{beta}{iwae}-{prior}-{self.latent}"

    @property
    def model_title(self) -> str:
        """The model in words, as a figure's title writes it."""
        name = ARCHITECTURE_TITLES.get(self.arch, self.arch)
        kind = "VAE" if self.beta == 1 else f"β-VAE (β = {self.beta:g})"
        if self.objective == "iwae":
            kind = f"IWAE (K = {self.codes_a_step})"
        if self.conditional:
            kind = f"conditional {kind}"
        if self.capacity is not None:
            kind += f", capacity {self.capacity:g} nats"
        return f"{name} {kind}, prior {self.prior_label}, {self.latent} dimension{'s' * (self.latent > 1)}"
