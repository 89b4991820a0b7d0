"""Data: split once for all seeds, augmented as promised, and a stand-in that is told."""

from pathlib import Path

import pytest
import torch

from common import data, sources
from common.errors import RunError, UsageError
from common.raw import fit_shape

CPU = torch.device("cpu")


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


def load(folder: Path, name: str = "cifar10") -> data.Dataset:
    return data.load(name, task_default="cifar10", shape=(3, 32, 32), data_dir=folder, device=CPU)


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


def test_cutout_covers_a_square_with_the_mean_colour(generator: torch.Generator) -> None:
    images = torch.randint(100, (300, 3, 12, 15), generator=generator).to(torch.uint8)
    images[:, 1] += 100  # channels of different means
    plain, cut = (
        data.Augmentation(images, translate=0, flip=False, generator=generator, cutout=side) for side in (0, 4)
    )
    index = torch.arange(300)
    before, after = plain(index, 0, generator), cut(index, 0, generator)
    colour = images.double().mean((0, 2, 3)).round()
    shapes = set()
    for image, covered in zip(before, after, strict=True):
        changed = (image != covered).any(0).nonzero()
        (top, left), (bottom, right) = changed.min(0).values, changed.max(0).values
        square = covered[:, top : bottom + 1, left : right + 1].flatten(1).double()
        assert torch.equal(square, colour.view(3, 1).expand_as(square))
        shapes.add((int(bottom - top) + 1, int(right - left) + 1))
    assert max(shapes) == (4, 4)
    assert {height for height, _ in shapes} == {2, 3, 4}  # those at the border are smaller


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
