"""The spaces in which images are compared: a space's features of the real test images, and a network drawn at random.

The classifier's features are blind to what does not change a digit's class, such as the width of a stroke. The second
space has nothing to do with classes: convolutions with random weights, which Naeem et al. 2020 (section 3.3) use where
the images are not photographs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from common.training import progress_bar
from vae.metrics import Moments, density_and_coverage, frechet_distance, moments, neighbour_radii

WIDTHS, FEATURES = (32, 64, 128), 64


def in_batches(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns `features`, `(N, D)`, of images `(N, 1, 28, 28)`; a bar shows how far it is if that takes 2 seconds."""
    with progress_bar("features", 0, len(images), unit="image", delay=2.0) as bar:
        parts = []
        for batch in images.split(500):
            parts.append(features(batch))
            bar.update(len(batch))
    return torch.cat(parts)


@dataclasses.dataclass(frozen=True)
class FeatureSpace:
    """Features of the real test images in one space, and what other images are compared with."""

    real: Tensor  # (N, D)
    moments: Moments
    radii: Tensor  # (N,), see `neighbour_radii`

    @classmethod
    def of(cls, real: Tensor) -> FeatureSpace:
        """Returns the space of the real images' features `(N, D)`."""
        return cls(real, moments(real), neighbour_radii(real))

    def compare(self, features: Tensor) -> dict[str, float]:
        """Returns fid, density and coverage of other images' features `(M, D)`."""
        density, coverage = density_and_coverage(self.real, self.radii, features)
        distance = frechet_distance(self.moments, moments(features))
        return {"fid": distance, "density": density, "coverage": coverage}


class RandomConvolutions(nn.Module):
    """Three convolutions with pooling and a layer of 64 features, with weights drawn once from N(0, 2/inputs).

    The weights are the same on every machine: numpy draws them, and its generator does not depend on the processor.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((1, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * WIDTHS[-1], FEATURES, bias=False))
        generator = np.random.Generator(np.random.Philox(0))
        for weight in self.parameters():
            drawn = generator.standard_normal(weight.shape, dtype=np.float32)
            weight.data.copy_(torch.from_numpy(drawn) * (2 / weight[0].numel()) ** 0.5)
        self.requires_grad_(False).eval()
        self.digest = hashlib.sha256(save(dict(self.state_dict()))).hexdigest()[:16]
        self.to(memory_format=torch.channels_last)  # convolutions on a CPU take half the time

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Returns features `(N, 64)` of images `(N, 1, 28, 28)` in [0, 1]."""
        return in_batches(self.body, images)
