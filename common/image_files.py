"""Image files, in a folder or an archive, as pixels.

Files are read one after another and no code of theirs runs: few formats, bounded sizes, nothing unpacked to the disk.
What would be read wrongly is refused: 16-bit grey (Pillow would clip it to white), transparent pixels, animations.
"""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from common.errors import RunError

ARCHIVE_SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar", ".zip")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow tries no other decoder, whatever the file is called
OR_FORMATS = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
DAMAGED = (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError)
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
MOST_BYTES, MOST_PIXELS = 2**26, 50_000_000  # of one image
MOST_MEMBERS, MOST_NOTES = 1_000_000, 2**20  # of an archive; bytes that a tar says of one member
MODES = {  # Pillow's names of what has 8 bits a channel → ours
    **{"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette", "PA": "palette with alpha"},
    **{"RGB": "RGB", "RGBA": "RGB with alpha", "CMYK": "CMYK", "YCbCr": "YCbCr"},
}
Convert = Callable[[str, Image.Image, str], Tensor]  # (the file's name, the image, its mode in words) → pixels


def size_of(image: Image.Image) -> str:
    """Returns the size as a message writes it."""
    return f"{image.width}×{image.height} pixels"


def as_pixels(image: Image.Image, mode: str) -> Tensor:
    """Returns an image as uint8 `(C, H, W)` in `mode`, L (grey) or RGB."""
    pixels = torch.from_numpy(np.array(image.convert(mode)))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


def _upright_and_opaque(image: Image.Image) -> Image.Image:
    """Returns an opened image, decoded and turned as its camera says; raises ValueError if it would be read wrongly."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{size_of(image)}, more than {MOST_PIXELS // 10**6} million")
    if image.mode not in MODES:
        raise ValueError(
            f"{'16-bit grey' if image.mode.startswith('I') else image.mode}; save it with 8 bits a channel"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind it
        raise ValueError("an animation; save each frame as an image")
    try:
        upright = ImageOps.exif_transpose(image)
    except (struct.error, TypeError, AttributeError):  # Pillow writes what the camera said anew
        raise ValueError("what it says of its camera (EXIF) is damaged") from None
    if "A" in upright.mode or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            raise ValueError("has transparent pixels; save it on a background, without alpha")
    return upright


def decode(
    origin: Path, members: Iterable[tuple[str, bytes]], total: int | None, convert: Convert
) -> tuple[list[str], list[Tensor], set[str | None]]:
    """Returns the names of the members (name, content), what `convert` makes of each, and the file formats.

    Raises:
        RunError: an image cannot be read or would be read wrongly, or the archive is damaged.
    """
    names, images, formats = [], [], set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for name, content in tqdm(
                members, f"decoding {origin.name}", total, unit=" images", mininterval=1, delay=2, leave=False
            ):
                try:
                    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                        formats.add(image.format)
                        mode = MODES.get(image.mode, image.mode)
                        images.append(convert(name, _upright_and_opaque(image), mode))
                except UnidentifiedImageError:
                    raise RunError(f"{origin}: {name} is not a readable image (no {OR_FORMATS})") from None
                except UNREADABLE as error:
                    raise RunError(f"{origin}: {name} is not a readable image ({error})") from None
                names.append(name)
    except DAMAGED as error:
        raise RunError(f"{origin}: damaged or truncated ({error})") from None
    return names, images, formats


# -- where they lie ---------------------------------------------------------------------------------------------------


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not _is_ignored(name)


def _is_ignored(name: str) -> bool:
    """Whether a path, with `/`, is no image of the dataset: `._*`, `.DS_Store`, `__MACOSX` and whatever is hidden."""
    return any((part.startswith(".") and part.strip(".") != "") or part == "__MACOSX" for part in name.split("/"))


def _bounded(file: IO[bytes], where: str) -> bytes:
    """Returns a file's content; a RunError where it is too large for an image, whatever a header says."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RunError(f"{where} is larger than {MOST_BYTES // 2**20} MiB, too large for an image")
    return content


def names_in(folder: Path) -> list[str]:
    """Returns the paths of the images below a folder, with `/` and in order; links to folders are followed once.

    Raises:
        OSError: a folder cannot be listed.
    """
    found, visited = [], set()

    def stop(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        if (real := os.path.realpath(root)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        found += [Path(root, name).relative_to(folder).as_posix() for name in files]
    return sorted(filter(_is_image, found))


def contents_of(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of files in a folder."""
    for name in names:
        if not (folder / name).is_file():  # a pipe would be waited for
            raise RunError(f"{folder}: {name} is not a readable image (a link to no file, or no plain file)")
        with (folder / name).open("rb") as file:
            yield name, _bounded(file, f"{folder}: {name}")


def stats_of(folder: Path, names: Iterable[str]) -> list[tuple[str, int, int]]:
    """Returns name, size and time of files in a folder: what a cache of them depends on."""
    stats = [(name, (folder / name).stat()) for name in names if (folder / name).exists()]
    return [(name, of.st_size, of.st_mtime_ns) for name, of in stats]


class _BoundedMember(tarfile.TarInfo):
    """A member of a tar whose name and other notes are refused where they are large: tarfile reads them as a whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if not self.isreg() and self.size > MOST_NOTES:
            raise tarfile.ReadError(f"notes of {self.size:,} bytes on a member")
        return super()._proc_member(archive)  # type: ignore[misc]  # as tarfile's comments offer it to subclasses


def _require_countable(path: Path, count: int) -> None:
    if count >= MOST_MEMBERS:
        raise RunError(f"{path}: more than {MOST_MEMBERS:,} members, too many for a data set")


def contents_of_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of an archive, read as a stream: nothing is unpacked to the disk."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for count, info in enumerate(archive.infolist()):
                _require_countable(path, count)
                if _is_image(info.filename):
                    with archive.open(info) as file:
                        yield info.filename, _bounded(file, f"{path}: {info.filename}")
    else:
        with tarfile.open(path, "r|*", tarinfo=_BoundedMember) as stream:
            for count, member in enumerate(stream):
                _require_countable(path, count)
                content = stream.extractfile(member) if member.isfile() and _is_image(member.name) else None
                if content is not None:
                    yield member.name, _bounded(content, f"{path}: {member.name}")
