"""The part of the report page where a reader works with the newest models' decoders; `vae/plane.js` runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.experiment import say
from common.report.document import Block, Widget, stand_in_warning
from common.report.folders import Folder, usable
from common.tables import counted
from vae import plane
from vae.labels import CLASS_COLOURS
from vae.models import ARCHITECTURE_TITLES
from vae.priors import PRIORS, prior_label

KIND = "latent-plane"  # the class by which the script and the style find their place in the page


@dataclasses.dataclass(frozen=True)
class Model:
    """What this part needs of a run's metrics."""

    arch: str
    latent: int
    beta: float
    prior_mean: float
    prior_std: float
    objective: str = "elbo"  # older runs have none

    @property
    def title(self) -> str:
        """The model in words."""
        kind = "VAE" if self.beta == 1 else f"β-VAE (β = {self.beta:g})"
        kind = "IWAE" if self.objective == "iwae" else kind
        prior = prior_label(self.prior_mean, self.prior_std)
        network = next((title for name, title in ARCHITECTURE_TITLES.items() if name == self.arch), self.arch)
        return f"{network} {kind}, {counted(self.latent, 'dimension')}, prior {prior}"


def newest(folders: Sequence[Folder]) -> list[tuple[Folder, Model]]:
    """Returns the newest runs with a decoder for the page: of two dimensions and of more, for each named prior.

    They are at most four, so that a page of hundreds of runs stays small. Models under a mixture and conditional ones
    have no such decoder.
    """
    found: dict[tuple[bool, float, float], tuple[float, Folder, Model]] = {}
    # First those with a file: not a run of before, one in a table, nor one whose prior has no mean of its own.
    times = {folder.path: written for folder in folders if (written := _written(folder)) is not None}
    for folder, model in usable([folder for folder in folders if folder.path in times], Model):
        written = times[folder.path]
        kind = (model.latent > 2, model.prior_mean, model.prior_std)
        if kind[1:] in PRIORS.values() and (kind not in found or found[kind][0] < written):
            found[kind] = (written, folder, model)
    return [(folder, model) for _, (_, folder, model) in sorted(found.items(), key=lambda item: item[0])]


def _written(folder: Folder) -> float | None:
    """Returns when a run's decoder was written, None if it has none."""
    try:
        return (folder.path / plane.FILE).stat().st_mtime
    except OSError:
        return None


def blocks(folder: Folder, model: Model, instead: Sequence[Block]) -> list[Block]:
    """Returns a run's decoder for the reader to work with; if its file is damaged, a warning that names the run.

    `instead` is what stands there without JavaScript.
    """
    head: list[Block] = [f"# The decoder at work: {model.title}", *stand_in_warning(folder)]
    try:
        content = plane.read(folder.path / plane.FILE)
        expected = (model.latent, model.prior_mean, model.prior_std)
        if (content.latent, content.prior_mean, content.prior_std) != expected:
            raise ValueError("not of this run's model")
    except ValueError as error:
        problem = f"{folder.name}: {plane.FILE} is damaged ({error}); its decoder is left out"
        say(f"warning: {problem}")
        return [*head, f"! {problem}.", *instead]
    data = {
        **dataclasses.asdict(content),
        "title": f"The decoder of {folder.label}",
        "caption": caption(folder, content),
        "colours": CLASS_COLOURS,
    }
    script, style = (Path(__file__).with_name(f"plane.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return [*head, Widget(KIND, data, script, style, instead)]


def caption(folder: Folder, content: plane.Plane) -> str:
    """Returns what a reader can do with a run's decoder, and how close it is to the true one."""
    how = "Drag the point over the codes of test images, or move it with the arrow keys."
    if content.latent > 2:
        how = "The sliders move the dimensions with most KL through ±3 deviations of the prior, the others stay."
    what = "a small copy that learned the decoder's pictures" if content.copied else "the decoder, its weights rounded"
    weights = sum(layer.inputs * layer.outputs for layer in content.layers)
    return (
        f"{folder.label}. {how} Shown is {what}: {weights / 1000:.0f} thousand weights of 8 bits. On average a pixel "
        f"differs from the true decoder's by {100 * content.error:.2f} % of the range from white to black."
    )
