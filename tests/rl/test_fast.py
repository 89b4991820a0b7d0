"""The fast twins against the plain formulas, in value and gradient, and the switch between them."""

from typing import Any

import pytest
import torch
from torch import Tensor

import common.fast
from rl import compiled, fast
from rl.networks import StackedMLP, perceptron, squashed_gaussian
from tests.rl.test_sac import batch_and_noise, sac

PLAIN_PERCEPTRON: Any = perceptron.__wrapped__  # type: ignore[attr-defined]
PLAIN_GAUSSIAN: Any = squashed_gaussian.__wrapped__  # type: ignore[attr-defined]


def stack_and_input(sizes: list[int]) -> tuple[StackedMLP, Tensor]:
    stack = StackedMLP(sizes, [torch.Generator().manual_seed(k) for k in range(3)])
    return stack, torch.randn(3, 11, sizes[0], requires_grad=True)


def value_and_gradients(function: Any, stack: StackedMLP, x: Tensor, dtype: torch.dtype, frozen: bool) -> list[Tensor]:
    """Returns the outputs, the gradient of `x` and, unless `frozen`, of all weights and biases."""
    layers = list(zip(stack.weights, stack.biases, strict=True))
    if frozen:
        layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
    outputs = function(x, layers, dtype)
    weight = torch.linspace(-1, 2, outputs.numel()).view_as(outputs)
    wanted = [x] if frozen else [x, *stack.parameters()]
    return [outputs.detach(), *torch.autograd.grad((outputs * weight).sum(), wanted)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[5, 8, 3], [5, 16, 16, 1], [5, 16, 16, 2], [5, 6, 7, 8, 2]])
def test_fast_perceptron_is_the_plain_one(sizes: list[int], dtype: torch.dtype, frozen: bool) -> None:
    stack, x = stack_and_input(sizes)
    plain = value_and_gradients(PLAIN_PERCEPTRON, stack, x, dtype, frozen)
    ours = value_and_gradients(fast.perceptron, stack, x, dtype, frozen)
    assert len(ours) == len(plain) == (2 if frozen else 2 + 2 * (len(sizes) - 1))
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        if dtype == torch.float32:
            torch.testing.assert_close(mine, theirs)
        else:  # both round the same factors, to 8 bits
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_perceptron_without_gradients_is_the_plain_one(dtype: torch.dtype) -> None:
    stack, x = stack_and_input([5, 16, 16, 1])
    layers = list(zip(stack.weights, stack.biases, strict=True))
    with torch.no_grad():
        ours, plain = fast.perceptron(x, layers, dtype), PLAIN_PERCEPTRON(x, layers, dtype)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, plain)
    assert torch.equal(ours, fast.perceptron(x, layers, dtype))  # as with gradients, to the bit


def test_the_compiled_loops_are_for_one_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(fast._Perceptron, "apply", lambda *_: called.append("torch"))
    monkeypatch.setattr(compiled.Perceptron, "apply", lambda *_: called.append("compiled"))
    stack, x = stack_and_input([5, 8, 2])
    stack(x)
    assert called == ["compiled" if threads == 1 else "torch"]


@pytest.mark.usefixtures("threads")
def test_fast_perceptron_changes_neither_input_nor_weights() -> None:
    """It works in place inside; what it was given stays as it was."""
    stack, x = stack_and_input([5, 8, 8, 2])
    before = [tensor.detach().clone() for tensor in (x, *stack.parameters())]
    value_and_gradients(fast.perceptron, stack, x, torch.float32, False)
    assert all(torch.equal(old, new) for old, new in zip(before, (x, *stack.parameters()), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_squashed_gaussian_is_the_plain_one(dtype: torch.dtype) -> None:
    mean, log_std, noise = (torch.randn(3, 20, 4, dtype=dtype) for _ in range(3))
    mean[0, 0], log_std[0, 1], log_std[0, 2] = 30, -20, 2  # tanh rounds to 1; the bounds of the log deviation
    for_action, for_log = torch.randn(3, 20, 4, dtype=dtype), torch.randn(3, 20, dtype=dtype)
    results = []
    for function in (fast.squashed_gaussian, PLAIN_GAUSSIAN):
        m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
        action, log_probability = function(m, s, noise)
        loss = (for_action * action).sum() + (for_log * log_probability).sum()
        results.append([action, log_probability, *torch.autograd.grad(loss, [m, s])])
        with torch.no_grad():
            torch.testing.assert_close(list(function(m, s, noise)), results[-1][:2], rtol=0, atol=0)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("episodic", [True, False])
def test_the_fast_twins_are_the_default_and_the_switch_runs_the_plain_functions(
    episodic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten updates with the stacked ICM end, to rounding, in the same weights either way."""

    def trained(plain: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(common.fast, "PLAIN", plain)
        agents = sac(range(2), icm="stacked", feature_size=6, icm_width=10, bonus_episodic=episodic)
        for step in range(10):
            agents.update(*batch_and_noise(2, step, agents.settings.window))
        return agents.state_dict()

    fast_weights, plain_weights = trained(False), trained(True)
    for name, tensor in plain_weights.items():
        torch.testing.assert_close(fast_weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the fast twin was called")

    monkeypatch.setattr(fast._Perceptron, "apply", refuse)
    monkeypatch.setattr(compiled.Perceptron, "apply", refuse)
    monkeypatch.setattr(fast._SquashedGaussian, "apply", refuse)
    trained(True)
    with pytest.raises(AssertionError, match="the fast twin was called"):
        trained(False)


def test_a_cuda_graph_is_for_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(*_: Any) -> dict[str, Tensor]:
        return {}

    assert fast.captured(update, torch.device("cpu")) is update
    monkeypatch.setattr(common.fast, "PLAIN", True)
    assert fast.captured(update, torch.device("cuda")) is update


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_captured_update_is_the_update() -> None:
    device = torch.device("cuda")
    agents = [sac(range(2), device=device, icm="stacked") for _ in range(2)]
    captured = fast.CapturedUpdate(agents[1].update)
    for step in range(8):
        batch, noise = batch_and_noise(2, step, agents[0].settings.window)
        batch, noise = type(batch)(*(t.to(device) for t in batch)), type(noise)(*(t.to(device) for t in noise))
        measured = [update(batch, noise) for update in (agents[0].update, captured)]
        for name, value in measured[0].items():
            torch.testing.assert_close(measured[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name, tensor in agents[0].state_dict().items():
        torch.testing.assert_close(agents[1].state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
