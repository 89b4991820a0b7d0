"""VGG11-BN for 32×32 images, with torchvision's layers and state-dict names (Simonyan & Zisserman 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from common.convolution import MatrixConv2d


class VGG11(nn.Module):
    """torchvision's vgg11_bn features, global average pool, one linear layer: 9,231,114 parameters for 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = make_layers(cfgs["A"], batch_norm=True)
        for index in (15, 18, 22, 25):  # the four that see 4×4 and 2×2 maps
            inputs, outputs = self.features[index].in_channels, self.features[index].out_channels
            self.features[index] = MatrixConv2d(inputs, outputs, kernel_size=3, padding=1)
        self.classifier = nn.Linear(512, classes)
        for conv in prunable_layers(self).values():
            conv.reset_parameters()
            nn.init.dirac_(conv.weight.data[: conv.in_channels])  # starts as the identity (airbench, section 3.3)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(B, classes)` for normalised images `(B, 3, 32, 32)`."""
        return self.head(self.features(images))

    def head(self, features: Tensor) -> Tensor:
        """Returns logits `(B, classes)` for the last feature maps `(B, 512, h, w)`."""
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def prunable_layers(model: VGG11) -> dict[str, nn.Conv2d]:
    """Returns the eight convolutions in network order, by their names in the state dict without `.weight`."""
    return {f"features.{i}": m for i, m in enumerate(model.features) if isinstance(m, nn.Conv2d)}


def prunable_weights(model: VGG11) -> dict[str, Tensor]:
    """Returns the convolutions' weights `(out, in, 3, 3)` by layer name."""
    return {name: conv.weight for name, conv in prunable_layers(model).items()}
