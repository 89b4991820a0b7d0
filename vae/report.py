"""The VAE section of the report page: the sheet of samples, the tables of figures and claims, and every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge

from common import comparison
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
from common.stats import Interval, number
from common.tables import Table, counted
from vae import live
from vae.priors import prior_label, vamp_label
from vae.study import tables
from vae.study_settings import described
from vae.train import MISMATCHED

NEEDED = {"elbo", "nll", "fid", "fid_mixture", "coverage"}  # a study may have more; the older ones have these
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


@dataclasses.dataclass(frozen=True)
class Study:
    """What the section needs of a study's metrics."""

    seeds: list[int]
    models: dict[str, dict[str, list[float]]]
    claims: dict[str, dict[str, Interval]]

    def __post_init__(self) -> None:
        """Raises ValueError when a figure is missing."""
        if not self.models or any(NEEDED - model.keys() for model in self.models.values()):
            raise ValueError("a model lacks figures")
        if any(NEEDED - claim.keys() for claim in self.claims.values()):
            raise ValueError("a claim lacks figures")


BETA = "VAE: the β-VAE is “significantly better” than the VAE under N(1, 2²)"
PRIORS = "VAE: N(0, 1) and N(1, 2²) as priors; the original report names no better one"
CONTROL = "Our control: both priors from the same start"
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
    claims = []
    for folder, study in usable([folder for folder in folders if described(folder.settings)], Study):
        against_beta = sorted(name for name in folder.figures if "_against_beta" in name)
        by_kind = sorted(against_beta, key=lambda name: name.startswith("quality"))  # sheets before curves
        wanted = ["samples", *by_kind, "claims"]
        figures = [folder.figures[name] for name in wanted if name in folder.figures]
        shown += figures
        captions = CAPTIONS | {name: AGAINST_BETA[name.split("_")[0]] for name in against_beta}
        differences = {claim: {k: dataclasses.asdict(v) for k, v in of.items()} for claim, of in study.claims.items()}
        said = claims_of(folder, study)
        claims += said
        blocks += [
            Heading(f"Study {folder.name}: {len(study.models)} models", link("study", folder.name)),
            *stand_in_warning(folder),
            *said_and_measured(said, study),
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
    tested = {of.claim for of in claims}
    claims += [Claim.not_measured(claim, COMMAND) for claim in (BETA, PRIORS) if claim not in tested]
    return Section("Variational autoencoders", blocks, sorted(claims, key=lambda of: of.claim != BETA))


def claims_of(folder: Folder, study: Study) -> list[Claim]:
    """Returns the original report's claims beside the differences between two models each that a study found."""
    models, pairs = described(folder.settings) or ({}, {})
    claims = []
    rates_mapped = {second for first, second in pairs.values() if models[first].get("mapped_rates")}
    for name, differences in study.claims.items():
        one, other = (models[model] for model in pairs[name])
        if one.get("initialisation") == "mapped" and not one.get("mapped_rates") and pairs[name][1] in rates_mapped:
            continue  # the control with its learning rates mapped too stands for it
        larger = one.get("beta", 1) > other.get("beta", 1)
        if larger and (other.get("beta", 1) < 1 or one.get("prior", "normal") == "normal"):
            continue  # an under-weighted KL, or N(0, 1): questions of ours, not the report's claim
        mapped = "mapped" in (one.get("initialisation"), other.get("initialisation"))
        said = BETA if larger else CONTROL if mapped else PRIORS
        beta = f", β = {one['beta']:g}" if said == BETA else ""
        fid, elbo = differences["fid"], differences["elbo"]
        texts = [of.text(signed=True).partition(" ") for of in (fid, elbo)]
        claims.append(
            Claim(
                said,
                f"{name}{beta}: FID {texts[0][0]}, ELBO {texts[1][0]}",
                ", ".join(interval or "none" for _, _, interval in texts),
                len(study.seeds),
                sentence(differences, margins_of(folder)),
                link("study", folder.name),
                bool(folder.stand_in_for),
            )
        )
    return claims


def said_and_measured(claims: Sequence[Claim], study: Study) -> list[Block]:
    """Returns the table of the original report's claims, if the study tests any."""
    rows = [[of.claim, of.measured, of.interval, of.verdict] for of in claims]
    head = ["the original report's claim", "we measured", "95 % intervals", "verdict"]
    caption = f"{counted(len(study.seeds), 'seed')}; a lower FID and a higher ELBO are better."
    return [Table(head, rows, caption)] if rows else []


def margins_of(folder: Folder) -> dict[str, float]:
    """Returns a study's margins, figure → the largest difference that counts as none; older studies have none."""
    margins = folder.settings.get("margins")
    return {k: float(v) for k, v in margins.items() if isinstance(v, int | float)} if isinstance(margins, dict) else {}


def sentence(differences: Mapping[str, Interval], margins: Mapping[str, float]) -> str:
    """Returns the verdict on the differences in FID and ELBO, with the figures that show it, and what contradicts it.

    Where nothing is shown, it says whether both differences lie within the margin of none, or what the study would
    have seen.
    """
    fid, elbo = differences["fid"], differences["elbo"]
    word = verdict(fid, elbo)
    if word == "too few seeds":
        return f"open: {counted(min(fid.values, elbo.values), 'seed')}, too few for a conclusion"
    if word in ("better", "worse"):
        shown = " and ".join(name for name, of in (("FID", fid), ("ELBO", elbo)) if of.conclusive)
        others = {name: differences[name] for name in ("density", "coverage", "confidence") if name in differences}
        against = [name for name, of in others.items() if of.conclusive and (of.estimate > 0) == (word == "worse")]
        opposite = "worse" if word == "better" else "better"
        return f"{word} in {shown}" + (f", yet {opposite} in {' and '.join(against)}" if against else "")
    if word != "nothing shown":
        return word
    if fid.within(margins.get("fid", 0)) and elbo.within(margins.get("elbo", 0)):
        return f"no difference: within ±{margins['fid']:g} in FID and ±{margins['elbo']:g} nats in ELBO"
    seen = f"{fid.smallest_seen:.0f} in FID, {elbo.smallest_seen:.1f} nats in ELBO"
    return f"no difference shown: both intervals contain 0; the study would have seen {seen} (80 % power)"


def verdict(fid: Interval, elbo: Interval) -> str:
    """Returns in words what two differences say: a lower FID is better, a higher ELBO is better."""
    return comparison.verdict(elbo, lower=[fid])


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
