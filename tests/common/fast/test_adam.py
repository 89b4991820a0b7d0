"""The optimiser against torch's own, and its state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from common import fast
from common.fast.adam import Adam


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 5, 3), (2, 1, 3), (2,))]


def loss(weights: list[nn.Parameter]) -> Tensor:
    return sum(((weight - 1) ** 4).sum() for weight in weights) + weights[0].mean() * weights[2].sum()


@pytest.mark.parametrize(("plain", "beta1"), [(False, 0.9), (True, 0.9), (False, 0.5), (True, 0.5)])
def test_same_steps_as_torchs_plain_adam(plain: bool, beta1: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the version that is neither fused nor for many tensors at a time, with a rate for each group."""
    monkeypatch.setattr(fast, "PLAIN", plain)
    ours, theirs = parameters(), parameters()
    optimizer = Adam((ours[:2], 1e-2), (ours[2:], 1e-3), beta1=beta1)
    groups = [{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 1e-3}]
    reference = torch.optim.Adam(groups, betas=(beta1, 0.999), foreach=False, fused=False)
    for _ in range(50):
        optimizer.descend(loss(ours))
        reference.zero_grad()
        loss(theirs).backward()
        reference.step()
    for one, other, start in zip(ours, theirs, parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert (one - start).abs().min() > 0.01


def test_steps_by_gradients_in_place_as_torchs_fused_adam() -> None:
    """To the last bit, with a learning rate that changes."""
    ours, theirs = parameters(), parameters()
    optimizer, reference = Adam((ours, 1e-2)), torch.optim.Adam(theirs, lr=1e-2, fused=True)
    for step in range(20):
        for weights, either in ((ours, optimizer), (theirs, reference)):
            either.param_groups[0]["lr"] = 1e-2 / (1 + step)
            either.zero_grad()
            loss(weights).backward()
            either.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_parameter_outside_the_loss_is_refused() -> None:
    weights = parameters()
    optimizer = Adam((weights, 1e-2))
    (weights[0] ** 2).sum().backward()
    with pytest.raises(ValueError, match="2 of 3 parameters have no gradient"):
        optimizer.step()


def test_a_loss_moves_only_its_own_agent() -> None:
    weights = parameters()
    Adam((weights, 1e-2)).descend(sum((weight[0] ** 2).sum() for weight in weights))
    for weight, start in zip(weights, parameters(), strict=True):
        assert torch.equal(weight[1], start[1])
        assert (weight[0] != start[0]).all()


def test_goes_on_from_its_state() -> None:
    ours = parameters()
    optimizer = Adam((ours, 1e-2))
    for _ in range(3):
        optimizer.descend(loss(ours))
    state, weights = copy.deepcopy(optimizer.state_dict()), [nn.Parameter(weight.detach().clone()) for weight in ours]
    resumed = Adam((weights, 1e-2))
    resumed.load_state_dict(state)
    for _ in range(3):
        optimizer.descend(loss(ours))
        resumed.descend(loss(weights))
    assert all(torch.equal(one, other) for one, other in zip(ours, weights, strict=True))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Adam((weights[:2], 1e-2)).load_state_dict(state)


@pytest.mark.parametrize("plain", [False, True])
def test_a_module_without_parameters_is_a_group_too(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "PLAIN", plain)
    weights = parameters()
    Adam((nn.ReLU().parameters(), 1e-3), (weights, 1e-2)).descend(loss(weights))
    assert not torch.equal(weights[0], parameters()[0])
