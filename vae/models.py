"""Encoders and decoders for 28×28 images, fully connected and convolutional."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.fast.convolution import MatrixConv2d, MatrixConvTranspose2d

Architecture = Literal["fc", "conv", "deep"]
ARCHITECTURE_TITLES: dict[Architecture, str] = {
    "fc": "fully connected",
    "conv": "convolutional",
    "deep": "deep convolutional",
}
# On MNIST, 12 epochs: SiLU gains a nat over ReLU in `conv`; in `fc` it leaves a quarter of 16 dimensions unused.
ACTIVATIONS: dict[Architecture, type[nn.Module]] = {"fc": nn.ReLU, "conv": nn.SiLU, "deep": nn.ReLU}
SIDE = 28  # pixels


class VAE(nn.Module):
    """Posterior q(z|x) = N(m(x), s(x)²) over codes, and the means of p(x|z) for a code (Kingma & Welling 2014).

    `encoder` maps images `(B, 1, 28, 28)` to features `(B, width)`. `decoder` maps features `(B, width)` to one number
    for each pixel, the logit of its mean. Codes are computed in float32 also under autocast: a posterior can be
    narrower than the steps of bfloat16.

    With `classes` it is conditional, q(z|x, y) and p(x|z, y) (Sohn et al. 2015): the class y joins the features and the
    code as a one-hot vector. A model without classes ignores the labels that it is given.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        act: nn.Module,
        width: int,
        latent: int,
        *,
        learn_noise: bool,
        classes: int = 0,
        pseudo_inputs: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.act, self.classes = encoder, decoder, act, classes
        self.posterior = nn.Linear(width + classes, 2 * latent)
        self.from_code = nn.Linear(latent + classes, width)
        # Deviation of a pixel under the Gaussian likelihood, one for all (σ-VAE, Rybkin et al. 2021).
        self.log_noise = nn.Parameter(torch.tensor(-1.0)) if learn_noise else None
        # Logits of the pseudo-inputs' pixels, and their classes: of the VampPrior, see `vae.priors.vamp`.
        self.pseudo_inputs = nn.Parameter(torch.randn(pseudo_inputs, 1, SIDE, SIDE) - 2) if pseudo_inputs else None
        self.pseudo_labels: Tensor | None
        labelled = classes and pseudo_inputs
        self.register_buffer("pseudo_labels", torch.arange(pseudo_inputs) % classes if labelled else None)

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the posterior's mean and log-variance, both `(B, latent)`, for images `(B, 1, 28, 28)` in [0, 1].

        `labels`: classes `(B,)`, or weights of the classes `(B, classes)`; needed by a conditional model alone.
        """
        features = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            mean, log_variance = self.posterior(self._with_class(features.float(), labels)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns logits `(B, 1, 28, 28)`, float32, for codes `(B, latent)` and labels as in `encode`."""
        with torch.autocast(codes.device.type, enabled=False):
            features = self.act(self.from_code(self._with_class(codes, labels)))
        logits: Tensor = self.decoder(features).float()
        return logits

    def _with_class(self, values: Tensor, labels: Tensor | None) -> Tensor:
        if not self.classes:
            return values
        if labels is None:
            raise ValueError("a conditional model needs labels")
        weights = labels if labels.is_floating_point() else F.one_hot(labels, self.classes).to(values)
        return torch.cat([values, weights], dim=1)

    def components(self) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance, both `(K, latent)`, of the posteriors of the K pseudo-inputs.

        The pixels are sigmoids of what is learned, so they stay in [0, 1]. Batch norm sees no images here: it applies
        its running statistics, also in training.
        """
        assert self.pseudo_inputs is not None
        training = self.encoder.training
        self.encoder.eval()
        components = self.encode(torch.sigmoid(self.pseudo_inputs), self.pseudo_labels)
        self.encoder.train(training)
        return components

    @torch.no_grad()
    def start_pseudo_inputs(self, images: Tensor, labels: Tensor) -> None:
        """Sets the pseudo-inputs to images `(K, 1, 28, 28)` in [0, 1], a little less in contrast, and their classes."""
        assert self.pseudo_inputs is not None
        self.pseudo_inputs.copy_(torch.logit(0.05 + 0.9 * images))
        if self.pseudo_labels is not None:
            self.pseudo_labels.copy_(labels)


def build(
    arch: Architecture,
    latent: int,
    *,
    hidden: Sequence[int],
    channels: int,
    learn_noise: bool = False,
    classes: int = 0,
    pseudo_inputs: int = 0,
) -> VAE:
    """Returns a VAE with fresh weights: `fc` with layers of `hidden` units, `conv` with `channels` feature maps.

    `deep` is Pythae's convolutional MNIST network, of fixed widths. With `classes` the model is conditional; with
    `pseudo_inputs` it has so many, at random pixels, for the VampPrior.
    """
    act = ACTIVATIONS.get(arch, nn.ReLU)
    vae_of = partial(VAE, learn_noise=learn_noise, classes=classes, pseudo_inputs=pseudo_inputs)
    if arch == "deep":
        vae = vae_of(*_deep(act), nn.Identity(), 1024, latent)
        vae.from_code = nn.Linear(latent + classes, 1024 * 16)
        return vae.to(memory_format=torch.channels_last)
    if arch == "fc":
        encoder, decoder, width = _fully_connected(hidden, act)
    else:
        encoder, decoder, width = _convolutional(channels, act)
    return vae_of(encoder, decoder, act(), width, latent).to(memory_format=torch.channels_last)


def _fully_connected(hidden: Sequence[int], act: type[nn.Module]) -> tuple[nn.Module, nn.Module, int]:
    """Returns 784 → hidden and its mirror image; with 400 and 20 dimensions it is PyTorch's example network."""
    sizes = [SIDE * SIDE, *hidden]
    down = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), act())]
    up = [layer for pair in itertools.pairwise(sizes[::-1]) for layer in (nn.Linear(*pair), act())]
    decoder = nn.Sequential(*up[:-1], nn.Unflatten(1, (1, SIDE, SIDE)))
    return nn.Sequential(nn.Flatten(), *down), decoder, hidden[-1]


