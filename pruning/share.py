"""Shares a pruned network: `python pruning/share.py results/pruning/RUN FOLDER` writes weights and a model card.

`pruning/evaluate.py FOLDER` and `pruning.load(FOLDER)` take the folder like the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common import cli, sharing
from common.files import finished_metrics
from common.sharing import Card, Figure, Share
from pruning.settings import Settings
from pruning.trained import SMALLER, load

LOAD = """
import torch
from pruning import load

network = load("{folder}")
images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
classes = [network.classes[label] for label in network(images).argmax(1)]
"""
ON_HUB = {"cifar10": "uoft-cs/cifar10"}
PACKED = "network.codebook5.sparse"


def main(options: Share) -> None:
    """Writes the folder and prints it."""
    load(options.run)  # which refuses what is damaged
    metrics = finished_metrics(options.run, "finetuned_accuracy", "pruning/run.py")
    settings = cli.settings_of(Settings, options.run)
    sharing.share(options, settings, metrics, card(settings, metrics, small=options.small))
    print(options.folder)


def card(settings: Settings, metrics: Mapping[str, Any], *, small: bool = False) -> Card:
    """Returns what the model card says of the network; a `small` folder has the packed file alone."""
    name, filters = str(metrics["dataset"]["name"]), settings.granularity == "filter"
    return Card(
        what=(
            f"VGG11 with batch norm, trained on {name}, pruned ({settings.allocation}, {settings.schedule}) to "
            f"{metrics['conv_weights_kept']:.2%} of its convolution weights, and fine-tuned."
        ),
        task=("image-classification", "Image classification"),
        data=(ON_HUB.get(name, name), name),
        on_hub=name in ON_HUB,
        figures=[
            Figure("accuracy", "test accuracy", float(metrics["finetuned_accuracy"])),
            Figure("dense_accuracy", "test accuracy before pruning", float(metrics["dense_accuracy"])),
            Figure("compression_ratio", "compression (parameters / nonzero)", float(metrics["compression_ratio"])),
            Figure("theoretical_speedup", "multiply-adds saved, ratio", float(metrics["theoretical_speedup"])),
        ],
        tags=["pruning", "sparsity", "vgg", name],
        load=LOAD,
        limits=[
            f"`load` gives the smaller network that the filters left, `checkpoints/{SMALLER}`, which is faster."
            if filters and not small
            else "Once loaded, pruned weights are zeros in a network of the full size: torch is not faster on it. A "
            "`.safetensors` file has the zeros too; the `network.*.sparse` files of a run are small.",
            f"32×32 RGB images of {len(metrics['classes'])} classes; `load` normalises them as `metrics.json` says.",
            "One seed.",
        ],
        script="pruning/run.py",
        weights=["finetuned.safetensors", "masks.safetensors", *([SMALLER] if filters else [])],
        pictures=["outcome", "layers"],
        small={PACKED: lambda run: (run / "checkpoints" / PACKED).read_bytes()},
        made_small=(
            f"The weights are a packed sparse file with 32 shared values a layer{of_packed(metrics)}. The figures "
            "above are of the network in float32."
        ),
    )


def of_packed(metrics: Mapping[str, Any]) -> str:
    """Returns bytes and test accuracy of the packed network, where the run has measured them."""
    packed = metrics.get("sparse_files", {}).get("codebook5")
    return f", {packed['bytes']:,} bytes, with test accuracy {packed['accuracy']:.4f}" if packed else ""


if __name__ == "__main__":
    cli.command(main, Share)
