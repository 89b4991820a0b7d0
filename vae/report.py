"""The VAE section of the report page: the sheet of samples, the tables of figures and claims, and every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge

from common.report.document import (
    Block,
    Claim,
    Heading,
    Section,
    captioned,
    link,
    run_details,
    runs_details,
    stand_in_warning,
)
from common.report.folders import Folder, Fraction, usable
from common.stats import number
from common.tables import Table
from vae import live
from vae.claims import BETA, PRIORS, Found, Study, claims_of, longest_trained, margins_of, said_and_measured
from vae.priors import prior_label, vamp_label
from vae.study import tables
from vae.study_settings import described
from vae.train import MISMATCHED

CAPTIONS = {
    "samples": "Samples from each model's own prior, with means over its seeds.",
    "claims": "Differences seed by seed with their 95 % intervals; the conclusive ones in colour.",
    "training": "ELBO, reconstruction error and KL, epoch by epoch, on training and held-out images.",
    "early_look": "After the last epoch: held-out images, what the decoder makes of them, and of codes from the prior.",
    "reconstructions": "Test images over what the decoder makes of the means of their posteriors.",
    "samples_prior": "What the decoder makes of codes from the prior.",
    "samples_mismatched": "What the decoder makes of codes from a prior that is not its own (`--sample-prior`).",
    "samples_mixture": "What the decoder makes of codes from a Gaussian mixture fitted to the training images' codes.",
    "samples_by_class": "What a conditional model makes of the same codes in every class; a row a class.",
    "latent": "Posterior means of the test images by class, and the prior: contours at 1, 2 and 3 deviations of a "
    "Gaussian, the means of a mixture's components.",
    "manifold": "The latent plane at the prior's own quantiles (Kingma & Welling 2014, figure 4); under a mixture at "
    "those of the posterior means.",
    "traversals": "One test image's code, one dimension at a time moved through ±3 deviations of the prior.",
    "interpolations": "Straight lines between the codes of two test images each, the images themselves at the ends.",
    "quality": "FID, density and coverage of samples between ceiling and floor, and the classes samples fall into.",
}

AGAINST_BETA = {
    "samples": "Samples of models that differ in β, for each pairing of the prior in training and that of the codes.",
    "quality": "The measures of these samples against β, means with 95 % intervals; of two seeds, both.",
}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A prior of every dimension."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of a run's metrics."""

    arch: str
    prior_mean: float | None  # None under a mixture
    prior_std: float | None
    latent: int
    beta: float
    elbo: float
    nll: float
    nll_samples: int
    kl: float
    fid: float
    density: Annotated[float, Ge(0)]
    coverage: Fraction
    likelihood: str
    classifier: dict[str, Any]
    images_per_second: float
    pseudo_inputs: int | None = None  # older runs have none
    sample_prior: Gaussian | str = "own"  # of codes from another prior; the setting where there are none
    quality: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # committed runs leave it out


COMMAND = "python vae/study.py --config configs/vae/sweeps/study_claims.yaml"
KEPT_METRICS = ("classifier",)  # records of metrics.json that a compact folder of runs keeps


