"""Speed of training and scanning, as a ratio to the plain versions that people write by hand, timed in turn in one run.

`python benchmarks/pruning_speed.py` runs all comparisons. The plain loop is float32 with a DataLoader, torchvision's
transforms and torchvision's layers, and has the same network and batch size. `torch's kernels` is our own loop with
`TRILAB_PLAIN=1`. The naive scan passes every held-out image through the whole network for each of the 8 × 12 settings.
Rates are medians over the rounds; the range of the ratios of each round shows the noise.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.models import vgg11_bn

from common import data, fast
from common.device import autocast, resolve_precision, set_up, synchronize
from pruning.measures import inputs
from pruning.sensitivity import SPARSITIES, scan
from pruning.vgg import VGG11, prunable_layers

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compares the speed of training and of the sensitivity scan with plain versions."""

    rounds: int = 5
    """Number of rounds; in each round the two sides of a comparison run one after the other."""
    steps: int = 10
    """Training steps in a round."""
    scan_images: int = 256
    """Held-out images to scan."""
    batch_size: int = 128
    """Images in a training step, on both sides."""
    workers: int = 2
    """DataLoader workers of the second plain loop; the first has none."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads of both sides; none means torch's choice, all cores."""
    data_dir: Path | None = None
    """Folder with the data sets; none means the variable DATA_DIR, or else ./data."""
    output: Path | None = None
    """JSON file to write the results to."""


class PlainVGG(nn.Module):
    """The same network as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg11_bn(weights=None).features
        self.classifier = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(B, 10)` for images `(B, 3, 32, 32)`."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class PlainDataset(TorchDataset[tuple[Tensor, int]]):
    """PIL images that go through torchvision's transforms one by one."""

    def __init__(self, split: data.Split, transform: Callable[[Any], Tensor]) -> None:
        self.images = [transforms.functional.to_pil_image(image) for image in split.images.cpu()]
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def normalisation(dataset: data.Dataset) -> list[Any]:
    """Returns the plain loop's ToTensor and Normalize."""
    return [transforms.ToTensor(), transforms.Normalize(dataset.mean.tolist(), dataset.std.tolist())]


@contextlib.contextmanager
def torch_as_it_comes() -> Iterator[None]:
    """Sets torch's default precision of float32 products, as in a plain script."""
    ours = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(ours)


def plain_training(dataset: data.Dataset, device: torch.device, batch_size: int, workers: int) -> Callable[[int], None]:
    """Returns a function that runs a number of steps of the plain loop."""
    augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train = PlainDataset(dataset.train, transforms.Compose([*augmentation, *normalisation(dataset)]))
    loader = DataLoader(
        train, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    model = PlainVGG().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def steps(count: int) -> None:
        with torch_as_it_comes():
            # A new pass each time: no batch is made between the rounds.
            for images, labels in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(images.to(device)), labels.to(device)))
                optimizer.step()
            synchronize(device)

    return steps


@contextlib.contextmanager
def torchs_kernels() -> Iterator[None]:
    """Does what TRILAB_PLAIN=1 in the environment does."""
    ours, fast.PLAIN = fast.PLAIN, True
    try:
        yield
    finally:
        fast.PLAIN = ours


