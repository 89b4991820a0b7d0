"""The network is torchvision's, forward and backward."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg11_bn

from pruning.vgg import VGG11, prunable_layers


def torchvision_features() -> nn.Module:
    """torchvision's layers without values: drawing its 133 million weights takes seconds."""
    with torch.device("meta"):
        return vgg11_bn().features


def test_size_and_names() -> None:
    model = VGG11()
    assert sum(p.numel() for p in model.parameters()) == 9_231_114
    names = torchvision_features().state_dict().keys()
    assert {n.removeprefix("features.") for n in model.state_dict() if n.startswith("features")} == set(names)
    assert list(prunable_layers(model)) == [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]


def test_starts_as_the_identity_or_as_pytorch_does() -> None:
    """The two starts share their random numbers; the identity replaces as many filters as a layer has inputs."""
    networks = []
    for start in ("identity", "default"):
        torch.manual_seed(0)
        networks.append(VGG11(initialisation=start))  # type: ignore[arg-type]
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(VGG11().parameters(), networks[0].parameters(), strict=True))
    for identity, default in zip(*(prunable_layers(network).values() for network in networks), strict=True):
        copied = identity.in_channels
        assert torch.equal(identity.weight[copied:], default.weight[copied:])
        assert torch.equal(identity.weight[:copied].sum((0, 2, 3)), torch.ones(copied))
        assert int((identity.weight[:copied] != 0).sum()) == copied
        bound = (9 * copied) ** -0.5  # PyTorch's: uniform in ±1/√fan_in
        assert default.weight.abs().max() <= bound
        assert default.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_same_outputs_and_gradients_as_torchvision_layers() -> None:
    torch.manual_seed(0)
    model = VGG11().double()
    theirs = torchvision_features().to_empty(device="cpu").double()
    theirs.load_state_dict(model.features.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    outputs = model(images), model.classifier(theirs(images).mean((2, 3)))
    torch.testing.assert_close(*outputs)
    ours, others = (
        torch.autograd.grad(output.square().sum(), net.parameters())
        for output, net in zip(outputs, (model.features, theirs), strict=True)
    )
    torch.testing.assert_close(ours, others)
