"""VGG11-BN for 32×32 images, with torchvision's layers and state-dict names (Simonyan & Zisserman 2015)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from common.fast.convolution import MatrixConv2d
from pruning.fast import Layers

Initialisation = Literal["identity", "default"]

CLASSES = 10  # of CIFAR-10 and of the digits
# Channels of the convolutions; None is a max-pooling (configuration A in table 1).
LAYERS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class VGG11(nn.Module):
    """The features of torchvision's vgg11_bn, a global average pooling and one linear layer.

    It has 9,231,114 parameters for 10 classes. With `identity` the first filters of each convolution start by copying
    its input channels, one each (airbench, section 3.3). `default` leaves PyTorch's own random weights.

    `widths` are the channels of the eight convolutions; none means those of configuration A.

    Raises:
        ValueError: not eight widths, or one of them below 1.
    """

    def __init__(
        self,
        classes: int = CLASSES,
        initialisation: Initialisation = "identity",
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        widths = full_widths() if widths is None else widths
        if len(widths) != len(full_widths()) or min(widths) < 1:
            raise ValueError(f"widths {tuple(widths)}: give {len(full_widths())} numbers of at least 1")
        layers: list[nn.Module] = []
        channels, wanted = 3, iter(widths)
        for layer in LAYERS:
            if layer is None:
                layers.append(nn.MaxPool2d(2))
            else:
                width = next(wanted)
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        # MatrixConv2d is an nn.Conv2d with a faster CPU kernel for small maps. These four layers see 4×4 and 2×2 maps.
        for index in (15, 18, 22, 25):
            plain = layers[index]
            assert isinstance(plain, nn.Conv2d)
            layers[index] = MatrixConv2d(plain.in_channels, plain.out_channels, kernel_size=3, padding=1)
        self.features = Layers(*layers)
        self.classifier = nn.Linear(channels, classes)
        for conv in prunable_layers(self).values():
            conv.reset_parameters()
            if initialisation == "identity":
                nn.init.dirac_(conv.weight.data[: conv.in_channels])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(B, classes)` for normalised images `(B, 3, 32, 32)`."""
        return self.head(self.features(images))

    def head(self, features: Tensor) -> Tensor:
        """Returns logits `(B, classes)` for the last feature maps `(B, C, h, w)`."""
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def full_widths() -> tuple[int, ...]:
    """Returns the channels of the convolutions before any of them is pruned."""
    return tuple(width for width in LAYERS if width is not None)


def widths_of(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Returns the channels of the convolutions in a state dict, in network order."""
    names = (re.fullmatch(r"features\.(\d+)\.weight", name) for name in weights)
    convolutions = {int(name[1]): weights[name[0]] for name in names if name and weights[name[0]].dim() == 4}
    return tuple(len(convolutions[index]) for index in sorted(convolutions))


def prunable_layers(model: VGG11) -> dict[str, nn.Conv2d]:
    """Returns the eight convolutions in network order, by their names in the state dict without `.weight`."""
    return {f"features.{i}": m for i, m in enumerate(model.features) if isinstance(m, nn.Conv2d)}


def prunable_weights(model: VGG11) -> dict[str, Tensor]:
    """Returns the convolutions' weights `(out, in, 3, 3)` by layer name."""
    return {name: conv.weight for name, conv in prunable_layers(model).items()}
