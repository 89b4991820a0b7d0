"""A trained network out of a run or a file: `load(RUN)` gives a module that takes uint8 images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import RunError, UsageError, require_shape
from common.files import finished_metrics
from pruning.given import read_network
from pruning.sparse_file import load_sparse
from pruning.vgg import VGG11, widths_of

# Of CIFAR-10's pixels in [0, 1], as everybody writes them: for a file without the run that it came from.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MOST_CLASSES = 10_000
SMALLER = "smaller.safetensors"  # what a run that prunes filters leaves
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class TrainedNetwork(nn.Module):
    """A VGG11 with the normalisation of its training: images in, logits out; `classes` names the logits."""

    def __init__(
        self, network: VGG11, mean: Tensor, std: Tensor, classes: tuple[str, ...], dataset: str | None = None
    ) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.dataset = dataset  # that it was trained on; None for a file without its run
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(N, classes)` for images `(N, 3, 32, 32)`, uint8 or floats in [0, 1].

        Raises:
            UsageError: images of another shape, or of other integers.
        """
        require_shape("images", images.shape, (3, 32, 32))
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise UsageError(f"images are {images.dtype}; give torch.uint8 from 0 to 255, or floats from 0 to 1")
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        normalised = (pixels - self.get_buffer("mean")) / self.get_buffer("std")
        logits: Tensor = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return logits


def load(path: Path | str) -> TrainedNetwork:
    """Returns the fine-tuned network of a finished run's folder, or the network in a file.

    If the run pruned filters, it is the smaller network that they left.

    A file is one that `pruning/run.py` wrote (`.safetensors`, `.sparse`) or a state dict (`.pt`). If it lies in a
    run's `checkpoints`, the normalisation and the class names are the run's. A sparse file has its own; older ones and
    all other files are taken for networks of CIFAR-10.

    Raises:
        UsageError: there is nothing at `path`.
        RunError: no finished run of this task, or the file is damaged or holds another network.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if path.is_dir():
        # The smaller network is equal to the masked one, and faster. A folder that was shared small has a packed file.
        whole = path / "checkpoints" / "finetuned.safetensors"
        others = [path / "checkpoints" / SMALLER, whole, *sorted((path / "checkpoints").glob("network.*.sparse"))]
        file, run = next((other for other in others if other.exists()), whole), path
    else:
        file, run = path, path.parent.parent
    of_a_run = path.is_dir() or (path.parent.name == "checkpoints" and (run / "metrics.json").exists())
    metrics = finished_metrics(run, "finetuned_accuracy", "pruning/run.py") if of_a_run else {}
    said_by = run / "metrics.json" if of_a_run else file
    if not of_a_run and file.suffix == ".sparse":
        origin = load_sparse(file).origin
        metrics = {**origin, "dataset": {"name": origin.get("dataset")}} if origin else {}
    try:
        found = metrics.get("normalisation", {})
        mean, std = (torch.tensor(found.get(k, v)) for k, v in (("mean", CIFAR10_MEAN), ("std", CIFAR10_STD)))
        classes = tuple(map(str, metrics.get("classes", CIFAR10_CLASSES)))
        if mean.shape != (3,) or std.shape != (3,) or not 0 < len(classes) <= MOST_CLASSES:
            raise ValueError("three channels are expected, and classes")
    except (AttributeError, TypeError, ValueError) as error:
        raise RunError(f"{said_by}: damaged (normalisation: {error})") from None
    weights = read_network(file, classes=len(classes), any_widths=True)
    network = VGG11(len(classes), widths=widths_of(weights))
    network.load_state_dict(weights)
    record = metrics.get("dataset")
    return TrainedNetwork(network, mean, std, classes, record.get("name") if isinstance(record, dict) else None)
