"""The VAE section of the report: the sheet of samples, the tables of figures and claims, and every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from common import comparison
from common.report.document import Block, Section, captioned, run_details, stand_in_warning
from common.report.folders import Folder, usable
from common.stats import Interval, number
from common.tables import Table, counted, difference
from vae.priors import prior_label
from vae.study import COLUMNS, COMPARED, tables
from vae.study_settings import described

CAPTIONS = {
    "samples": "Samples from each model's own prior, with means over its seeds.",
    "claims": "Differences seed by seed with their 95 % intervals; the conclusive ones in colour.",
    "training": "ELBO, reconstruction error and KL, epoch by epoch, on training and held-out images.",
    "early_look": "After the last epoch: held-out images, what the decoder makes of them, and of codes from the prior.",
    "reconstructions": "Test images over what the decoder makes of the means of their posteriors.",
    "samples_prior": "What the decoder makes of codes from the prior.",
    "samples_mixture": "What the decoder makes of codes from a Gaussian mixture fitted to the training images' codes.",
    "latent": "Posterior means of the test images by class, and the prior's contours at 1, 2 and 3 deviations.",
    "manifold": "The latent plane at the prior's own quantiles (Kingma & Welling 2014, figure 4).",
    "traversals": "One test image's code, one dimension at a time moved through ±3 deviations of the prior.",
    "interpolations": "Straight lines between the codes of two test images each, the images themselves at the ends.",
    "quality": "FID, density and coverage of samples between ceiling and floor, and the classes samples fall into.",
}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of a run's metrics.json."""

    arch: str
    prior_mean: float
    prior_std: float
    latent: int
    beta: float
    elbo: float
    nll: float
    nll_samples: int
    kl: float
    fid: float
    density: float
    coverage: float
    likelihood: str
    classifier: dict[str, Any]
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Study:
    """What the section needs of a study's metrics.json."""

    seeds: list[int]
    models: dict[str, dict[str, list[float]]]
    claims: dict[str, dict[str, Interval]]

    def __post_init__(self) -> None:
        """Raises ValueError when a figure is missing."""
        if not self.models or any(COLUMNS.keys() - model.keys() for model in self.models.values()):
            raise ValueError("a model lacks figures")
        if any(set(COMPARED) - claim.keys() for claim in self.claims.values()):
            raise ValueError("a claim lacks figures")


def section(folders: Sequence[Folder]) -> Section:
    """Returns what the reference study said, our studies with samples and claims, and every single model."""
    blocks: list[Block] = [
        "The reference study trained fully connected, convolutional and β-VAEs on MNIST under the priors N(0, 1) and "
        "N(1, 2²), and found the β-VAE “significantly better” than the VAE under N(1, 2²). It gave neither its β nor "
        "what it judged by. All figures below are of the test images at β = 1; FID, density and coverage use a "
        "classifier trained here and do not compare with FIDs on Inception features."
    ]
    shown = []
    for folder, study in usable([folder for folder in folders if described(folder.settings)], Study):
        pictures = [folder.path / "figures" / f"{name}.png" for name in ("samples", "claims")]
        shown += pictures
        claims = {claim: {k: dataclasses.asdict(v) for k, v in of.items()} for claim, of in study.claims.items()}
        blocks += [f"# Study {folder.name}: {len(study.models)} models", *stand_in_warning(folder)]
        blocks += said_and_measured(*(described(folder.settings) or ({}, {})), study)
        blocks += [captioned(path, CAPTIONS) for path in pictures if path.exists()]
        blocks += [*tables(study.models, claims), run_details(folder, CAPTIONS, shown)]
    runs = usable([folder for folder in folders if "arch" in folder.settings], Metrics)
    if runs:
        blocks += ["# All single models", Table(HEAD, [row(folder, metrics) for folder, metrics in runs], COMPARE)]
        blocks += [run_details(folder, CAPTIONS, shown) for folder, _ in runs]
    else:
        blocks.append("No finished model yet: `python vae/train.py --arch conv --prior gaussian12 --latent 16`.")
    return Section("Variational autoencoders", blocks)


def said_and_measured(
    models: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Sequence[str]], study: Study
) -> list[Block]:
    """Returns what the reference study claimed beside the differences that a study of it found, if it is one.

    `models` and `pairs` are the study's settings: every model's own, and the two models of every claim.
    """
    rows = []
    for claim, differences in study.claims.items():
        one, other = (models[name] for name in pairs[claim])
        said = "“significantly better”" if one.get("beta", 1) > other.get("beta", 1) else "no claim"
        fid, elbo = differences["fid"], differences["elbo"]
        rows.append([claim, said, f"FID {difference(fid)}, ELBO {difference(elbo)}", verdict(fid, elbo)])
    head = ["", "the reference study said", "we measured", "so"]
    return [Table(head, rows, f"{counted(len(study.seeds), 'seed')}, 95 % bootstrap intervals.")] if rows else []


def verdict(fid: Interval, elbo: Interval) -> str:
    """Returns in words what two differences say: a lower FID is better, a higher ELBO is better."""
    return comparison.verdict(elbo, lower=[fid])


COMPARE = (
    "ELBO and NLL compare within one likelihood; FID, density and coverage where the judge (its weights' hash) and the "
    "number of samples are the same."
)
HEAD = [
    "run",
    "network",
    "prior",
    "latent",
    "β",
    "likelihood",
    "ELBO",
    "NLL ≤",
    "codes",
    "KL",
    "FID",
    "density",
    "coverage",
    "samples",
    "judge",
    "images/s",
]


def row(folder: Folder, metrics: Metrics) -> list[str]:
    """Returns a run's line of the table of single models."""
    settings = folder.settings
    capacity = settings.get("capacity")
    return [
        folder.label,
        metrics.arch + (", mapped start" if settings.get("initialisation") == "mapped" else ""),
        prior_label(metrics.prior_mean, metrics.prior_std),
        str(metrics.latent),
        f"{metrics.beta:g}" + (f", capacity {capacity:g}" if isinstance(capacity, int | float) else ""),
        metrics.likelihood,
        number(metrics.elbo, 2),
        number(metrics.nll, 2),
        str(metrics.nll_samples),
        f"{metrics.kl:.2f}",
        f"{metrics.fid:.0f}",
        f"{metrics.density:.2f}",
        f"{metrics.coverage:.2f}",
        str(settings.get("generated", "")),
        str(metrics.classifier.get("weights_sha256", ""))[:4],
        f"{metrics.images_per_second:.0f}",
    ]
