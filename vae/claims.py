"""What a study of VAEs says of the original report's claims: each difference with its verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from common import comparison
from common.report.document import Block, Claim, link
from common.report.folders import Folder
from common.stats import Interval
from common.tables import Table, counted
from vae.settings import Settings
from vae.study_settings import described

NEEDED = {"elbo", "nll", "fid", "fid_mixture", "coverage"}  # a study may have more; the older ones have these
BETA = "VAE: the β-VAE is “significantly better” than the VAE under N(1, 2²)"
PRIORS = "VAE: N(0, 1) and N(1, 2²) as priors; the original report names no better one"
LENGTH_AND_JUDGING = {"epochs", "nll_samples", "generated", "sample_prior", "sample_mean", "sample_std"}
CONTROL = "Our control: both priors from the same start"


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


@dataclasses.dataclass(frozen=True)
class Found:
    """A claim as a study found it, the question that it answers, and for how many epochs its models were trained."""

    claim: Claim
    question: tuple[object, ...]
    epochs: int


def longest_trained(found: Sequence[Found]) -> list[Claim]:
    """Returns one claim for each question: that of the models that were trained for the most epochs."""
    longest: dict[tuple[object, ...], Found] = {}
    for of in found:
        if of.question not in longest or of.epochs > longest[of.question].epochs:
            longest[of.question] = of
    return [of.claim for of in longest.values()]


def claims_of(folder: Folder, study: Study) -> list[Found]:
    """Returns the original report's claims beside the differences between two models each that a study found."""
    models, pairs = described(folder.settings) or ({}, {})
    found = []
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
        beta = f", β = {one['beta']:g}" if said == BETA and "β = " not in name else ""
        epochs = one.get("epochs", Settings.epochs)
        length = "smoke test" if folder.settings.get("smoke_test") is True else counted(epochs, "epoch")
        verdict_on = sentence(differences, margins_of(folder))
        if said == BETA and verdict_on.startswith("worse"):
            verdict_on = f"contradicted: {verdict_on}"
        fid, elbo = differences["fid"], differences["elbo"]
        texts = [of.text(signed=True).partition(" ") for of in (fid, elbo)]
        claim = Claim(
            said,
            f"{name}{beta}, {length}: FID {texts[0][0]}, ELBO {texts[1][0]}",
            ", ".join(interval or "none" for _, _, interval in texts),
            len(study.seeds),
            verdict_on,
            link("study", folder.name),
            bool(folder.stand_in_for),
        )
        found.append(Found(claim, (said, model_of(one), model_of(other)), epochs))
    return found


def model_of(arm: Mapping[str, Any]) -> frozenset[tuple[str, object]]:
    """Returns the settings of a study's model, without how long it is trained and how it is judged."""
    whole: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Settings)} | dict(arm)
    numbers = int | float  # 4 and 4.0 are one β; lists are compared as text
    told = {name: value if isinstance(value, numbers) else str(value) for name, value in whole.items()}
    return frozenset((name, value) for name, value in told.items() if name not in LENGTH_AND_JUDGING)


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

    Of the other measures it names those whose difference is more than the margin of none. Where nothing is shown, it
    says whether both differences lie within that margin, or what the study would have seen.
    """
    fid, elbo = differences["fid"], differences["elbo"]
    word = verdict(fid, elbo)
    if word == "too few seeds":
        return f"open: {counted(min(fid.values, elbo.values), 'seed')}, too few for a conclusion"
    if word in ("better", "worse"):
        shown = [name for name, of in (("FID", fid), ("ELBO", elbo)) if of.conclusive]
        others = {name: differences[name] for name in ("density", "coverage", "confidence") if name in differences}
        told = {name: of for name, of in others.items() if of.conclusive and not of.within(margins.get(name, 0))}
        clear = {name: of.estimate > 0 for name, of in told.items()}  # a higher one is better
        shown += [name for name, higher in clear.items() if higher == (word == "better")]
        against = [name for name, higher in clear.items() if higher == (word == "worse")]
        opposite = "worse" if word == "better" else "better"
        return f"{word} in {listed(shown)}" + (f", yet {opposite} in {listed(against)}" if against else "")
    if word != "nothing shown":
        return word
    if fid.within(margins.get("fid", 0)) and elbo.within(margins.get("elbo", 0)):
        return f"no difference: within ±{margins['fid']:g} in FID and ±{margins['elbo']:g} nats in ELBO"
    seen = f"{fid.smallest_seen:.0f} in FID, {elbo.smallest_seen:.1f} nats in ELBO"
    return f"no difference shown: both intervals contain 0; the study would have seen {seen} (80 % power)"


def listed(names: Sequence[str]) -> str:
    """Returns the names as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def verdict(fid: Interval, elbo: Interval) -> str:
    """Returns in words what two differences say: a lower FID is better, a higher ELBO is better."""
    return comparison.verdict(elbo, lower=[fid])
