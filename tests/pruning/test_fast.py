"""Batch normalisation, ReLU and pooling together, against torch's modules one by one."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from common import fast
from common.device import one_thread
from pruning import fast as twin
from pruning.fast import Layers

SHAPE = (3, 5, 8, 4)
FORMATS = [torch.float32, torch.bfloat16]
LIKE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The window of each pass of the loops."""
    found = []

    def counted(norm: nn.BatchNorm2d, maps: Tensor, size: int) -> Tensor:
        found.append(size)
        return original(norm, maps, size)

    original = twin.normalised
    monkeypatch.setattr(twin, "normalised", counted)
    return found


def some_layers(*others: nn.Module, momentum: float | None = 0.1) -> Layers:
    """A normalisation with parameters of both signs, and what follows it."""
    layers = Layers(nn.BatchNorm2d(SHAPE[1], momentum=momentum), *others)
    norm = layers[0]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return layers


def some_maps(dtype: torch.dtype = torch.float32) -> Tensor:
    maps = 3 + 2 * torch.randn(SHAPE)
    return maps.to(dtype=dtype, memory_format=torch.channels_last)


def one_by_one(layers: nn.Sequential, maps: Tensor) -> Tensor:
    for module in layers:
        maps = module(maps)
    return maps


def gradients(layers: nn.Module, output: Tensor, maps: Tensor, above: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, [maps, *layers.parameters()], above))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_value_gradients_and_statistics_in_training(
    size: int, momentum: float | None, dtype: torch.dtype, passes: list[int]
) -> None:
    layers = some_layers(nn.ReLU(inplace=True), *([nn.MaxPool2d(size)] if size > 1 else []), momentum=momentum)
    plain = copy.deepcopy(layers)
    above: Tensor | None = None
    for _ in range(3):
        maps = some_maps(dtype).requires_grad_()
        ours, theirs = layers(maps), one_by_one(plain, maps)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **LIKE[dtype])
        above = torch.randn_like(theirs, memory_format=torch.contiguous_format) if above is None else above
        # In bfloat16 torch rounds before it pools, so that ties may go to another pixel of a window.
        if dtype == torch.float32 or size == 1:
            found = zip(gradients(layers, ours, maps, above), gradients(plain, theirs, maps, above), strict=True)
            for of_ours, of_theirs in found:
                torch.testing.assert_close(of_ours, of_theirs, **LIKE[dtype])
    assert passes == [size] * 3
    for ours, theirs in zip(layers.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    layers.eval(), plain.eval()
    with torch.no_grad():
        maps = some_maps(dtype)
        torch.testing.assert_close(layers(maps), one_by_one(plain, maps), **LIKE[dtype])
    assert passes == [size] * 4


def test_two_threads_take_the_loops_too(monkeypatch: pytest.MonkeyPatch, passes: list[int]) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    some_layers(nn.ReLU(), nn.MaxPool2d(2))(some_maps())
    assert passes == [2]


def test_gradient_of_a_pooled_normalisation_by_finite_differences() -> None:
    """In float32 with a step that keeps each window's largest value where it is."""
    layers = some_layers(nn.ReLU(), nn.MaxPool2d(2))
    norm = layers[0]
    maps, above = some_maps().requires_grad_(), torch.randn(3, 5, 4, 2)

    def loss(of: Tensor) -> Tensor:
        mean, variance = of.double().mean((0, 2, 3), True), of.double().var((0, 2, 3), correction=0, keepdim=True)
        scaled = (of.double() - mean) / (variance + 1e-5).sqrt()
        values = (scaled * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()  # type: ignore[index]
        windows = values.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        return (windows.max(-1).values * above).sum()

    gradient = torch.autograd.grad((layers(maps) * above).sum(), maps)[0]
    for place in torch.randint(maps.numel(), (20,)).tolist():
        step = torch.zeros(maps.numel(), dtype=torch.float64)
        step[place] = 1e-6
        step = step.view(maps.shape)
        slope = (loss(maps.detach() + step) - loss(maps.detach() - step)) / 2e-6
        assert gradient.flatten()[place].item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-4)


def test_a_large_mean_does_not_cancel() -> None:
    layers = some_layers(nn.ReLU())
    maps = some_maps() + 1e4
    wanted = one_by_one(copy.deepcopy(layers).double(), maps.double())
    torch.testing.assert_close(layers(maps).double(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_value_that_is_not_a_number_stays_so(place: int) -> None:
    layers = some_layers(nn.ReLU(), nn.MaxPool2d(2)).eval()
    maps = some_maps()
    maps[1, 2, place // 4, place % 4] = torch.nan
    with torch.no_grad():
        expected = one_by_one(layers, maps)
        assert expected.isnan().sum() == 1
        torch.testing.assert_close(layers(maps), expected, equal_nan=True)


def test_dead_channels_have_no_gradient() -> None:
    """A filter that is pruned away: scale and shift at zero."""
    layers = some_layers(nn.ReLU(), nn.MaxPool2d(2))
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    maps = some_maps().requires_grad_()
    output = layers(maps)
    assert not output.any()
    assert not any(gradient.any() for gradient in gradients(layers, output, maps, torch.ones_like(output)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")  # of the trace
def test_anything_else_runs_as_torch_runs_it(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_plainly(layers: Layers, maps: Tensor) -> None:
        torch.testing.assert_close(layers(maps), one_by_one(copy.deepcopy(layers), maps))
        assert not passes

    maps = some_maps()
    runs_plainly(some_layers(nn.ReLU()), maps.contiguous())
    runs_plainly(some_layers(nn.ReLU()).double(), maps.double())
    runs_plainly(some_layers(nn.ReLU()).eval(), maps)  # with a gradient
    runs_plainly(some_layers(nn.Sigmoid()), maps)
    runs_plainly(some_layers(), maps)
    runs_plainly(some_layers(nn.ReLU(), nn.MaxPool2d(3)), maps)
    runs_plainly(some_layers(nn.ReLU(), nn.MaxPool2d(2, stride=1)), maps)
    runs_plainly(some_layers(nn.ReLU(), nn.MaxPool2d(2, padding=1)), maps)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        some_layers(nn.ReLU())(some_maps()[:1, :, :1, :1])
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = some_layers(nn.ReLU())
        seen: list[object] = []
        getattr(hooked[1], register)(lambda *of, seen=seen: seen.append(of))
        runs_plainly(hooked, maps)
        assert seen
    with monkeypatch.context() as patch:
        patch.setattr(fast, "PLAIN", True)
        runs_plainly(some_layers(nn.ReLU()), maps)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        runs_plainly(some_layers(nn.ReLU()), maps)
    traced = torch.jit.trace(some_layers(nn.ReLU()), maps, check_trace=False)  # type: ignore[no-untyped-call]
    assert "batch_norm" in str(traced.inlined_graph)
    exported = torch.export.export(some_layers(nn.ReLU()), (maps,))
    assert "batch_norm" in str(exported.graph)
    assert "permute" not in str(exported.graph)  # nothing of the choice between the two is left in it
    assert not passes
