"""A trained VAE out of a run: `load(RUN)` gives what samples, encodes, decodes and reconstructs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common import cli
from common.errors import RunError, UsageError, require_shape
from common.files import finished_metrics, load_weights
from vae import bounds, samplers
from vae.models import SIDE, VAE
from vae.settings import Settings
from vae.train import initial_model

Sampler = Literal["prior", "mixture"]


@dataclasses.dataclass(frozen=True)
class TrainedVAE:
    """A model with its weights, its settings and the mixture of its codes; images are `(N, 1, 28, 28)` throughout."""

    model: VAE
    settings: Settings
    run: Path
    classes: tuple[str, ...]  # of the images it was trained on
    counts: Tensor  # (classes,), training images of each class

    def sample(self, count: int, *, sampler: Sampler = "prior", label: int | None = None, seed: int = 0) -> Tensor:
        """Returns `count` new images in [0, 1], the decoder's means.

        The codes come from the prior, or from the mixture of Gaussians fitted to the codes of training images. A
        conditional model draws the classes by their frequency, or makes images of the class `label` alone.

        Raises:
            UsageError: a label for a model that is not conditional, or an unknown one.
            RunError: the run has kept no mixture.
        """
        labels = self._labels(label, count, seed)
        if sampler == "mixture":
            codes = samplers.mixture_codes(self._mixture(), count, seed)
        else:
            codes = samplers.prior_codes(self.settings.prior_of(self.model), count, self.settings.latent, seed)
        return bounds.decoded(self.model, codes, labels)

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the means of the posteriors, `(N, latent)`; images are uint8, or float32 in [0, 1].

        Raises:
            UsageError: images of another shape, or floats outside [0, 1]; a conditional model needs the images'
                classes, `labels` (N,).
        """
        means, _ = bounds.posterior_means(self.model, self._as_uint8(images), self._given(labels))
        return means

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the images in [0, 1] that the decoder makes of codes `(N, latent)`.

        Raises:
            UsageError: codes of another shape.
        """
        require_shape("codes", codes.shape, (self.settings.latent,))
        return bounds.decoded(self.model, codes, self._given(labels))

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns what the decoder makes of the images' codes, in [0, 1]."""
        return self.decode(self.encode(images, labels), labels)

    def interpolate(self, start: Tensor, end: Tensor, steps: int = 12, labels: Tensor | None = None) -> Tensor:
        """Returns images `(steps, 1, 28, 28)` along the straight line between two images' codes, ends included."""
        codes = self.encode(torch.cat([start, end]), labels)
        shares = torch.linspace(0, 1, steps).view(-1, 1)
        between = codes[0] + shares * (codes[1] - codes[0])
        return self.decode(between, None if labels is None else labels[:1].expand(steps))

    def _labels(self, label: int | None, count: int, seed: int) -> Tensor | None:
        if not self.settings.conditional:
            if label is not None:
                raise UsageError(f"--class {label}: {self.run} is no conditional model; train one with --conditional")
            return None
        if label is None:
            return samplers.classes_by(self.counts, count, seed)
        self._require_known(label)
        return torch.full((count,), label)

    def _require_known(self, label: int) -> None:
        if not 0 <= label < len(self.classes):
            raise UsageError(f"--class {label}: {self.run} knows the classes 0 to {len(self.classes) - 1}")

    def _given(self, labels: Tensor | None) -> Tensor | None:
        if not self.settings.conditional:
            if labels is not None:
                raise UsageError(f"--class: {self.run} is no conditional model; train one with --conditional")
            return None
        if labels is None:
            raise UsageError(f"{self.run}: a conditional model needs the class of each image, --class")
        for label in labels.unique().tolist():
            self._require_known(label)
        return labels

    def _as_uint8(self, images: Tensor) -> Tensor:
        require_shape("images", images.shape, (1, SIDE, SIDE))
        if images.dtype == torch.uint8:
            return images
        if images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise UsageError("images of floats must lie in [0, 1]")
        return images.mul(255).round().to(torch.uint8)

    def _mixture(self) -> dict[str, Tensor]:
        path = self.run / "checkpoints" / "mixture.safetensors"
        if not path.exists():
            raise RunError(f"{path}: no such file; the run has no mixture of codes. Draw from the prior")
        return load_weights(path)


def load(run: Path | str) -> TrainedVAE:
    """Returns the model of a finished run's folder.

    Raises:
        UsageError: there is no such folder.
        RunError: no finished run of this task, or a damaged one.
    """
    run = Path(run)
    metrics = finished_metrics(run, "elbo", "vae/train.py")
    settings = cli.settings_of(Settings, run)
    path = run / "checkpoints" / "vae.safetensors"
    weights = load_weights(path)
    try:
        classes = weights["from_code.weight"].shape[1] - settings.latent
        model = initial_model(settings, classes)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError):
        raise RunError(f"{path}: not the weights of this model") from None
    names = tuple(metrics.get("classes", [str(label) for label in range(classes)]))
    counts = torch.tensor(metrics.get("class_counts", [1] * max(1, classes)))
    return TrainedVAE(model.requires_grad_(False).eval(), settings, run, names, counts)
