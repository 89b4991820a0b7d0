"""The figures that runs drew: PNG and GIF files, and the sheets that hold all figures of a run in one PNG file."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
FIGURE_FORMATS = ("PNG", "GIF")  # Pillow tries no other decoder, whatever a stranger's folder holds
PLACES = "figures"  # the text in a sheet's PNG that says where each figure lies, as JSON: name → box


@dataclasses.dataclass(frozen=True)
class FigureFile:
    """One figure that a run drew: a PNG file, a film as GIF, or the part of a sheet that `box` marks."""

    path: Path
    name: str
    box: Box | None = None

    def png(self) -> bytes:
        """Returns the figure as a PNG file, a film as a GIF file.

        Raises:
            OSError, ValueError, SyntaxError: it cannot be read.
        """
        if self.box is None:
            return self.path.read_bytes()
        buffer = io.BytesIO()
        _opened(self.path, self.path.stat().st_mtime_ns).crop(self.box).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@functools.lru_cache(maxsize=1)  # the figures of a sheet are read one after another
def _opened(sheet: Path, modified: int) -> Image.Image:
    with Image.open(sheet, formats=FIGURE_FORMATS) as image:
        image.load()
        return image.copy()


def figures_in(folder: Path) -> dict[str, FigureFile]:
    """Returns the PNG and GIF files of a folder by name."""
    files = sorted([*folder.glob("*.png"), *folder.glob("*.gif")])
    return {path.stem: FigureFile(path, path.stem) for path in files}


def figures_on(sheet: Path) -> dict[str, FigureFile]:
    """Returns the figures on a run's sheet by name; of a sheet that cannot be read, the sheet itself."""
    if not sheet.is_file():
        return {}
    try:
        with Image.open(sheet, formats=FIGURE_FORMATS) as image:
            places = json.loads(image.info[PLACES])
        boxes = {str(name): (int(box[0]), int(box[1]), int(box[2]), int(box[3])) for name, box in places.items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, SyntaxError):
        return {sheet.stem: FigureFile(sheet, sheet.stem)}
    return {name: FigureFile(sheet, name, box) for name, box in boxes.items()}


def sheet_of(figures: Mapping[str, FigureFile]) -> bytes:
    """Returns one PNG file with all figures, one below another, in the 256 colours that suit them best.

    Of a film it has the first picture.

    Raises:
        OSError, ValueError, SyntaxError: a figure cannot be read.
    """
    opened = {name: Image.open(io.BytesIO(of.png()), formats=FIGURE_FORMATS) for name, of in figures.items()}
    images = {name: image.convert("RGB") for name, image in opened.items()}
    width, height = max(of.width for of in images.values()), sum(of.height for of in images.values())
    sheet = Image.new("RGB", (width, height), "white")
    places: dict[str, Box] = {}
    top = 0
    for name, image in images.items():
        sheet.paste(image, (0, top))
        places[name] = (0, top, image.width, top + image.height)
        top += image.height
    text = PngImagePlugin.PngInfo()
    text.add_text(PLACES, json.dumps(places))
    return _png_bytes(few_colours(sheet), text)


def few_colours(image: Image.Image) -> Image.Image:
    """Returns the image in its best 256 colours: a third to a half of the bytes, no difference that an eye sees."""
    return image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def _png_bytes(image: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()
