"""The switch between plain formulas and their fast twins."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from common import fast
from common.fast import adam
from common.fast.convolution import MatrixConv2d, MatrixConvTranspose2d

SCRIPT = """
from common import fast

@fast.replaced_by(lambda: "twin")
def formula():
    "A formula."
    return "plain"

print(formula(), formula.__wrapped__(), formula.__name__, formula.__doc__)
"""


@pytest.mark.parametrize(("variable", "called"), [(None, "twin"), ("", "twin"), ("0", "twin"), ("1", "plain")])
def test_the_variable_chooses(variable: str | None, called: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRILAB_PLAIN"}
    environment |= {} if variable is None else {"TRILAB_PLAIN": variable}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == f"{called} plain formula A formula."


def test_arguments_reach_the_chosen_function(monkeypatch: pytest.MonkeyPatch) -> None:
    @fast.replaced_by(lambda x, scale=1: ("twin", x * scale))
    def formula(x: int, scale: int = 1) -> tuple[str, int]:
        return "plain", x * scale

    assert formula(3, scale=2) == ("twin", 6)
    monkeypatch.setattr(fast, "PLAIN", True)
    assert formula(3, scale=2) == ("plain", 6)


@pytest.mark.parametrize("layer", [MatrixConv2d(4, 5, 3, 2, 1), MatrixConvTranspose2d(4, 5, 3, 2, 1)])
def test_plain_convolutions_are_torchs(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4, 7, 7)
    matrix = layer(x)
    monkeypatch.setattr(fast, "PLAIN", True)
    plain = layer(x)
    torchs = next(base for base in type(layer).__mro__ if base in (nn.Conv2d, nn.ConvTranspose2d))
    assert torch.equal(plain, torchs.forward(layer, x))
    assert plain.grad_fn.name() == "ConvolutionBackward0" != matrix.grad_fn.name()
    torch.testing.assert_close(matrix, plain)


def test_plain_adam_does_not_call_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "_fused_adam_", refuse)
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(AssertionError):
        adam.Adam(([weight], 0.1)).descend(weight.square().sum())
    monkeypatch.setattr(fast, "PLAIN", True)
    adam.Adam(([weight], 0.1)).descend(weight.square().sum())
    torch.testing.assert_close(weight, torch.full((3,), 0.9))  # the first step has the length of the learning rate
