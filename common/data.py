"""A whole dataset in memory as uint8 on the device; batches are taken by index and augmented as a batch."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import sources
from common.device import random_stream
from common.errors import RunError, UsageError
from common.image_folders import own_folder
from common.raw import RawDataset, fit_shape

TITLES = {
    **{"cifar10": "CIFAR-10", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "KMNIST"},
    "digits": "scikit-learn digits",
}
FINDERS: dict[str, Callable[[Path], RawDataset]] = {
    **{"cifar10": sources.cifar10, "mnist": sources.mnist},
    **{"fashion-mnist": sources.fashion_mnist, "kmnist": sources.kmnist, "digits": lambda folder: sources.digits()},
}
FEWEST = {"train": 20, "validation": 2, "test": 10}  # images of a folder; fewer have no covariance or neighbours


def caption(record: Mapping[str, Any]) -> str:
    """Returns what a figure's title says of the dataset that `record` describes, see `Dataset.record`."""
    name, wanted = str(record.get("name")), record.get("stand_in_for")
    used = f", {record['images']:,} of {record['of']:,} images" if "of" in record else ""
    if wanted:
        return f"STAND-IN DATA: {TITLES.get(name, name)}, not {TITLES.get(str(wanted), wanted)}{used}"
    title = f"image folder {name.removeprefix('folder-')}" if name.startswith("folder-") else TITLES.get(name, name)
    return title + (" (JPEG copies)" if "JPEG" in str(record.get("source")) else "") + used


@dataclasses.dataclass(frozen=True)
class Split:
    """Images `(N, C, H, W)` uint8 and labels `(N,)` int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> Split:
        """Returns the first `count` examples, or all of them."""
        return Split(self.images[:count], self.labels[:count])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Train, validation (held out of the training set) and test splits, with the channel statistics of train.

    `stand_in_for` names the dataset that was wanted, if this one is only the embedded replacement. `of` is the number
    of images of the whole dataset, if only some of them are used.
    """

    name: str
    source: str
    stand_in_for: str | None
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: Tensor  # (C,), of pixels in [0, 1]
    std: Tensor  # (C,)
    of: int | None = None
    digest: str | None = None  # of the whole dataset's pixels, see `RawDataset`

    @property
    def caption(self) -> str:
        """What a figure's title says of the dataset."""
        return caption(self.record())

    def record(self) -> dict[str, Any]:
        """Returns what metrics.json says of the dataset."""
        counts = {name: len(getattr(self, name)) for name in ("train", "validation", "test")}
        record = {"name": self.name, "source": self.source, "stand_in_for": self.stand_in_for}
        known_by = {"classes": len(self.classes), "pixels_sha256": self.digest} if self.digest else {}
        return {**record, "images": sum(counts.values()), **counts, **({"of": self.of} if self.of else {}), **known_by}

    def normalise(self, images: Tensor) -> Tensor:
        """Returns uint8 images `(B, C, H, W)` as float32, channels last; each channel has mean 0 and deviation 1."""
        scale, shift = 1 / (255 * self.std), -self.mean / self.std
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(shift.view(-1, 1, 1), pixels, scale.view(-1, 1, 1))


def load(
    name: str,
    *,
    task_default: str,
    shape: tuple[int, int, int],
    data_dir: Path | None,
    device: torch.device,
    validation_fraction: float = 0.1,
    max_images: int | None = None,
    resize: bool = False,
) -> Dataset:
    """Returns the dataset `name`, or that in the folder `name`, with images of `shape` (C, H, W) on `device`.

    A folder that holds images of another size or in colour needs `resize`. `auto` means `task_default` if it is
    available, else the embedded digits, after a warning. The validation images are the same for every seed, so that
    choices made on them compare. With `max_images` the same share of each split is used, drawn at random and the same
    for every seed.

    Raises:
        UsageError: `data_dir`, or else DATA_DIR, is no folder, and the dataset `name` is not embedded.
        RunError: the dataset is not available, its files are damaged, or the folder's images cannot be used.
    """
    folder = data_dir if data_dir is not None else sources.default_folder()
    wanted = task_default if name == "auto" else name
    stand_in_for = None
    try:
        if wanted in FINDERS and wanted != "digits" and folder != Path("data") and not folder.is_dir():
            raise UsageError(f"--data-dir {folder} (or DATA_DIR): no such folder")
        raw = FINDERS[wanted](folder) if wanted in FINDERS else own_folder(Path(wanted), shape, resize)
    except sources.DatasetUnavailable as missing:
        if name != "auto":
            raise RunError(f"--dataset {name}: {missing}") from None
        stand_in_for, raw = wanted, sources.digits()
        _warn(f"{missing}.", f"THIS RUN USES {len(raw.train_labels) + len(raw.test_labels)} SMALL DIGITS INSTEAD.")
    if wanted == "digits" and task_default != "digits":
        stand_in_for = task_default
    train_images, test_images = fit_shape(raw.train_images, shape), fit_shape(raw.test_images, shape)

    order = torch.randperm(len(raw.train_labels), generator=random_stream(0, "validation split"))
    held_out = round(validation_fraction * len(order))
    rows = {"validation": order[:held_out], "train": order[held_out:]}
    splits = {
        part: Split(train_images[index].to(device), raw.train_labels[index].to(device)) for part, index in rows.items()
    }
    splits["test"] = Split(test_images.to(device), raw.test_labels.to(device))
    there_are = sum(map(len, splits.values()))
    share = min(1.0, (max_images or there_are) / there_are)
    if share < 1:
        splits = {part: _drawn(split, part, share) for part, split in splits.items()}
    if wanted not in FINDERS:
        _require_enough(name, splits)
    mean, std = _channel_statistics(splits["train"].images)
    parts = (splits["train"], splits["validation"], splits["test"])
    of = there_are if share < 1 else None
    return Dataset(raw.name, raw.source, stand_in_for, raw.classes, *parts, mean, std, of, raw.digest)


