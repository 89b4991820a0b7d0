"""The matrix form of convolutions against torch's own, forward and backward, in double precision."""

import pytest
import torch
from torch import nn

from common.fast.convolution import MatrixConv2d, MatrixConvTranspose2d, overlap_add, patches

SHAPES = [
    (5, 3, 1, 7),
    (4, 4, 2, 7),
    (3, 4, 2, 3),
    (2, 3, 2, 4),
    (3, 3, 1, 5),
    (3, 1, 1, 4),
]  # width, kernel, stride, side


@pytest.mark.parametrize(("width", "kernel", "stride", "side"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_output_and_gradients_as_torch(
    width: int, kernel: int, stride: int, side: int, transposed: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    padding = 1 if kernel > 1 else 0
    if transposed:
        extra = stride - 1
        theirs = nn.ConvTranspose2d(width, 6, kernel, stride, padding, extra).double()
        ours = MatrixConvTranspose2d(width, 6, kernel, stride, padding, extra).double()
    else:
        theirs = nn.Conv2d(width, 6, kernel, stride, padding).double()
        ours = MatrixConv2d(width, 6, kernel, stride, padding).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, width, side, side, dtype=torch.float64)
    if channels_last:
        ours, x = ours.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    x, again = x.requires_grad_(), x.detach().clone().requires_grad_()
    one, other = ours(x), theirs(again)
    torch.testing.assert_close(one, other)
    pull = torch.randn_like(other)
    one.backward(pull)
    other.backward(pull)
    torch.testing.assert_close(x.grad, again.grad)
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, torchs.grad)


def test_patches_and_overlap_add_are_transposes() -> None:
    """⟨patches(x), y⟩ = ⟨x, overlap_add(y)⟩ for all x and y."""
    generator, geometry = torch.Generator().manual_seed(0), (4, 2, 1)
    x = torch.randn(2, 7, 7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 3, 48, generator=generator, dtype=torch.float64)
    forward = (patches(x, geometry, (3, 3)) * y).sum()
    torch.testing.assert_close(forward, (x * overlap_add(y, geometry, (7, 7))).sum())


@pytest.mark.parametrize("layer", [MatrixConv2d(8, 8, 3, 2, 1), MatrixConvTranspose2d(8, 8, 3, 2, 1)])
def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients(layer: nn.Module) -> None:
    x = torch.randn(4, 8, 7, 7, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.05, rtol=0.05)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
