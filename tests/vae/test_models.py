"""Shapes, sizes, and the precision of codes."""

import pytest
import torch
import torch.nn.functional as F

from vae import models
from vae.settings import Settings


@pytest.mark.parametrize("arch", ["fc", "conv", "deep"])
def test_shapes(arch: models.Architecture) -> None:
    model = models.build(arch, 5, hidden=(32, 16), channels=8)
    mean, log_variance = model.encode(torch.rand(3, 1, 28, 28))
    assert mean.shape == log_variance.shape == (3, 5)
    assert model.decode(mean).shape == (3, 1, 28, 28)


def test_the_network_of_pytorchs_example() -> None:
    """784-400-20: the layers of pytorch/examples/vae/main.py and their number of parameters."""
    model = models.build("fc", 20, hidden=(400,), channels=8)
    layers = (784 * 400 + 400) + (400 * 40 + 40) + (20 * 400 + 400) + (400 * 784 + 784)
    assert sum(parameter.numel() for parameter in model.parameters()) == layers


def test_codes_are_float32_under_autocast() -> None:
    """bfloat16 has steps of 1/64 near 3, wider than a narrow posterior: codes must not be rounded to it."""
    model = models.build("fc", 2, hidden=(16,), channels=8)
    with torch.no_grad():
        model.posterior.bias[:2] = 3 + 1 / 512
        model.posterior.weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = model.encode(torch.rand(1, 1, 28, 28))
        assert mean.dtype == torch.float32
        assert mean[0, 0].item() == 3 + 1 / 512
        seen: list[torch.Tensor] = []
        model.from_code.register_forward_hook(lambda layer, inputs, features: seen.append(features))
        codes = torch.tensor([[3.0, 3.0], [3.0 + 1 / 512, 3.0]])
        logits = model.decode(codes)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(seen[0], F.linear(codes, model.from_code.weight, model.from_code.bias))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_an_architecture_that_has_no_title_yet_goes_by_its_name() -> None:
    assert Settings(arch="mine").model_title.startswith("mine VAE, prior N(0, 1)")  # type: ignore[arg-type]


def test_learned_noise_only_where_asked() -> None:
    assert models.build("fc", 2, hidden=(8,), channels=8).log_noise is None
    assert models.build("fc", 2, hidden=(8,), channels=8, learn_noise=True).log_noise is not None
