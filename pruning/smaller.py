"""What filter pruning leaves: a dense VGG11 with fewer channels, equal to the masked network, and its files.

The file `smaller.safetensors` is a state dict like any other of this project. Its header names the widths, and the
shapes of its tensors give them too. The ONNX file takes pixels in [0, 1] and needs none of this code.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data import Dataset
from common.errors import UsageError
from common.fast.convolution import MatrixConv2d
from common.files import save_weights, write_atomically
from pruning import measures
from pruning.filters import kept_filters
from pruning.masks import Masks
from pruning.trained import TrainedNetwork
from pruning.vgg import VGG11, prunable_layers, widths_of

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18


def smaller_network(network: VGG11, masks: Masks) -> VGG11:
    """Returns the network without the filters that `masks` drop whole, in the same mode and on the same device.

    With a filter go its bias, its batch-norm entries and the next layer's inputs. If the dropped filters put out 0, as
    `clear_filters` makes sure, the outputs are those of `network`, to rounding.
    """
    places = _places(masks)
    weights = {name: tensor[places.get(name, ...)] for name, tensor in network.state_dict().items()}
    return network_of(weights).train(network.training)


def widened(smaller: Mapping[str, Tensor], network: VGG11, masks: Masks) -> dict[str, Tensor]:
    """Returns the state dict of `network` with the values of its `smaller_network` put where `masks` keep them.

    What belongs to the dropped filters stays as `network` has it.
    """
    places, weights = _places(masks), {}
    for name, tensor in network.state_dict().items():
        weights[name] = tensor.clone()
        weights[name][places.get(name, ...)] = smaller[name]
    return weights


def _places(masks: Masks) -> dict[str, Any]:
    """Returns by tensor of a state dict the indices of what stays where `masks` drop whole filters."""
    places: dict[str, Any] = {}
    inputs: Tensor | None = None  # all colours stay
    for name, filters in kept_filters(masks).items():
        outputs = filters.nonzero()[:, 0]
        norm = f"features.{int(name.removeprefix('features.')) + 1}"
        places[f"{name}.weight"] = outputs if inputs is None else (outputs[:, None], inputs)
        for entry in (f"{name}.bias", *(f"{norm}.{of}" for of in ("weight", "bias", "running_mean", "running_var"))):
            places[entry] = outputs
        inputs = outputs
    places["classifier.weight"] = (slice(None), inputs)
    return places


def network_of(weights: Mapping[str, Tensor]) -> VGG11:
    """Returns the VGG11 of the widths and classes of a state dict, with its values, on its device."""
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced: no other random number may change
        network = VGG11(len(weights["classifier.weight"]), "default", widths_of(weights))
    network.to(weights["classifier.weight"])
    network.load_state_dict(dict(weights))
    return network


def save_smaller(path: Path, network: VGG11) -> int:
    """Writes the network as safetensors, its widths in the header; returns the size in bytes."""
    weights = network.state_dict()
    save_weights(path, weights, {"network": "VGG11", "widths": " ".join(map(str, widths_of(weights)))})
    return path.stat().st_size


def account_smaller(
    path: Path,
    network: VGG11,
    masked: VGG11,
    dataset: Dataset,
    images: Tensor,
    latency: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Writes the smaller network; returns its widths, parameters, bytes, test accuracy, speed, and how exact it is.

    `largest_difference` is that of the logits from the masked network's, for normalised `images` (B, C, H, W).
    `speedup` is the measured time of the dense network over its own, from the medians in `latency`, batch by batch.
    """
    return {
        "widths": list(widths_of(network.state_dict())),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": save_smaller(path, network),
        "accuracy": measures.accuracy(network, dataset, dataset.test),
        "largest_difference": largest_difference(network, masked, images),
        "speedup": {batch: times["dense"] / times["smaller"] for batch, times in latency.items()},
    }


@torch.inference_mode()
def largest_difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Returns the largest absolute difference of the logits for `images` (B, C, H, W), both in evaluation mode."""
    return float((one.eval()(images) - other.eval()(images)).abs().max())


def require_onnx(option: str) -> None:
    """Raises UsageError if a package that writing and running ONNX takes is missing."""
    if missing := next((name for name in ONNX_PACKAGES if find_spec(name) is None), None):
        raise UsageError(f"{option}: the package {missing} is missing; pip install -e '.[onnx]'")


def export_onnx(path: Path, network: TrainedNetwork, images: Tensor) -> dict[str, float]:
    """Writes the network as ONNX, runs the file once, and returns its bytes and how far its logits are from torch's.

    `images` are (B, 3, 32, 32), uint8. The file takes pixels in [0, 1], any number of images, and normalises them.
    """
    import onnxruntime

    plain = copy.deepcopy(network).cpu()  # the run goes on with its own, on its device
    plain.network = with_torch_convolutions(plain.network)
    pixels = images.cpu().float() / 255
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name
        torch.onnx.export(
            plain,
            (pixels[:1].expand(2, -1, -1, -1),),
            str(written),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        content = written.read_bytes()
    write_atomically(path, content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": pixels.numpy()})
    with torch.inference_mode():
        difference = (network(images).cpu() - torch.from_numpy(logits)).abs().max()
    return {"bytes": len(content), "largest_difference": float(difference)}


def with_torch_convolutions(network: VGG11) -> VGG11:
    """Returns a copy whose convolutions are all torch's own class, which exporters and other libraries can trace."""
    result = copy.deepcopy(network)
    for name, conv in prunable_layers(result).items():
        if isinstance(conv, MatrixConv2d):
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
            plain.weight, plain.bias = conv.weight, conv.bias
            result.features[int(name.removeprefix("features."))] = plain
    return result