def section(folders: Sequence[Folder]) -> Section:
    """Returns what the original report said, our studies with samples and claims, and every single model."""
    blocks: list[Block] = [
        "The original report trained fully connected, convolutional and β-VAEs on MNIST under the priors N(0, 1) and "
        "N(1, 2²). It found the β-VAE “significantly better” than the VAE under N(1, 2²). It gave neither its β nor "
        "its measure of quality. All figures below are those of the test images at β = 1. FID, density and coverage "
        "use a classifier trained here: do not compare them with FIDs on Inception features."
    ]
    shown = []
    found: list[Found] = []
    for folder, study in usable([folder for folder in folders if described(folder.settings)], Study):
        against_beta = sorted(name for name in folder.figures if "_against_beta" in name)
        by_kind = sorted(against_beta, key=lambda name: name.startswith("quality"))  # sheets before curves
        wanted = ["samples", *by_kind, "claims"]
        figures = [folder.figures[name] for name in wanted if name in folder.figures]
        shown += figures
        captions = CAPTIONS | {name: AGAINST_BETA[name.split("_")[0]] for name in against_beta}
        differences = {claim: {k: dataclasses.asdict(v) for k, v in of.items()} for claim, of in study.claims.items()}
        of_study = claims_of(folder, study)
        found += of_study
        blocks += [
            Heading(f"Study {folder.name}: {len(study.models)} models", link("study", folder.name)),
            *stand_in_warning(folder),
            *said_and_measured([of.claim for of in of_study], study),
            *(captioned(figure, captions) for figure in figures),
            *tables(study.models, differences, margins_of(folder)),
            run_details(folder, CAPTIONS, shown),
        ]
    runs = usable([folder for folder in folders if "arch" in folder.settings], Metrics)
    for folder, model in live.newest([folder for folder, _ in runs]):
        instead = [folder.figures[name] for name in ("manifold", "traversals") if name in folder.figures]
        shown += instead
        blocks += live.blocks(folder, model, [captioned(figure, CAPTIONS) for figure in instead])
    if runs:
        table = Table(HEAD, [row(folder, metrics) for folder, metrics in runs], COMPARE)
        blocks += [
            "# All single models",
            *mismatched_samples(runs),
            runs_details("models", table, [folder for folder, _ in runs], CAPTIONS, shown),
        ]
    else:
        blocks.append("No finished model yet: `python vae/train.py --arch conv --prior gaussian12 --latent 16`.")
    claims = longest_trained(found)
    tested = {of.claim for of in claims}
    claims += [Claim.not_measured(claim, COMMAND) for claim in (BETA, PRIORS) if claim not in tested]
    return Section("Variational autoencoders", blocks, sorted(claims, key=lambda of: of.claim != BETA))


COMPARE = (
    "Compare ELBO and NLL within one likelihood. Compare FID, density and coverage between runs with the same judge "
    "(the classifier, shown by the hash of its weights) and the same number of samples."
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


def mismatched_samples(runs: Sequence[tuple[Folder, Metrics]]) -> list[Block]:
    """Returns the table of the samples from another prior than the model's (`--sample-prior`), if a run has any."""
    rows = []
    for folder, metrics in runs:
        if isinstance(metrics.sample_prior, str):
            continue
        own, other = (metrics.quality.get(of, {}) for of in ("prior samples", MISMATCHED))
        drawn = prior_label(metrics.sample_prior.mean, metrics.sample_prior.std)
        measured = [
            " → ".join(number(of[name], digits) if isinstance(of.get(name), float) else "none" for of in (own, other))
            for name, digits in {"fid": 0, "density": 2, "coverage": 2, "confidence": 2}.items()
        ]
        rows.append([folder.label, prior_of(metrics), drawn, *measured])
    head = ["run", "trained under", "codes from", "FID", "density", "coverage", "confidence"]
    caption = "Samples from the model's own prior → samples from another one, which the decoder was not trained for."
    return [Table(head, rows, caption)] if rows else []


def network_label(arch: str, settings: Mapping[str, Any]) -> str:
    """Returns a model's network, and what else sets it apart beside its prior, its code and β."""
    iwae = settings.get("objective") == "iwae"
    chosen = {
        "conditional": settings.get("conditional") is True,
        f"IWAE (K = {settings.get('importance_samples') or 5})": iwae,
        "mapped start": settings.get("initialisation") == "mapped",
        "mapped rates": settings.get("mapped_rates") is True,
    }
    return ", ".join([arch, *(name for name, holds in chosen.items() if holds)])


def prior_of(metrics: Metrics) -> str:
    """Returns a model's prior as the table writes it."""
    if metrics.prior_mean is None or metrics.prior_std is None:
        return vamp_label(metrics.pseudo_inputs or 0)
    return prior_label(metrics.prior_mean, metrics.prior_std)


def row(folder: Folder, metrics: Metrics) -> list[str]:
    """Returns a run's line of the table of single models."""
    settings = folder.settings
    capacity = settings.get("capacity")
    return [
        folder.label,
        network_label(metrics.arch, settings),
        prior_of(metrics),
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
        str(metrics.classifier.get("weights_sha256", "none"))[:4],
        f"{metrics.images_per_second:.0f}",
    ]
