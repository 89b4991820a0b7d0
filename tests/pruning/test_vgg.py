"""The network is torchvision's, and the fast layer is the convolution it replaces."""

import torch
import torch.nn.functional as F
from torchvision.models import vgg11_bn

from pruning.vgg import VGG11, Conv2dOn2x2, prunable_layers


def test_size_and_names() -> None:
    model = VGG11()
    assert sum(p.numel() for p in model.parameters()) == 9_231_114
    names = vgg11_bn().features.state_dict().keys()
    assert {n.removeprefix("features.") for n in model.state_dict() if n.startswith("features")} == set(names)
    assert list(prunable_layers(model)) == [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]


def test_same_outputs_as_torchvision_layers() -> None:
    model = VGG11().eval()
    theirs = vgg11_bn().features.eval()
    theirs.load_state_dict(model.features.state_dict())
    images = torch.randn(40, 3, 32, 32)
    torch.testing.assert_close(model(images), model.classifier(theirs(images).mean((2, 3))), rtol=1e-3, atol=1e-4)


def test_2x2_product_equals_the_convolution_and_its_gradients() -> None:
    torch.manual_seed(0)
    conv = Conv2dOn2x2(6, 5, kernel_size=3, padding=1).double()
    images = torch.randn(40, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(40, 5, 2, 2, dtype=torch.float64)
    results = []
    for output in (conv(images), F.conv2d(images, conv.weight, conv.bias, padding=1)):
        results.append((output, *torch.autograd.grad(output, (images, conv.weight, conv.bias), upstream)))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_2x2_layer_takes_other_maps_too() -> None:
    conv = Conv2dOn2x2(4, 3, kernel_size=3, padding=1)
    images = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(conv(images), F.conv2d(images, conv.weight, conv.bias, padding=1))
