"""CIFAR-10 and MNIST: found where they lie, in each form the same pixels, refused when damaged."""

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import data, sources
from common.errors import RunError
from tests.common.pictures import sixteen_bits

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up data is cached in the test's own folder, the real images in the user's, where they may be already."""
    if "real_data_dir" not in request.fixturenames:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image_files(form: str = "PNG", size: int = 32, per_class: int = 3) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {}
    for split in ("train", "test"):
        for name in CLASSES:
            for k in range(per_class):
                buffer = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(buffer, form)
                files[f"{split}/{name}/{k}.{form.lower()}"] = buffer.getvalue()
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_tar(path: Path, files: dict[str, bytes], prefix: str = "") -> None:
    with tarfile.open(path, "w:" + path.suffix[1:]) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def load(folder: Path, name: str = "cifar10") -> data.Dataset:
    return data.load(name, task_default="cifar10", shape=(3, 32, 32), data_dir=folder, device=CPU)


@pytest.mark.parametrize("form", ["folder", "tar.xz", "tar.gz", "zip"])
def test_folder_and_archives_give_the_same_pixels(tmp_path: Path, form: str) -> None:
    files = image_files()
    expected = np.asarray(Image.open(io.BytesIO(files["test/bird/1.png"])))
    for name in ("train/cat/._0.png", "__MACOSX/test/dog/._1.png", "__MACOSX/train/emu/1.png", "train/.DS_Store"):
        files[name] = b"what a Mac leaves"
    if form == "folder":
        write_folder(tmp_path / "cifar10", files)
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "cifar-10.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr("CIFAR/" + name, content)
    else:
        write_tar(tmp_path / f"cifar10-images.{form}", files, "some/prefix/")
    raw = sources.cifar10(tmp_path)
    assert raw.classes == tuple(CLASSES)
    assert raw.train_labels.tolist() == sorted(raw.train_labels.tolist())
    assert np.array_equal(raw.test_images[2 * 3 + 1].permute(1, 2, 0).numpy(), expected)
    assert "JPEG" not in raw.source
    again = sources.cifar10(tmp_path)  # from the cache
    assert torch.equal(raw.train_images, again.train_images)
    assert (again.source, again.classes) == (raw.source, raw.classes)


def test_jpeg_copies_are_called_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar10", image_files("JPEG"))
    dataset = load(tmp_path)
    assert "JPEG" in dataset.source
    assert "JPEG" in dataset.caption


def test_cache_notices_a_changed_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "cifar10.tar.xz", image_files(per_class=3))
    assert len(sources.cifar10(tmp_path).train_labels) == 30
    write_tar(tmp_path / "cifar10.tar.xz", image_files(per_class=4))
    assert len(sources.cifar10(tmp_path).train_labels) == 40


def test_damaged_cache_is_decoded_anew(tmp_path: Path, own_cache: Path) -> None:
    write_tar(tmp_path / "cifar10.tar.xz", image_files())
    sources.cifar10(tmp_path)
    (file,) = own_cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert len(sources.cifar10(tmp_path).train_labels) == 30


def test_archive_cannot_write_outside(tmp_path: Path) -> None:
    files = image_files()
    files["../../../train/cat/escape.png"] = files["train/cat/0.png"]
    write_tar(tmp_path / "cifar10.tar.gz", files)
    before = set(tmp_path.rglob("*"))
    sources.cifar10(tmp_path)
    assert {p for p in set(tmp_path.rglob("*")) - before if "cache" not in p.parts} == set()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("truncated", "damaged or truncated"),
        ("garbage", "damaged or truncated"),
        ("bad image", "is not a readable image"),
        ("wrong size", "32×32"),
        ("missing class", "same 10 classes"),
        ("missing in test", "test/cat/ is missing or has no images, unlike train/cat/"),
        ("16 bits", r"train/cat/1\.png is not a readable image \(16-bit grey"),
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, damage: str, told: str) -> None:
    files = image_files(size=31 if damage == "wrong size" else 32)
    if damage == "bad image":
        files["train/cat/1.png"] = files["train/cat/1.png"][:60]
    if damage == "missing class":
        files = {name: content for name, content in files.items() if "/cat/" not in name}
    if damage == "missing in test":
        files = {name: content for name, content in files.items() if "test/cat/" not in name}
    if damage == "16 bits":
        files["train/cat/1.png"] = sixteen_bits(32)
    write_folder(tmp_path / "folder" / "cifar10", files)
    path = tmp_path / "cifar10.tar.xz"
    write_tar(path, files)
    if damage not in ("truncated", "garbage"):
        with pytest.raises(RunError, match=told):  # also as a folder
            load(tmp_path / "folder")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "garbage":
        path.write_bytes(b"not an archive" * 100)
    with pytest.raises(RunError, match=told) as caught:
        load(tmp_path, "auto")  # also auto: what is there but damaged is told, not passed over
    assert str(path) in str(caught.value)


def test_torchvisions_batches_are_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    write_folder(tmp_path / "cifar10", image_files())
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3072), np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    with pytest.raises(RunError, match="incomplete or damaged"):  # these are not the official bytes
        sources.cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *arguments: True)
    raw = sources.cifar10(tmp_path)
    assert raw.source == "torchvision cifar-10-batches-py"
    assert (len(raw.train_labels), len(raw.test_labels)) == (25, 5)
    assert np.array_equal(raw.test_images[0].numpy().ravel(), pixels[0])


def test_damaged_official_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(RunError, match=r"cifar-10-python\.tar\.gz: damaged"):
        load(tmp_path, "auto")


@pytest.mark.real_data
def test_real_mnist(real_data_dir: Path) -> None:
    raw = sources.mnist(real_data_dir)
    assert raw.train_images.shape == (60_000, 1, 28, 28)
    assert raw.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert raw.train_images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.real_data
def test_damaged_mnist_is_refused(real_data_dir: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in sources.MNIST_FILES:
        os.symlink(real_data_dir / "MNIST" / "raw" / name, raw / name)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte").write_bytes(bytes(10_008))
    with pytest.raises(RunError, match="t10k-labels-idx1-ubyte: damaged"):
        sources.mnist(tmp_path)
