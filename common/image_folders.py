"""Folders of images as datasets: CIFAR-10's, also in an archive, and any folder of one's own images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from common.device import random_stream
from common.errors import RunError, UsageError
from common.image_files import (
    IMAGE_SUFFIXES,
    Convert,
    as_pixels,
    contents_of,
    contents_of_archive,
    decode,
    names_in,
    size_of,
    stats_of,
)
from common.raw import RawDataset, cached, fit_shape, with_digest

SPLITS = ("train", "test")
Rows = Mapping[str, Sequence[int]]  # split → the rows of its images


def _parted(
    origin: Path, name: str, source: str, images: Sequence[Tensor], labels: Sequence[str], rows: Rows
) -> RawDataset:
    """Returns the dataset of these images and their classes, which are in alphabetical order.

    Raises:
        RunError: a class, which the line names, has no images in one of the splits.
    """
    of_split = {split: {labels[row] for row in rows[split]} for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        if missing := sorted(of_split[other] - of_split[split]):
            raise RunError(
                f"{origin}: train/ and test/ need the same classes, but {split}/{missing[0]}/ is missing or has no "
                f"images, unlike {other}/{missing[0]}/"
            )
    classes = tuple(sorted(of_split["train"]))
    index = {label: i for i, label in enumerate(classes)}
    train_images, test_images = (torch.stack([images[row] for row in rows[split]]) for split in SPLITS)
    train_labels, test_labels = (torch.tensor([index[labels[row]] for row in rows[split]]) for split in SPLITS)
    return RawDataset(name, source, classes, train_images, train_labels, test_images, test_labels)


# -- CIFAR-10 ---------------------------------------------------------------------------------------------------------


def cifar10_folder(folder: Path) -> RawDataset:
    """Returns CIFAR-10 from `folder`/{train,test}/<class>/*.

    Raises:
        RunError: an image cannot be read or is not 32×32, or the classes are not 10, the same in both splits.
    """
    names, source = names_in(folder), f"image folder {folder.name}"
    return cached(folder, stats_of(folder, names), lambda: _cifar10(folder, contents_of(folder, names), source))


def cifar10_archive(path: Path) -> RawDataset:
    """Returns CIFAR-10 from an archive of such a folder; raises what `cifar10_folder` does."""
    stats = stats_of(path.parent, [path.name])
    return cached(path, stats, lambda: _cifar10(path, contents_of_archive(path), f"image archive {path.name}"))


def _cifar10(origin: Path, members: Iterable[tuple[str, bytes]], source: str) -> RawDataset:
    """Returns the images of members named `…/{train,test}/<class>/<file>`."""

    def place(name: str) -> tuple[str, str]:
        split, label, _ = ("", "", *name.split("/"))[-3:]
        return split, label

    def convert(name: str, image: Image.Image, mode: str) -> Tensor:
        if image.size != (32, 32):
            raise RunError(f"{origin}: {name} is {size_of(image)}, CIFAR-10 has 32×32")
        return as_pixels(image, "RGB")

    placed = (member for member in members if place(member[0])[0] in SPLITS)
    names, images, formats = decode(origin, placed, None, convert)
    if not names:
        raise RunError(f"{origin}: no images in train/<class>/ and test/<class>/")
    rows = {split: [row for row, name in enumerate(names) if place(name)[0] == split] for split in SPLITS}
    if "JPEG" in formats:
        source += " (JPEG copies, not the original pixels)"
    raw = _parted(origin, "cifar10", source, images, [place(name)[1] for name in names], rows)
    if len(raw.classes) != 10:
        raise RunError(f"{origin}: expected train/ and test/ with the same 10 classes, found {len(raw.classes)}")
    return raw


# -- one's own images -------------------------------------------------------------------------------------------------


def own_folder(folder: Path, shape: tuple[int, int, int], resize: bool) -> RawDataset:
    """Returns the images of any folder, grey and of `shape` (1, H, W); the dataset is called folder-<its name>.

    The folder holds {train,test}/<class>/* or <class>/*; without the class folders there is one class. If there is no
    train/ and test/, a random tenth of each class, always the same, is the test split. With `resize`, images of any
    one size are resized (the aspect is not kept) and turned to grey.

    Raises:
        RunError: there are no images, or they are not of one size, or not grey and of `shape` although `resize` is
            not set; one cannot be read or would be read wrongly; a class has no images in one of the splits.
    """
    folder = folder.resolve()
    names = names_in(folder)
    places = _places(folder, names)
    if outside := [name for name in names if name not in places]:
        print(f"{folder}: {len(outside)} images outside train/ and test/ are left: {outside[0]} …", file=sys.stderr)
    key = [stats_of(folder, places), shape, resize]
    return cached(folder, key, lambda: _own_images(folder, places, shape, resize))


def _places(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns the split and the class of each image by name; the split is empty if the folder has none."""
    if not names:
        raise RunError(f"{folder}: no images (files named {', '.join('*' + suffix for suffix in IMAGE_SUFFIXES)})")
    parents = {name: PurePosixPath(name).parts[:-1] for name in names}
    there = [split for split in SPLITS if any(parts[:1] == (split,) for parts in parents.values())]
    if len(there) == 1:
        (missing,) = {*SPLITS} - {*there}
        raise RunError(f"{folder}: {there[0]}/ has images, but {missing}/ has none; give both of them, or neither")
    if there:
        parents = {name: parts for name, parts in parents.items() if parts[:1] in (("train",), ("test",))}
    depth, first = bool(there), next(iter(parents))
    for name, parts in parents.items():
        if len(parts) > depth + 1:
            raise RunError(
                f"{folder}: {name}: an image must lie in {'train/ or test/' if there else 'the folder'}, or "
                "in a class folder there, not deeper"
            )
        if len(parts) != len(parents[first]):
            raise RunError(f"{folder}: {first} and {name}: either all images lie in class folders or none does")
    return {name: (parts[0] if there else "", (*parts, "images")[depth]) for name, parts in parents.items()}


def _fitting(origin: Path, shape: tuple[int, int, int], resize: bool) -> Convert:
    """Returns what makes uint8 `shape` (C, H, W) of an image of that size and colour, with `resize` of any image."""
    height, width = shape[1:]
    colour, modes = ("grey", ("grey", "black and white")) if shape[0] == 1 else ("RGB", ("RGB",))

    def convert(name: str, image: Image.Image, mode: str) -> Tensor:
        if not resize and (image.size != (width, height) or mode not in modes):
            raise RunError(
                f"{origin}: {name} is {size_of(image)}, {mode}; {width}×{height} {colour} is taken as it is, and "
                "--resize makes that of images of any one size"
            )
        return fit_shape(as_pixels(image, "L" if shape[0] == 1 else "RGB")[None], shape)[0]

    return convert


def loose_images(path: Path, shape: tuple[int, int, int], resize: bool) -> tuple[list[str], Tensor]:
    """Returns names and uint8 images `(N, *shape)` of one image file, or of all in a folder and below it, in order.

    With `resize`, images of any size and colour are made of that shape.

    Raises:
        UsageError: there is no such file or folder.
        RunError: there are no images, one cannot be read or would be read wrongly, or is not of that shape.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    folder, names = (path.parent, [path.name]) if path.is_file() else (path, names_in(path))
    if not names:
        raise RunError(f"{path}: no images (files named {', '.join('*' + suffix for suffix in IMAGE_SUFFIXES)})")
    names, images, _ = decode(path, contents_of(folder, names), len(names), _fitting(path, shape, resize))
    return names, torch.stack(images)


def _own_images(
    folder: Path, places: Mapping[str, tuple[str, str]], shape: tuple[int, int, int], resize: bool
) -> RawDataset:
    height, width = shape[1:]
    first: list[tuple[str, Image.Image]] = []
    modes = set()
    fitted = _fitting(folder, shape, resize)

    def convert(name: str, image: Image.Image, mode: str) -> Tensor:
        if not first:
            first.append((name, image))
        if image.size != first[0][1].size:
            raise RunError(
                f"{folder}: {first[0][0]} is {size_of(first[0][1])} and {name} is {size_of(image)}; all images must be "
                "of one size"
            )
        modes.add(mode)
        return fitted(name, image, mode)

    names, images, _ = decode(folder, contents_of(folder, places), len(places), convert)
    labels = [places[name][1] for name in names]
    source = f"image folder {folder.name}"
    if first[0][1].size != (width, height) or not modes <= {"grey", "black and white"}:
        source += f", made {width}×{height} grey from {size_of(first[0][1])}, {' and '.join(sorted(modes))}"
    if all(split for split, _ in places.values()):
        rows: Rows = {split: [i for i, name in enumerate(names) if places[name][0] == split] for split in SPLITS}
    else:
        rows = _random_tenth(folder, labels)
        source += ", a fixed random tenth of it as test images"
    name = "folder-" + re.sub(r"[^\w.-]+", "-", folder.name)
    return with_digest(_parted(folder, name, source, images, labels, rows))


def _random_tenth(folder: Path, labels: Sequence[str]) -> Rows:
    """Returns the rows of train and test: of each class a tenth, but at least one image, the same every time."""
    of_class: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        of_class.setdefault(label, []).append(row)
    generator = random_stream(0, "test images of a folder")
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for label in sorted(of_class):
        members = of_class[label]
        if len(members) < 2:
            raise RunError(f"{folder}: class {label} has 1 image; it needs 2, one to train on and one to test on")
        order = torch.randperm(len(members), generator=generator).tolist()
        count = max(1, round(len(members) / 10))
        rows["test"] += [members[i] for i in order[:count]]
        rows["train"] += [members[i] for i in order[count:]]
    return {split: sorted(of) for split, of in rows.items()}
