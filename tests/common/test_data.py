"""Data: found where it lies, refused when damaged, split once for all seeds, augmented as promised."""

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
from common.errors import RunError, UsageError
from common.raw import fit_shape
from tests.common.pictures import sixteen_bits

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up data is cached in the test's own folder, the real images in the user's, where they may be already."""
    if "real_data_dir" not in request.fixturenames:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download works, and there is no npm."""
    import urllib.error

    import torchvision

    def offline(*arguments: object, **settings: object) -> None:
        raise urllib.error.URLError("offline")

    for name in ("CIFAR10", "MNIST"):
        monkeypatch.setattr(torchvision.datasets, name, offline)
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)


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


@pytest.mark.usefixtures("no_network")
def test_auto_falls_back_to_digits_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load(tmp_path, "auto")
    assert dataset.record()["stand_in_for"] == "cifar10"
    assert "STAND-IN" in dataset.caption
    assert "THIS RUN USES 1797 SMALL DIGITS" in capsys.readouterr().err
    for name in ("cifar10", "mnist"):
        with pytest.raises(RunError, match=f"--dataset {name}"):
            load(tmp_path, name)


def test_cifar100_is_not_cifar10_and_a_missing_folder_is_told(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "cifar100.tar.gz").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be downloaded"):
        load(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load(tmp_path / "mistyped", "auto")


def test_damaged_official_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(RunError, match=r"cifar-10-python\.tar\.gz: damaged"):
        load(tmp_path, "auto")


def test_digits_take_the_tasks_shape() -> None:
    dataset = load(Path("nowhere"), "digits")
    assert dataset.train.images.shape[1:] == (3, 32, 32)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 1797
    assert len(dataset.test) == 360
    assert dataset.stand_in_for == "cifar10"
    assert torch.equal(dataset.train.images[:, 0], dataset.train.images[:, 2])


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    dataset = load(Path("nowhere"), "digits")
    images = dataset.normalise(dataset.train.images)
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.real_data
def test_held_out_images_are_not_trained_on(real_data_dir: Path) -> None:
    dataset = load(real_data_dir)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (45_000, 5_000, 10_000)
    weights = torch.arange(3072).double().sqrt()
    trained, held_out = (split.images.flatten(1).double() @ weights for split in (dataset.train, dataset.validation))
    assert int(torch.isin(held_out, trained).sum()) <= 5  # CIFAR-10 itself holds a few exact duplicates
    assert torch.equal(load(real_data_dir).validation.labels, dataset.validation.labels)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(dataset.mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0)


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


def test_crops_are_shifted_reflected_copies_and_flips_alternate(generator: torch.Generator) -> None:
    images = torch.arange(8 * 2 * 6 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(8, 2, 6, 9)
    augment = data.Augmentation(images, translate=2, flip=True, generator=generator)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    possible = [
        {padded[i, :, y : y + 6, x : x + 9].numpy().tobytes() for y in range(5) for x in range(5)} for i in range(8)
    ]
    index = torch.tensor([3, 0, 7, 3])
    sides = []
    for epoch in range(3):
        batch = augment(index, epoch, generator)
        assert batch.dtype == torch.uint8
        plain = [image.numpy().tobytes() in possible[i] for image, i in zip(batch, index, strict=True)]
        turned = batch.flip(3).contiguous()
        mirrored = [image.numpy().tobytes() in possible[i] for image, i in zip(turned, index, strict=True)]
        assert all(a != b for a, b in zip(plain, mirrored, strict=True))
        sides.append(mirrored)
    assert sides[0] == sides[2]
    assert all(a != b for a, b in zip(sides[0], sides[1], strict=True))
    assert sides[0][0] == sides[0][3]  # the same image, the same side


def test_no_augmentation_is_the_identity(generator: torch.Generator) -> None:
    images = torch.randint(256, (5, 3, 8, 8), generator=generator).to(torch.uint8)
    augment = data.Augmentation(images, translate=0, flip=False, generator=generator)
    assert torch.equal(augment(torch.tensor([4, 1]), 0, generator), images[[4, 1]])


def test_fit_shape_keeps_what_fits() -> None:
    images = torch.randint(256, (3, 3, 32, 32)).to(torch.uint8)
    assert fit_shape(images, (3, 32, 32)) is images
    grown = fit_shape(torch.full((2, 1, 8, 8), 77, dtype=torch.uint8), (3, 32, 32))
    assert grown.shape == (2, 3, 32, 32)
    assert (grown == 77).all()


def test_no_more_images_than_asked_for() -> None:
    def digits(max_images: int | None) -> data.Dataset:
        return data.load(
            "digits", task_default="digits", shape=(1, 8, 8), data_dir=None, device=CPU, max_images=max_images
        )

    whole, some, again = digits(None), digits(1000), digits(1000)
    share = 1000 / 1797
    for part in ("train", "validation", "test"):
        fewer = getattr(some, part)
        assert len(fewer) == round(share * len(getattr(whole, part)))
        assert torch.equal(fewer.images, getattr(again, part).images)
    assert some.record()["of"] == 1797
    assert some.caption.endswith("1,000 of 1,797 images")
    enough = digits(1797)
    assert enough.record() == whole.record()
    assert torch.equal(enough.train.images, whole.train.images)
