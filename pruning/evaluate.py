"""What a trained network is worth: `python pruning/evaluate.py RUN|FILE`.

It prints the accuracy on the test images, the time of a batch and the layers, or it classifies images of your own.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from annotated_types import Interval
from torch import Tensor

from common import cli, data, training
from common.data import Split
from common.device import set_up
from common.experiment import say
from common.image_folders import loose_images
from common.tables import counted
from pruning import account, measures
from pruning.masks import Masks
from pruning.trained import TrainedNetwork, load
from pruning.vgg import VGG11, full_widths, prunable_weights, widths_of

SHAPE = (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Say how accurate, fast and sparse a trained network is, or classify images with it."""

    network: tyro.conf.Positional[Path]
    """Run folder of pruning/run.py (its fine-tuned network; of a run that pruned filters, the smaller one that they
    left), or a file: .safetensors, .sparse or .pt."""
    images: Path | None = None
    """Folder of images, or one image, to classify: a CSV line for each, file, class and probability."""
    resize: bool = False
    """Make 32×32 RGB of images of another size or colour."""
    dataset: Literal["auto", "cifar10", "digits"] = "auto"
    """Test images: cifar10 or digits; auto takes those that the run was trained on."""
    data_dir: Path | None = None
    """Folder of the data; none means DATA_DIR or data."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads; none means one for each core that other processes leave free."""
    batch_size: Annotated[int, Interval(ge=1, le=100_000)] = 128
    """Images of the larger of the two batches that are timed; the other is one image."""


def main(options: Evaluate) -> None:
    """Prints what was asked for."""
    network = load(options.network)
    device = set_up("cpu", options.threads)
    if network.dataset is None:
        say(f"{options.network} lies in no run: it is taken for one of CIFAR-10, with its normalisation and classes")
    if options.images is not None:
        classify(network, *loose_images(options.images, SHAPE, options.resize), options.batch_size)
        return
    name = (network.dataset or "auto") if options.dataset == "auto" else options.dataset
    dataset = data.load(name, task_default="cifar10", shape=SHAPE, data_dir=options.data_dir, device=device)
    if dataset.classes != network.classes:
        say(
            f"warning: the network's classes are {', '.join(network.classes)}, those of {dataset.caption} are others: "
            "the accuracy means nothing; choose its own --dataset"
        )
    accuracy = accuracy_on(network, dataset.test)
    print(f"accuracy {accuracy:.4f} on {len(dataset.test)} test images of {dataset.caption}")
    print_costs(network, dataset.test.images[: options.batch_size], measures.at_chance(accuracy, len(dataset.test)))


def accuracy_on(network: TrainedNetwork, split: Split) -> float:
    """Returns the fraction of the split's uint8 images that the network classifies correctly."""
    return training.accuracy(network, lambda rows: split.images[rows], split.labels)


def print_costs(network: TrainedNetwork, images: Tensor, useless: bool) -> None:
    """Prints the median time of one image and of all uint8 `images`, and every layer's weights that are not zero.

    What a `useless` network, at chance, saves is marked.
    """
    masks: Masks = {name: weight != 0 for name, weight in prunable_weights(network.network).items()}
    for batch in (images[:1], images):
        seconds = account.median_seconds({"network": network}, batch, seconds=1.0)["network"]
        threads = counted(torch.get_num_threads(), "thread")
        print(f"time {1000 * seconds:.1f} ms for a batch of {len(batch)}, {threads}")
    example = torch.zeros(1, *SHAPE)
    table = account.layer_table(network.network, masks, example)
    print(f"{'layer':14}{'sparsity':>9}{'weights':>11}{'nonzero':>11}")
    for row in table:
        print(f"{row['name']:14}{row['sparsity']:>9.4f}{row['weights']:>11,}{row['nonzero']:>11,}")
    totals = account.totals(network.network, table)
    if (widths := widths_of(network.network.state_dict())) == full_widths():
        kept, compression, speedup = (
            totals[k] for k in ("conv_weights_kept", "compression_ratio", "theoretical_speedup")
        )
        smaller, faster = measures.ratio(compression, useless), measures.ratio(speedup, useless)
        print(f"weights kept {kept:.4f}, compression {smaller}, theoretical speed-up {faster}")
    else:
        whole = VGG11(len(network.classes))
        every: Masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(whole).items()}
        full = account.totals(whole, account.layer_table(whole, every, example))
        fewer = ", ".join(
            f"{full[of] / totals[of]:.2f}× fewer {name}"
            for of, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds"))
        )
        mark = f" ({measures.CHANCE})" if useless else ""
        print(f"widths {' '.join(map(str, widths))}: {sum(widths):,} of {sum(full_widths()):,} filters, {fewer}{mark}")


@torch.inference_mode()
def classify(network: TrainedNetwork, names: list[str], images: Tensor, batch_size: int) -> None:
    """Prints a CSV line for each image: its file, the likeliest class and the class's probability."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class", "probability"])
    probabilities = torch.cat([network(batch).softmax(1) for batch in images.split(batch_size)])
    for name, (probability, label) in zip(names, zip(*probabilities.max(1), strict=True), strict=True):
        writer.writerow([name, network.classes[int(label)], f"{float(probability):.4f}"])


if __name__ == "__main__":
    cli.command(main, Evaluate)