def our_training(
    dataset: data.Dataset,
    device: torch.device,
    batch_size: int,
    kernels: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Callable[[int], None]:
    """Returns a function that runs a number of steps with data, network and precision of `pruning/train.py`.

    The optimiser is torch's plain SGD on both sides, and neither side logs. `kernels` is open during the steps.
    """
    generator = torch.Generator(device).manual_seed(0)
    augment = data.Augmentation(dataset.train.images, translate=2, flip=True, generator=generator)
    model = VGG11().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def steps(count: int) -> None:
        with kernels():
            for _ in range(count):
                index = torch.randint(len(dataset.train), (batch_size,), device=device, generator=generator)
                with autocast(device, "auto"):
                    logits = model(dataset.normalise(augment(index, 0, generator)))
                    loss = F.cross_entropy(logits, dataset.train.labels[index], label_smoothing=0.2)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            synchronize(device)

    return steps


@torch.inference_mode()
@torch_as_it_comes()
def naive_scan(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> dict[str, list[int]]:
    """Returns the correct predictions by layer and sparsity: 96 times, it prunes a copy and runs the whole network."""
    counts: dict[str, list[int]] = {}
    for index, layer in enumerate(model.features):  # type: ignore[arg-type]
        if not isinstance(layer, nn.Conv2d):
            continue
        counts[f"features.{index}"] = []
        for sparsity in SPARSITIES:
            pruned = copy.deepcopy(model).eval()
            prune.l1_unstructured(pruned.features[index], "weight", amount=sparsity)  # type: ignore
            correct = 0
            for images, labels in loader:
                correct += int((pruned(images.to(device)).argmax(1).cpu() == labels).sum())
            counts[f"features.{index}"].append(correct)
    return counts


def timed(function: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """Returns the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def compare(name: str, plain: list[float], ours: list[float]) -> dict[str, float]:
    """Prints and returns the median rates of both sides, and their ratio with its range over the rounds."""
    ratios = [our / other for our, other in zip(ours, plain, strict=True)]
    figures = {
        "plain_images_per_second": statistics.median(plain),
        "our_images_per_second": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }
    rates = f"{figures['plain_images_per_second']:8.0f} → {figures['our_images_per_second']:8.0f} images/s"
    print(f"{name:44} {rates}   {figures['ratio']:.2f}× ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)
    return figures


def main(settings: Settings) -> None:
    """Runs all comparisons."""
    device = set_up(settings.device, settings.threads or torch.get_num_threads())
    dataset = data.load("auto", task_default="cifar10", shape=(3, 32, 32), data_dir=settings.data_dir, device=device)
    precision = resolve_precision("auto", device)
    print(
        f"{dataset.caption}; torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; ours: {precision}"
    )
    figures: dict[str, Any] = {"torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}
    figures |= {"machine": platform.processor() or platform.machine(), "precision": precision}

    ours = our_training(dataset, device, settings.batch_size)
    sides = {
        f"training, {w} workers": plain_training(dataset, device, settings.batch_size, w) for w in (0, settings.workers)
    }
    sides["training, torch's kernels"] = our_training(dataset, device, settings.batch_size, torchs_kernels)
    done = settings.steps * settings.batch_size
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *sides)}
    for steps in (2, *[settings.steps] * settings.rounds):  # the first round warms up
        for name, function in {"ours": ours, **sides}.items():
            rates[name].append(done / timed(function, steps)[0])
    for name in sides:
        figures[name] = compare(name, rates[name][1:], rates["ours"][1:])

    figures |= compare_scans(dataset, settings, device)
    if settings.output is not None:
        settings.output.write_text(json.dumps(figures, indent=1))


def compare_scans(dataset: data.Dataset, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Times both scans in turn on the same network and images, and counts the predictions on which they differ."""
    split = dataset.validation.head(settings.scan_images)
    network = VGG11().to(device)
    for start in range(0, 512, 128):  # batch-norm statistics of real images
        network(dataset.normalise(dataset.train.images[start : start + 128]))
    plain = PlainVGG().to(device)
    plain.load_state_dict(network.state_dict())
    with torch.inference_mode():
        predicted = network.eval()(dataset.normalise(split.images)).argmax(1)
    split = data.Split(split.images, predicted)  # so every prediction that pruning changes counts
    loader = DataLoader(PlainDataset(split, transforms.Compose(normalisation(dataset))), settings.batch_size)
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    work = len(split) * len(prunable_layers(network)) * len(SPARSITIES)
    for _ in range(max(settings.rounds // 2, 1)):
        our_seconds, our_scan = timed(scan, network, inputs(dataset, split), split.labels)
        plain_seconds, plain_scan = timed(naive_scan, plain, loader, device)
        rates["ours"].append(work / our_seconds)
        rates["plain"].append(work / plain_seconds)
    figures = compare("scan, whole passes of 96 settings", rates["plain"], rates["ours"])
    ours = {name: [round(a * len(split)) for a in curve.values()] for name, curve in our_scan.items()}
    differing = sum(abs(a - b) for name in ours for a, b in zip(ours[name], plain_scan[name], strict=True))
    print(f"correct predictions that one scan counts and the other does not: {differing} of {work}")
    return {"scan": {**figures, "difference_of_counts": differing, "predictions": work}}


if __name__ == "__main__":
    main(tyro.cli(Settings))
