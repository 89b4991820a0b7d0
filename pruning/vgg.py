"""VGG11-BN for 32×32 images, with torchvision's layers and state-dict names (Simonyan & Zisserman 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg11_bn

# Output and input positions of a 2×2 map, row by row, to the tap of a padded 3×3 kernel that joins them.
TAPS = [
    3 * (in_row - out_row + 1) + (in_column - out_column + 1)
    for out_row in (0, 1)
    for out_column in (0, 1)
    for in_row in (0, 1)
    for in_column in (0, 1)
]


class Conv2dOn2x2(nn.Conv2d):
    """A padded 3×3 convolution that multiplies 2×2 maps as the one dense matrix which it is there.

    Every output position sees every input position, through 4 of the 9 taps: one `(4·in, 4·out)` product does with 16
    multiply-adds where the kernel spends 36, five of nine on padding. Same result, half the time for a training batch
    on a CPU in bfloat16. Making the matrix takes time too: batches below `smallest_batch` are convolved.
    """

    smallest_batch = 32

    def forward(self, input: Tensor) -> Tensor:
        """Returns `(B, out, H, W)` for `(B, in, H, W)`."""
        if input.shape[2:] != (2, 2) or input.device.type != "cpu" or len(input) < self.smallest_batch:
            return super().forward(input)
        select = F.one_hot(torch.tensor(TAPS), 9).to(self.weight.dtype)  # (16, 9)
        kernel = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, 9, self.in_channels)
        matrix = (select @ kernel).view(4 * self.out_channels, 4 * self.in_channels)
        assert self.bias is not None
        flat = input.permute(0, 2, 3, 1).reshape(len(input), 4 * self.in_channels)  # no copy: channels last
        return F.linear(flat, matrix, self.bias.repeat_interleave(4)).view(len(input), self.out_channels, 2, 2)


class VGG11(nn.Module):
    """torchvision's vgg11_bn features, global average pool, one linear layer: 9,231,114 parameters for 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = vgg11_bn(weights=None).features
        for index in (22, 25):  # the two layers that see 2×2 maps
            self.features[index] = Conv2dOn2x2(512, 512, kernel_size=3, padding=1)
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
