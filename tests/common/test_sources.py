"""Fashion-MNIST and KMNIST: torchvision's files, packed or not, checked before they are believed."""

import gzip
import hashlib
import struct
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from common import data, sources
from common.errors import RunError

FILES = {"train-images-idx3-ubyte": 60, "train-labels-idx1-ubyte": 60} | {
    "t10k-images-idx3-ubyte": 30,
    "t10k-labels-idx1-ubyte": 30,
}
KINDS = {"fashion-mnist": ("FashionMNIST", "Fashion-MNIST"), "kmnist": ("KMNIST", "KMNIST")}


def content(name: str) -> bytes:
    generator, count = np.random.default_rng(len(name)), FILES[name]
    if "labels" in name:
        return struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
    return struct.pack(">IIII", 2051, count, 28, 28) + generator.bytes(count * 784)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the sets had few images, and no network."""

    def offline(*arguments: object, **settings: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(sources, "MNIST_FILES", {name: ("", count) for name, count in FILES.items()})
    for name, _ in KINDS.values():
        md5s = [(f"{file}.gz", hashlib.md5(gzip.compress(content(file), mtime=0)).hexdigest()) for file in FILES]
        stand_in = type(name, (), {"resources": md5s, "__init__": offline})
        monkeypatch.setattr(torchvision.datasets, name, stand_in)


def write(folder: Path, name: str, *, packed: bool) -> Path:
    raw = folder / KINDS[name][0] / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        if packed:
            (raw / f"{file}.gz").write_bytes(gzip.compress(content(file), mtime=0))
        else:
            (raw / file).write_bytes(content(file))
    return raw


def load(folder: Path, name: str) -> data.Dataset:
    cpu = torch.device("cpu")
    return data.load(name, task_default="mnist", shape=(1, 28, 28), data_dir=folder, device=cpu)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_torchvisions_files_are_found(name: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path, name, packed=packed)
    dataset = load(tmp_path, name)
    assert (dataset.name, dataset.caption, dataset.stand_in_for) == (name, KINDS[name][1], None)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54, 6, 30)
    expected = np.frombuffer(content("t10k-images-idx3-ubyte")[16:], np.uint8).reshape(30, 1, 28, 28)
    assert np.array_equal(dataset.test.images.numpy(), expected)
    assert dataset.test.labels.tolist() == [i % 10 for i in range(30)]
    assert len(dataset.classes) == 10
    assert len(dataset.record()["pixels_sha256"]) == 16


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("packed", "file", "change", "told"),
    [
        (False, "train-images-idx3-ubyte", lambda old: old[:-1], "not an IDX file of 60 images"),
        (False, "train-images-idx3-ubyte", lambda old: old + b"x", "not an IDX file of 60 images"),
        (False, "t10k-labels-idx1-ubyte", lambda old: b"\1" + old[1:], "not an IDX file of 30 labels"),
        (False, "t10k-labels-idx1-ubyte", lambda old: old[:-1] + b"\x0a", "a label is not one of the 10 classes"),
        (True, "t10k-labels-idx1-ubyte.gz", lambda old: old[:-1] + b"x", "t10k-labels-idx1-ubyte.gz: damaged, its MD5"),
    ],
)
def test_damaged_files_are_told(
    packed: bool, file: str, change: Callable[[bytes], bytes], told: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "kmnist", packed=packed) / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError) as caught:
        load(tmp_path, "kmnist")
    assert told in str(caught.value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", KINDS)
def test_without_a_network_one_line_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"--dataset {name}: {KINDS[name][0]} is not in .* and cannot be downloaded"):
        load(tmp_path, name)
    assert not (tmp_path / KINDS[name][0]).exists()  # torchvision makes the folder before it downloads


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_torchvision_still_names_the_files_so(name: tuple[str, str]) -> None:
    """The MD5s are torchvision's own."""
    resources = dict(getattr(torchvision.datasets, name[0]).resources)
    assert set(resources) == {f"{file}.gz" for file in sources.MNIST_FILES}
    assert {len(md5) for md5 in resources.values()} == {32}
