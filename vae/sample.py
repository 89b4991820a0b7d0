"""Uses a trained VAE: `python vae/sample.py results/vae/RUN` draws images, encodes, reconstructs or interpolates."""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import csv
import dataclasses
import io
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from annotated_types import Ge, Interval
from PIL import Image
from torch import Tensor

from common import cli
from common.device import set_up
from common.errors import UsageError
from common.experiment import say
from common.files import write_atomically
from common.image_folders import loose_images
from vae.figures import image_grid
from vae.models import SIDE
from vae.trained import load

SHAPE = (1, SIDE, SIDE)
COLUMNS = 10  # images in a row of a sheet


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw images from a trained VAE, or encode, reconstruct and interpolate images of your own."""

    run: tyro.conf.Positional[Path]
    """Run folder of vae/train.py, such as results/vae/RUN."""
    count: Annotated[int, Interval(ge=1, le=1_000_000)] = 100
    """Images to draw."""
    sampler: Literal["prior", "mixture"] = "prior"
    """Where the codes come from: the model's prior, or the mixture fitted to the codes of training images."""
    label: Annotated[int | None, tyro.conf.arg(aliases=["--class"])] = None
    """Class of the images, for a conditional model; none draws the classes by their frequency."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the draw. A run's own figures show samples of its seed, with --generated as the count."""
    encode: Path | None = None
    """Folder of images, or one image, whose codes are written: the means of their posteriors."""
    reconstruct: Path | None = None
    """Folder of images, or one image, to show beside what the decoder makes of their codes."""
    interpolate: tuple[Path, Path] | None = None
    """Two images; the line between their codes is decoded."""
    resize: bool = False
    """Make 28×28 grey of images of another size or colour."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads; none means one for each core that other processes leave free."""
    out: Path | None = None
    """File to write: .png for one sheet, .csv or .npz for codes; a name without ending is a folder of single images.
    None means samples.png, reconstructions.png, interpolation.png or codes.csv here."""


def main(options: Sample) -> None:
    """Does what was asked for and prints the file or the folder that it wrote."""
    check(options)
    trained = load(options.run)
    set_up("cpu", options.threads)
    if options.encode is not None:
        names, images = loose_images(options.encode, SHAPE, options.resize)
        print(written_codes(options.out or Path("codes.csv"), names, trained.encode(images, of_class(options, images))))
    elif options.reconstruct is not None:
        names, images = loose_images(options.reconstruct, SHAPE, options.resize)
        decoded = trained.reconstruct(images, of_class(options, images))
        print(written_images(options.out or Path("reconstructions.png"), decoded, names, beside=images.float() / 255))
    elif options.interpolate is not None:
        for path in options.interpolate:
            if path.is_dir():
                raise UsageError(f"--interpolate {path}: a folder; give two images")
        start, end = (loose_images(path, SHAPE, options.resize)[1][:1] for path in options.interpolate)
        both = torch.cat([start, end])
        strip = trained.interpolate(start, end, COLUMNS, of_class(options, both))
        print(written_images(options.out or Path("interpolation.png"), strip))
    else:
        images = trained.sample(options.count, sampler=options.sampler, label=options.label, seed=options.seed)
        say(f"{options.count} images of {options.run}, codes from the {options.sampler}")
        print(written_images(options.out or Path("samples.png"), images))


def check(options: Sample) -> None:
    """Raises UsageError for options that contradict each other or have no effect, before any work."""
    wanted = [name for name in ("encode", "reconstruct", "interpolate") if getattr(options, name) is not None]
    if len(wanted) > 1:
        raise UsageError(f"--{wanted[0]} and --{wanted[1]}: one at a time")
    given = [f.name for f in dataclasses.fields(options) if getattr(options, f.name) != f.default]
    without = ("count", "sampler", "seed") if wanted else ("resize",)
    if idle := [name for name in without if name in given]:
        raise UsageError(f"--{idle[0]} with --{wanted[0]}: no effect" if wanted else "--resize: no images are given")
    if options.out is None:
        return
    endings = (".csv", ".npz") if options.encode is not None else (".png", "")
    if options.out.suffix not in endings:
        allowed = "codes are written as .csv or .npz"
        if options.encode is None:
            allowed = "the name of a sheet ends in .png, that of a folder has no ending"
        raise UsageError(f"--out {options.out}: {allowed}")
    if options.out.is_dir() and (options.out.suffix or any(options.out.iterdir())):
        why = "a folder, but its name has the ending of a file" if options.out.suffix else "a folder with files"
        raise UsageError(f"--out {options.out}: {why}; choose another")


def of_class(options: Sample, images: Tensor) -> Tensor | None:
    """Returns the class of each image, as `--class` says; None without it."""
    return None if options.label is None else torch.full((len(images),), options.label)


def written_images(path: Path, images: Tensor, names: list[str] | None = None, beside: Tensor | None = None) -> Path:
    """Writes images `(N, 1, 28, 28)` in [0, 1] as one sheet, or into a folder one by one, and returns the path.

    On the sheet, a row of images `beside` them stands above each of their rows. In the folder they have the `names`
    of the files that they were made from, or numbers.
    """
    if path.suffix == ".png":
        rows = list(images.split(COLUMNS))
        if beside is not None:
            rows = [row for pair in zip(beside.split(COLUMNS), rows, strict=True) for row in pair]
        write_atomically(path, _png(image_grid(rows)))
    else:
        width = len(str(len(images) - 1))
        stems = [str(Path(name).with_suffix("")) for name in names or []]
        for number, image in enumerate(images):
            stem = f"{number:0{width}d}"
            if names:  # x.png and x.jpg stay two images
                stem = names[number] if stems.count(stems[number]) > 1 else stems[number]
            write_atomically(path / f"{stem}.png", _png(image))
    return path


def written_codes(path: Path, names: list[str], codes: Tensor) -> Path:
    """Writes each file's code, `(N, latent)`, as CSV (a line a file) or NPZ (`names`, `codes`); returns the path."""
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez_compressed(buffer, names=np.array(names), codes=codes.numpy())
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", *(f"z{dimension}" for dimension in range(1, codes.shape[1] + 1))])
        writer.writerows(
            [name, *(f"{value:.6g}" for value in row)] for name, row in zip(names, codes.tolist(), strict=True)
        )
        buffer.write(text.getvalue().encode())
    write_atomically(path, buffer.getvalue())
    return path


def _png(image: Tensor) -> bytes:
    """Returns an image `(1, H, W)` in [0, 1] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[0].clamp(0, 1).mul(255).round().to(torch.uint8).numpy()).save(buffer, format="png")
    return buffer.getvalue()


if __name__ == "__main__":
    cli.command(main, Sample)
