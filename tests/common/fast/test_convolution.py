"""The matrix form of convolutions against torch's own, forward and backward, in three number formats."""

import pytest
import torch
from torch import nn

from common.fast import convolution, loops
from common.fast.convolution import MatrixConv2d, MatrixConvTranspose2d, overlap_add, patches

SHAPES = [
    (5, 3, 1, 7),
    (4, 4, 2, 7),
    (3, 4, 2, 3),
    (2, 3, 2, 4),
    (3, 3, 1, 5),
    (3, 1, 1, 4),
]  # width, kernel, stride, side


def both(width: int, kernel: int, stride: int, transposed: bool) -> tuple[nn.Module, nn.Module]:
    """Returns torch's layer and ours with the same weights."""
    padding, extra = 1 if kernel > 1 else 0, (stride - 1,) if transposed else ()
    classes = (nn.ConvTranspose2d, MatrixConvTranspose2d) if transposed else (nn.Conv2d, MatrixConv2d)
    theirs, ours = (layer(width, 6, kernel, stride, padding, *extra) for layer in classes)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(("width", "kernel", "stride", "side"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_output_and_gradients_as_torch(
    width: int, kernel: int, stride: int, side: int, transposed: bool, channels_last: bool, dtype: torch.dtype
) -> None:
    theirs, ours = both(width, kernel, stride, transposed)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    x = torch.randn(2, width, side, side, dtype=dtype)
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


@pytest.mark.parametrize(("width", "kernel", "stride", "side"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_bfloat16_stays_within_its_steps_of_the_exact_result(
    width: int, kernel: int, stride: int, side: int, transposed: bool
) -> None:
    """Under autocast: output, and gradients of input, weights and bias, against float64 and beside torch's error."""
    layers = both(width, kernel, stride, transposed)
    x = torch.randn(8, width, side, side).bfloat16()  # as from the layer before
    pull: torch.Tensor | None = None

    def results(layer: nn.Module, x: torch.Tensor, enabled: bool) -> list[torch.Tensor]:
        nonlocal pull
        x = x.detach().clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        pull = torch.randn(y.shape).bfloat16() if pull is None else pull
        return [y, *torch.autograd.grad(y, (x, *layer.parameters()), pull.to(y.dtype))]

    theirs, ours = (results(layer, x, enabled=True) for layer in layers)
    exact = results(layers[0].double(), x.double(), enabled=False)
    for mine, torchs, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torchs.dtype
        size = true.square().mean().sqrt()
        errors = [(value.double() - true).square().mean().sqrt() / size for value in (mine, torchs)]
        # bfloat16 has steps of 0.4 to 0.8 %, and `overlap_add` sums up to nine numbers that were rounded to them.
        assert errors[0] < max(1.5 * errors[1], 0.006)


def test_patches_and_overlap_add_are_transposes() -> None:
    """⟨patches(x), y⟩ = ⟨x, overlap_add(y)⟩ for all x and y."""
    generator, geometry = torch.Generator().manual_seed(0), (4, 2, 1)
    x = torch.randn(2, 7, 7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 3, 48, generator=generator, dtype=torch.float64)
    forward = (patches(x, geometry, (3, 3)) * y).sum()
    torch.testing.assert_close(forward, (x * overlap_add(y, geometry, (7, 7))).sum())


@pytest.fixture(params=[1, 2])
def few_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.parametrize("geometry", [(3, 1, 1), (4, 2, 1), (3, 2, 0), (1, 1, 0), (5, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loop_adds_what_torch_adds(geometry: tuple[int, int, int], dtype: torch.dtype, few_threads: None) -> None:
    """In bfloat16 it rounds once, so it is within half a step of the exact sum."""
    kernel, stride, padding = geometry
    size = ((3 - 1) * stride - 2 * padding + kernel + 1, (4 - 1) * stride - 2 * padding + kernel)
    taps = torch.randn(2, 3, 4, kernel**2 * 5).to(dtype)
    assert loops.faster(taps)
    exact = overlap_add(taps.double(), geometry, size)
    added = overlap_add(taps, geometry, size)
    assert added.dtype == dtype
    torch.testing.assert_close(added.double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_the_loop_keeps_what_is_not_finite(few_threads: None) -> None:
    taps = torch.zeros(1, 2, 2, 9 * 2)
    assert loops.faster(taps)
    taps[0, 0, 0, 8] = torch.nan  # the middle tap of the first position, channel 0
    taps[0, 1, 1, 9] = torch.inf
    added = overlap_add(taps, (3, 1, 1), (2, 2))
    assert added[0, 0, 0, 0].isnan()
    assert added[0, 1, 1, 1].isinf()
    assert int(added.isfinite().sum()) == added.numel() - 2


def test_more_threads_take_torchs_additions(few_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taps = torch.randn(2, 4, 4, 9 * 3)
    assert loops.faster(taps)
    one = overlap_add(taps, (3, 1, 1), (4, 4))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not loops.faster(taps)
    monkeypatch.setattr(convolution, "add_taps", None)
    torch.testing.assert_close(one, overlap_add(taps, (3, 1, 1), (4, 4)))


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


@pytest.mark.parametrize(("stride", "torchs"), [(1, True), (2, False)])
def test_a_single_image_takes_torchs_kernel_where_that_is_faster(stride: int, torchs: bool) -> None:
    layer = MatrixConv2d(8, 8, 3, stride, 1)
    one, two = torch.randn(1, 8, 4, 4), torch.randn(2, 8, 4, 4)
    assert (layer(one).grad_fn.name() == "ConvolutionBackward0") is torchs
    assert layer(two).grad_fn.name() != "ConvolutionBackward0"
    torch.testing.assert_close(layer(torch.cat([one, two]))[:1], layer(one))
