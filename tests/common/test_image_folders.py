"""A folder of one's own images: where its splits and classes are, what is refused, and what the record says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common import data
from common.errors import RunError, UsageError
from common.image_folders import own_folder
from common.raw import RawDataset
from tests.common.pictures import claims, colour, encoded, grey, sixteen_bits, write

SHAPE = (1, 28, 28)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def flat(count: int, content: Callable[[int], bytes] = lambda seed: encoded(grey(seed))) -> dict[str, bytes]:
    return {f"{seed:03}.png": content(seed) for seed in range(count)}


def in_classes(count: int, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{'ab'[seed % 2]}/{seed:03}.png": encoded(grey(seed)) for seed in range(count)}


def found(folder: Path, *, resize: bool = False) -> RawDataset:
    return own_folder(folder, SHAPE, resize)


def seeds_of(images: torch.Tensor, count: int) -> list[int]:
    """Returns which of the made-up images these are."""
    all_ = [grey(seed).tobytes() for seed in range(count)]
    return [all_.index(image.numpy().tobytes()) for image in images]


def test_splits_and_classes_are_taken_as_they_are(tmp_path: Path) -> None:
    raw = found(write(tmp_path / "set", in_classes(6, "train/") | in_classes(4, "test/")))
    assert raw.classes == ("a", "b")
    assert seeds_of(raw.train_images, 6) == [0, 2, 4, 1, 3, 5]
    assert raw.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert seeds_of(raw.test_images, 4) == [0, 2, 1, 3]
    assert raw.source == "image folder set"


def test_splits_without_classes_have_one(tmp_path: Path) -> None:
    files = {f"train/{name}": content for name, content in flat(5).items()}
    raw = found(write(tmp_path, files | {"test/x.png": encoded(grey(1))}))
    assert (raw.classes, len(raw.train_labels), seeds_of(raw.test_images, 5)) == (("images",), 5, [1])


def test_a_flat_folder_gives_a_fixed_random_tenth_to_test(tmp_path: Path) -> None:
    raw = found(write(tmp_path / "one", flat(50)))
    again = found(write(tmp_path / "other", flat(50)))
    assert torch.equal(raw.test_images, again.test_images)
    tested, trained = seeds_of(raw.test_images, 50), seeds_of(raw.train_images, 50)
    assert len(tested) == 5
    assert sorted(tested + trained) == list(range(50))
    assert tested != list(range(5))
    assert tested != list(range(45, 50))
    assert raw.classes == ("images",)
    assert raw.source == "image folder one, a fixed random tenth of it as test images"


def test_classes_without_splits_give_a_tenth_of_each(tmp_path: Path) -> None:
    raw = found(write(tmp_path, in_classes(40)))
    assert raw.test_labels.tolist() == [0, 0, 1, 1]
    assert all(seed % 2 == label for seed, label in zip(seeds_of(raw.test_images, 40), [0, 0, 1, 1], strict=True))


def test_resized_images_keep_a_plain_colour_and_their_mean(tmp_path: Path) -> None:
    """Antialiased: a checkerboard of single pixels becomes grey, not black or white."""
    board = (np.indices((112, 112)).sum(0) % 2 * 255).astype(np.uint8)
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 0] = 255
    raw = found(write(tmp_path / "set", {"0.png": encoded(board), "1.png": encoded(red)}), resize=True)
    values = sorted(torch.cat([raw.train_images, raw.test_images]).float().mean((1, 2, 3)).tolist())
    assert values == pytest.approx([76, 127.5], abs=1)  # the luma of red is 0.299 · 255
    assert "made 28×28 grey from 112×112 pixels, RGB and grey" in raw.source
    assert max(float(image.float().std()) for image in raw.train_images) < 3


def test_what_fits_is_not_touched_by_resize(tmp_path: Path) -> None:
    write(tmp_path, flat(20))
    one, other = found(tmp_path), found(tmp_path, resize=True)
    assert torch.equal(one.train_images, other.train_images)
    assert (one.source, one.digest) == (other.source, other.digest)


RGB = dict.fromkeys(["0.png", "1.png"], encoded(colour(0)))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no images (files named *.png"),
        ({"notes.txt": b"x", "._0.png": b"x", "__MACOSX/0.png": b"x"}, "no images"),
        (RGB, "0.png is 32×32 pixels, RGB; 28×28 grey is taken as it is, and --resize"),
        ({"0.png": encoded(colour(0, 28))}, "0.png is 28×28 pixels, RGB;"),
        ({"0.png": encoded(grey(0, 27))}, "0.png is 27×27 pixels, grey;"),
        (flat(3) | {"9.png": encoded(grey(0, 30))}, "000.png is 28×28 pixels and 9.png is 30×30 pixels; all images"),
        (flat(3) | {"9.png": sixteen_bits()}, "9.png is not a readable image (16-bit grey"),
        (flat(3) | {"9.png": b"no image"}, "9.png is not a readable image"),
        (flat(3) | {"9.png": encoded(grey(0))[:99]}, "9.png is not a readable image"),
        (flat(3) | {"9.png": claims(40_000, 25_000)}, "9.png is not a readable image"),
        (
            in_classes(4, "train/") | {"test/a/0.png": encoded(grey(0))},
            "test/b/ is missing or has no images, unlike train/b/",
        ),
        (
            {"train/a/0.png": encoded(grey(0))} | in_classes(4, "test/"),
            "train/b/ is missing or has no images, unlike test/b/",
        ),
        (in_classes(4, "train/"), "train/ has images, but test/ has none"),
        (in_classes(4) | flat(1), "000.png and a/000.png: either all images lie in class folders or none does"),
        (
            {"a/b/0.png": encoded(grey(0))},
            "a/b/0.png: an image must lie in the folder, or in a class folder there, not deeper",
        ),
        (in_classes(4) | {"c/0.png": encoded(grey(0))}, "class c has 1 image"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(files: dict[str, bytes], told: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(RunError) as caught:
        found(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert told in str(caught.value)


def test_images_beside_the_splits_are_left_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = in_classes(4, "train/") | in_classes(4, "test/") | in_classes(3, "val/")
    assert len(found(write(tmp_path, files)).train_labels) == 4
    assert "3 images outside train/ and test/ are left: val/a/000.png" in capsys.readouterr().err


def load(folder: Path, **options: bool) -> data.Dataset:
    cpu = torch.device("cpu")
    return data.load(str(folder), task_default="mnist", shape=SHAPE, data_dir=None, device=cpu, **options)


def test_the_record_identifies_the_content(tmp_path: Path) -> None:
    folder = write(tmp_path / "my cats & dogs", in_classes(200))
    record = load(folder).record()
    expected = {"name": "folder-my-cats-dogs", "images": 200, "classes": 2, "stand_in_for": None, "test": 20}
    assert record | expected == record
    assert load(folder).record() == record  # from the cache
    assert load(folder).caption == "image folder my-cats-dogs"
    write(folder, {"a/000.png": encoded(grey(1000))})
    assert load(folder).record()["pixels_sha256"] != record["pixels_sha256"]
    write(folder, {"a/000.png": encoded(grey(0))})
    assert load(folder).record() == record
    (folder / "a").rename(folder / "A")
    assert load(folder).record()["pixels_sha256"] != record["pixels_sha256"]


def test_too_few_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"9 test image\(s\), at least 10 are needed"):
        load(write(tmp_path, flat(90)))


def test_a_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "own"):
        write(tmp_path / name, flat(1))
    names = ("auto", "mnist", "digits")
    assert data.absolute_folder("digits", names) == "digits"
    assert data.absolute_folder("./digits", names) == str(tmp_path / "digits")
    assert data.absolute_folder("own", names) == str(tmp_path / "own")
    assert data.absolute_folder("mistyped", names) == "mistyped"
    for name in ("digits", "own", "./digits"):
        data.require_dataset(name, names, resize=False)
    with pytest.raises(
        UsageError, match=r"--dataset minst: choose one of auto, mnist, digits, or a folder.*mean mnist"
    ):
        data.require_dataset("minst", names, resize=False)
    with pytest.raises(UsageError, match="choose one of"):
        data.require_dataset("", names, resize=False)
    with pytest.raises(UsageError, match="--resize with --dataset mnist"):
        data.require_dataset("mnist", names, resize=True)
