"""What pruning saved: weights, multiply-adds, bytes, and the measured time of a batch."""

from __future__ import annotations

import copy
import functools
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import Dataset
from common.timing import in_turn, quartiles
from pruning import measures, sparse_file
from pruning.filters import filter_counts
from pruning.masks import Masks
from pruning.vgg import VGG11, prunable_layers


@torch.inference_mode()
def output_positions(model: VGG11, image: Tensor) -> dict[str, int]:
    """Returns the height times the width of each convolution's output, for an image `(1, C, H, W)`."""
    positions = {}
    for index, module in enumerate(model.features):
        image = module(image) if not isinstance(module, nn.BatchNorm2d) else image  # its statistics would change
        if isinstance(module, nn.Conv2d):
            positions[f"features.{index}"] = image.shape[2] * image.shape[3]
    return positions


def layer_table(model: VGG11, masks: Masks, image: Tensor, filters: bool = False) -> list[dict[str, Any]]:
    """Returns a row for each convolution: name, sparsity, weights, nonzero, and its multiply-adds before and after.

    The multiply-adds are those for one image like `image` (1, C, H, W). With `filters` a row also counts the filters.
    """
    positions = output_positions(model, image)
    table = []
    for name, mask in masks.items():
        weights, nonzero = mask.numel(), int(mask.sum())
        row = {"name": name, "sparsity": 1 - nonzero / weights, "weights": weights, "nonzero": nonzero}
        macs = {"multiply_adds": weights * positions[name], "multiply_adds_after": nonzero * positions[name]}
        table.append({**row, **macs, **(filter_counts([mask]) if filters else {})})
    return table


def totals(model: VGG11, table: list[dict[str, Any]], smaller: VGG11 | None = None) -> dict[str, float]:
    """Returns the fraction of weights kept, the compression ratio and the theoretical speed-up (Blalock et al. 2020).

    The two ratios are defined as in ShrinkBench. A parameter counts as pruned only if its mask drops it, not because it
    happens to be zero, as a bias is at the start. If filters were pruned, what is left is the `smaller` network: its
    parameters and multiply-adds are counted, so the biases, batch-norm entries and inputs of the classifier that went
    with the filters count as pruned.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights, nonzero = sum(row["weights"] for row in table), sum(row["nonzero"] for row in table)
    dense_macs = sum(row["multiply_adds"] for row in table) + model.classifier.weight.numel()
    left = model if smaller is None else smaller
    macs = sum(row["multiply_adds_after"] for row in table) + left.classifier.weight.numel()
    remaining = parameters - (weights - nonzero)
    if smaller is not None:
        remaining = sum(parameter.numel() for parameter in smaller.parameters())
    return {
        "conv_weights_kept": nonzero / weights,
        "parameters": parameters,
        "nonzero_parameters": remaining,
        "compression_ratio": parameters / remaining,
        "multiply_adds": dense_macs,
        "theoretical_speedup": dense_macs / macs,
    }


class SparseConv2d(nn.Module):
    """A padded 3×3 convolution as a sparse (CSR) matrix times unfolded patches, which skips the dropped weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.matrix = conv.weight.detach().reshape(conv.out_channels, -1).contiguous().to_sparse_csr()
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def forward(self, input: Tensor) -> Tensor:
        """Returns `(B, out, H, W)` for `(B, in, H, W)`."""
        batch, _, height, width = input.shape
        patches = F.unfold(input, kernel_size=3, padding=1).transpose(0, 1).flatten(1)  # (9·in, B·H·W)
        output = self.matrix @ patches + self.bias.unsqueeze(1)
        return output.view(-1, batch, height, width).transpose(0, 1)