def _require_enough(folder: str, splits: Mapping[str, Split]) -> None:
    for split, fewest in FEWEST.items():
        if len(splits[split]) < fewest:
            name = {"train": "training", "validation": "held-out"}.get(split, split)
            raise RunError(
                f"--dataset {folder}: {len(splits[split])} {name} image(s), at least {fewest} are needed; the folder "
                "needs more images (a tenth of those to train on is held out)"
            )


def absolute_folder(name: str, names: Sequence[str]) -> str:
    """Returns the absolute path of a folder that is none of the names: a run may be resumed from elsewhere."""
    return str(Path(name).absolute()) if name and name not in names and Path(name).is_dir() else name


def require_dataset(name: str, names: Sequence[str], resize: bool) -> None:
    """Raises UsageError unless `name` is one of the names or a folder, and for `resize` beside a name."""
    if name not in names and not (name and Path(name).is_dir()):
        close = difflib.get_close_matches(name, names, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        if Path(name).is_absolute():  # as a run's settings name the folder that it began with
            raise UsageError(f"--dataset {name}: no such folder; put it back, or start a new run")
        raise UsageError(f"--dataset {name}: choose one of {', '.join(names)}, or a folder of images{hint}")
    if resize and name in names:
        raise UsageError(f"--resize with --dataset {name}: it is for a folder of images and would have no effect")


def _drawn(split: Split, part: str, share: float) -> Split:
    """Returns `share` of a split, drawn at random."""
    order = torch.randperm(len(split), generator=random_stream(0, f"some of the {part} images"))
    chosen = order[: max(1, round(share * len(split)))].to(split.images.device)
    return Split(split.images[chosen], split.labels[chosen])


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation `(C,)` of pixels in [0, 1], from counts of the 256 levels: needs no float copy."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares, levels = counts / counts.sum(1, keepdim=True), torch.arange(256, device=images.device) / 255
    mean = shares @ levels.double()
    variance = shares @ levels.double().square() - mean.square()
    return mean.float(), variance.sqrt().float()


class Augmentation:
    """Random translation by up to `translate` pixels (reflected border), alternating horizontal flip, and cutout.

    In the first epoch each image is flipped or not at random, and after that the other way round in each next epoch,
    so that two epochs show both sides of every image ("alternating flip", Jordan 2024, airbench, section 3.6).
    Cutout (DeVries & Taylor 2017) covers a square of `cutout` pixels a side, around any pixel, with the mean colour.
    """

    def __init__(
        self, images: Tensor, *, translate: int, flip: bool, generator: torch.Generator, cutout: int = 0
    ) -> None:
        height, width = images.shape[2:]
        self._cutout = cutout
        self._colour = (_channel_statistics(images)[0] * 255).round().to(torch.uint8).view(-1, 1, 1) if cutout else None
        if translate:
            images = images[:, :, _reflected(height, translate)][:, :, :, _reflected(width, translate)]
        # A view with every crop of every image, (N, C, 2t+1, 2t+1, H, W): picking one copies that crop alone.
        self._crops = images.unfold(2, height, 1).unfold(3, width, 1)
        self._shifts = 2 * translate + 1
        self._first_side = torch.rand(len(images), device=images.device, generator=generator) < 0.5 if flip else None

    def __call__(self, index: Tensor, epoch: float, generator: torch.Generator) -> Tensor:
        """Returns the augmented uint8 images `(B, C, H, W)` at `index` (B,); `epoch` counts finished epochs."""
        down, right = torch.randint(self._shifts, (2, len(index)), device=index.device, generator=generator)
        images = self._crops[index, :, down, right]
        if self._first_side is not None:
            flipped = self._first_side[index] ^ bool(int(epoch) % 2)
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        return images if self._colour is None else torch.where(self._covered(images, generator), self._colour, images)

    def _covered(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns which pixels `(B, 1, H, W)` the squares cover; a square may reach beyond the border."""
        sides = []
        for size in images.shape[2:]:
            first = torch.randint(size, (len(images), 1), device=images.device, generator=generator) - self._cutout // 2
            offset = torch.arange(size, device=images.device) - first
            sides.append((offset >= 0) & (offset < self._cutout))
        rows, columns = sides
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _reflected(size: int, margin: int) -> list[int]:
    """Returns the positions along a side of `size` pixels, with a reflected margin at both ends."""
    return [*range(margin, 0, -1), *range(size), *range(size - 2, size - 2 - margin, -1)]


def _warn(*lines: str) -> None:
    frame = "!" * 100
    print("\n".join((frame, *(f"!!  {line}" for line in lines), frame)), file=sys.stderr)