def _convolutional(channels: int, act: type[nn.Module], width: int = 256) -> tuple[nn.Module, nn.Module, int]:
    """Returns convolutions over a 7×7 grid of 4×4-pixel patches with a hidden layer, and their mirror image."""
    flat = channels * 49

    def conv(inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)

    encoder = nn.Sequential(
        nn.PixelUnshuffle(4),  # (B, 16, 7, 7)
        *(conv(16, channels), act(), conv(channels, channels), act()),
        *(nn.Flatten(), nn.Linear(flat, width), act()),
    )
    decoder = nn.Sequential(
        *(nn.Linear(width, flat), act(), nn.Unflatten(1, (channels, 7, 7))),
        *(conv(channels, channels), act(), conv(channels, 16)),
        nn.PixelShuffle(4),  # (B, 1, 28, 28)
    )
    return encoder, decoder, width


def _deep(act: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Returns Pythae's layers, 18 million parameters: four strided convolutions, and three transposed ones."""
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 128, 4, 2, 1), nn.BatchNorm2d(128), act()),  # (B, 128, 14, 14)
        *(nn.Conv2d(128, 256, 4, 2, 1), nn.BatchNorm2d(256), act()),  # (B, 256, 7, 7)
        *(MatrixConv2d(256, 512, 4, 2, 1), nn.BatchNorm2d(512), act()),  # (B, 512, 3, 3)
        *(MatrixConv2d(512, 1024, 4, 2, 1), nn.BatchNorm2d(1024), act()),  # (B, 1024, 1, 1)
        nn.Flatten(),
    )
    decoder = nn.Sequential(
        nn.Unflatten(1, (1024, 4, 4)),
        *(MatrixConvTranspose2d(1024, 512, 3, 2, 1), nn.BatchNorm2d(512), act()),  # (B, 512, 7, 7)
        *(MatrixConvTranspose2d(512, 256, 3, 2, 1, 1), nn.BatchNorm2d(256), act()),  # (B, 256, 14, 14)
        MatrixConvTranspose2d(256, 1, 3, 2, 1, 1),  # (B, 1, 28, 28)
    )
    return encoder, decoder