def latencies(
    dense: VGG11, pruned: VGG11, images: Tensor, seconds: float, smaller: VGG11 | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns `latency` and `latency_quartiles` of a forward pass in float32, for one image and all `images`.

    `images` are (B, C, H, W). `latency` has the median seconds by batch and network, `latency_quartiles` the first and
    the third quartile. `dense` is the network before pruning. `pruned` has the same dense kernels, and most of its
    weights are zero. `pruned_csr` uses torch's sparse matrix product in place of the convolutions. `smaller` is what
    filter pruning leaves. All are timed in turn, for at least three rounds and at least `seconds`.
    """
    sparse = copy.deepcopy(pruned)
    for name, conv in prunable_layers(sparse).items():
        sparse.features[int(name.removeprefix("features."))] = SparseConv2d(conv)
    models = {"dense": dense, "pruned": pruned, "pruned_csr": sparse} | ({"smaller": smaller} if smaller else {})
    times = {f"batch_{len(batch)}": seconds_of(models, batch, seconds) for batch in (images[:1], images)}
    return {
        "latency": {batch: _each(statistics.median, of) for batch, of in times.items()},
        "latency_quartiles": {batch: _each(quartiles, of) for batch, of in times.items()},
    }


def _each(summary: Callable[[list[float]], Any], times: Mapping[str, list[float]]) -> dict[str, Any]:
    return {name: summary(of) for name, of in times.items()}


def median_seconds(models: Mapping[str, nn.Module], images: Tensor, seconds: float) -> dict[str, float]:
    """Returns each model's median time of `images` in seconds, the models in turn for so many seconds."""
    return _each(statistics.median, seconds_of(models, images, seconds))


@torch.inference_mode()
def seconds_of(models: Mapping[str, nn.Module], images: Tensor, seconds: float) -> dict[str, list[float]]:
    """Returns the seconds that each model took for `images`, round by round, the models in turn."""
    works = {name: functools.partial(model.eval(), images) for name, model in models.items()}
    return in_turn(works, images.device, seconds)


def save_sparse_files(
    folder: Path, network: VGG11, masks: Masks, dense_bytes: int, dataset: Dataset, dense: VGG11
) -> dict[sparse_file.Values, dict[str, float]]:
    """Writes `network.<format>.sparse` in every value format; returns for each its bytes, error and test accuracy.

    Error and accuracy are those of the network read back from the file. The error is the largest of any parameter.
    `dense_over_sparse` is what the format and pruning save together. `coding_ratio` is the part of the format, which
    the `dense` network has too, and `pruning_ratio` is what pruning adds: the bytes of the dense network in the same
    format over those of the pruned one. Their product is the whole.
    """
    files: dict[sparse_file.Values, dict[str, float]] = {}
    origin = {
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "normalisation": {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()},
    }
    for values in sparse_file.VALUES:
        path = folder / f"network.{values}.sparse"
        size = sparse_file.save_sparse(path, network.state_dict(), masks, values, origin)
        reloaded = copy.deepcopy(network)
        reloaded.load_state_dict(sparse_file.load_sparse(path).weights)
        pairs = zip(reloaded.parameters(), network.parameters(), strict=True)
        files[values] = {
            "bytes": size,
            "dense_over_sparse": dense_bytes / size,
            "largest_error": max(float((one - other).detach().abs().max()) for one, other in pairs),
            "accuracy": measures.accuracy(reloaded, dataset, dataset.test),
        }
    unpruned = without_zeros(dense)
    everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
    for values, file in files.items():
        size = len(sparse_file.pack(unpruned, everything, values, origin))
        ratios = {"coding_ratio": dense_bytes / size, "pruning_ratio": size / file["bytes"]}
        file |= {"unpruned_bytes": size, **ratios}
    return files


@torch.no_grad()
def without_zeros(network: VGG11) -> dict[str, Tensor]:
    """Returns the state dict of a network with the zeros of each convolution replaced by its other weights, in turn.

    Where a run starts from a sparse network it has no dense one. In a file this one takes as many bytes as a dense
    network whose weights have the same distribution.
    """
    weights = dict(network.state_dict())
    for name in prunable_layers(network):
        weight = weights[f"{name}.weight"]
        zero, others = weight == 0, weight[weight != 0]
        if zero.any() and len(others):
            filled = weight.clone()
            filled[zero] = others[torch.arange(int(zero.count_nonzero()), device=others.device) % len(others)]
            weights[f"{name}.weight"] = filled
    return weights
