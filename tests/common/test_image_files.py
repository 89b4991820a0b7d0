"""An image file becomes the pixels that it shows, or is refused in one line that names it."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common import image_files
from common.errors import RunError
from common.image_files import as_pixels, contents_of, contents_of_archive, decode, names_in
from tests.common.pictures import claims, colour, encoded, grey, sixteen_bits, write


def read(content: bytes, mode: str = "L") -> Tensor:
    members = [("a/x.png", content)]
    _, (pixels,), _ = decode(Path("set"), members, None, lambda name, image, _: as_pixels(image, mode))
    return pixels


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_grey_is_taken_as_it_is(form: str) -> None:
    assert np.array_equal(read(encoded(grey(0), form))[0].numpy(), grey(0))
    assert torch.equal(read(encoded(grey(0), form), "RGB")[1], read(encoded(grey(0), form))[0])


def test_colour_becomes_its_luma() -> None:
    """0.299 R + 0.587 G + 0.114 B (ITU-R 601-2), to the rounding."""
    expected = colour(0).astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(read(encoded(colour(0)))[0].numpy() - expected).max() <= 1
    assert np.array_equal(read(encoded(colour(0)), "RGB").permute(1, 2, 0).numpy(), colour(0))


def test_palette_and_opaque_alpha_give_the_colours_that_they_show() -> None:
    few = (colour(0, 28) // 128 * 255).astype(np.uint8)  # 8 colours: a palette holds them exactly
    expected = read(encoded(few), "RGB")
    palette = Image.fromarray(few).quantize(8, dither=Image.Dither.NONE)
    assert torch.equal(read(saved(palette), "RGB"), expected)
    opaque = Image.fromarray(few).convert("RGBA")
    assert torch.equal(read(saved(opaque), "RGB"), expected)
    assert torch.equal(read(saved(Image.fromarray(grey(0)).convert("LA"))), read(encoded(grey(0))))


def test_black_and_white_is_0_and_255() -> None:
    bits = grey(0) > 127
    assert np.array_equal(read(saved(Image.fromarray(bits)))[0].numpy(), bits * np.uint8(255))


def test_a_camera_held_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90° clockwise
    content = encoded(grey(0), exif=exif.tobytes())
    assert np.array_equal(read(content)[0].numpy(), np.rot90(grey(0), -1))


def transparent() -> bytes:
    image = Image.fromarray(colour(0, 28)).convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 254))
    return saved(image)


def odd_exif() -> bytes:
    """Sideways, and with a number that is a text: Pillow cannot write it anew."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    order = "<" if content[:2] == b"II" else ">"
    tag = struct.pack(f"{order}HHI4s", 0x0103, 2, 4, b"abc\0")
    entries = int.from_bytes(content[8:10], "little" if order == "<" else "big")
    whole = content[:8] + struct.pack(f"{order}H", entries + 1) + tag + content[10:]
    return encoded(grey(0), "JPEG", exif=b"Exif\0\0" + whole)


def animation() -> bytes:
    frames = [Image.fromarray(grey(seed)) for seed in (0, 1)]
    return saved(frames[0], save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (sixteen_bits(), "16-bit grey; save it with 8 bits"),
        (transparent(), "has transparent pixels"),
        (saved(Image.fromarray(grey(0)), transparency=7), "has transparent pixels"),
        (animation(), "an animation"),
        (encoded(grey(0))[:300], "truncated"),
        (b"no image", "no PNG, JPEG, BMP or WEBP"),
        (b"", "no PNG, JPEG, BMP or WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG"),  # Pillow would start Ghostscript on it
        (encoded(grey(0), "TIFF"), "no PNG"),
        (odd_exif(), "(EXIF) is damaged"),
        (claims(31_623, 31_623), "1000014129 pixels"),
        (claims(12_000, 8_000), "96000000 pixels"),
        (claims(9_000, 6_000), "9000×6000 pixels, more than 50 million"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(RunError) as caught:
        read(content)
    assert str(caught.value).startswith("set: a/x.png is not a readable image (")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hidden_files_and_those_of_a_mac_are_ignored(tmp_path: Path) -> None:
    names = ["a/b.PNG", "c.jpeg", "._c.png", "a/._b.png", "__MACOSX/a/._b.png", "__MACOSX/x.png", "a/.DS_Store"]
    write(tmp_path, dict.fromkeys([*names, ".hidden/x.png", "notes.txt"], b"x"))
    assert names_in(tmp_path) == ["a/b.PNG", "c.jpeg"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(f"./{name}", b"x")
    assert [name for name, _ in contents_of_archive(tmp_path / "x.zip")] == ["./a/b.PNG", "./c.jpeg"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "far", {"x.png": b"x"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "set")
    assert names_in(tmp_path / "set") == ["cat/x.png"]


def test_pipes_broken_links_and_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing")
    write(tmp_path, {"huge.png": bytes(101)})
    monkeypatch.setattr(image_files, "MOST_BYTES", 100)
    for name, told in (("pipe.png", "no plain file"), ("broken.png", "a link to no file"), ("huge.png", "too large")):
        with pytest.raises(RunError, match=f"{name}.*{told}"):
            list(contents_of(tmp_path, [name]))


def test_a_member_that_unpacks_to_more_than_an_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(100_000))
    with pytest.raises(RunError, match=r"x\.png is larger than"):
        list(contents_of_archive(tmp_path / "bomb.zip"))
