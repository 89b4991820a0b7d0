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


@pytest.mark.parametrize("arch", ["fc", "conv", "deep"])
def test_a_conditional_model_tells_classes_apart_and_a_plain_one_ignores_them(arch: models.Architecture) -> None:
    images, codes, labels = torch.rand(3, 1, 28, 28), torch.randn(3, 5), torch.tensor([0, 4, 9])
    for classes in (0, 10):
        model = models.build(arch, 5, hidden=(32, 16), channels=8, classes=classes).eval()
        encoded = [model.encode(images, of)[0] for of in (labels, labels.flip(0))]
        seen = [model.decode(codes, of) for of in (labels, labels.flip(0))]
        assert seen[0].shape == (3, 1, 28, 28)
        for one, other in (encoded, seen):
            different = [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]
            assert different == ([True, False, True] if classes else [False] * 3)  # the middle image keeps its class


def test_a_class_may_be_given_as_weights() -> None:
    model = models.build("fc", 5, hidden=(16,), channels=8, classes=10)
    codes, labels = torch.randn(3, 5), torch.tensor([0, 4, 9])
    torch.testing.assert_close(model.decode(codes, F.one_hot(labels, 10).float()), model.decode(codes, labels))
    with pytest.raises(ValueError, match="labels"):
        model.decode(codes)


def test_new_options_leave_the_weights_of_a_plain_model_as_they_are() -> None:
    torch.manual_seed(0)
    plain = models.build("conv", 3, hidden=(), channels=8).state_dict()
    torch.manual_seed(0)
    vamp = models.build("conv", 3, hidden=(), channels=8, pseudo_inputs=4).state_dict()
    assert vamp.keys() - plain.keys() == {"pseudo_inputs"}
    assert all(torch.equal(tensor, vamp[name]) for name, tensor in plain.items())


def test_batch_norm_does_not_take_pseudo_inputs_for_images() -> None:
    model = models.build("deep", 3, hidden=(), channels=0, pseudo_inputs=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    means, _ = model.components()
    assert model.encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    alone = model.eval().encode(torch.sigmoid(model.pseudo_inputs))[0]  # type: ignore[arg-type]
    torch.testing.assert_close(means, alone)


def test_pseudo_inputs_start_from_images_and_have_their_classes() -> None:
    model = models.build("fc", 3, hidden=(16,), channels=0, classes=10, pseudo_inputs=4)
    images, labels = torch.rand(4, 1, 28, 28).round(), torch.tensor([7, 7, 1, 0])
    model.start_pseudo_inputs(images, labels)
    assert model.pseudo_inputs is not None
    shown = torch.sigmoid(model.pseudo_inputs)
    torch.testing.assert_close(shown, 0.05 + 0.9 * images)
    torch.testing.assert_close(model.components(), model.encode(shown, labels))
