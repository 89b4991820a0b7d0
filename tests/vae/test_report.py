"""What the report page says of a study: its verdicts, and which differences are the original report's claims."""

import dataclasses
from pathlib import Path

import pytest

from common.report.folders import Folder, find
from common.stats import Interval
from common.tables import Table
from tests.common.report.conftest import edit
from tests.common.report.runs import vae_run
from vae.claims import BETA, CONTROL, PRIORS, Study, claims_of, sentence, verdict
from vae.report import section


@pytest.mark.parametrize(
    ("fid", "elbo", "words"),
    [
        ((-9.0, -5.0, -1.0), (0.5, 1.0, 1.5), "better"),
        ((-1.0, 5.0, 9.0), (-1.5, -1.0, -0.5), "worse"),
        ((-1.0, 5.0, 9.0), (-1.5, 1.0, 1.5), "nothing shown"),
        ((1.0, 5.0, 9.0), (0.5, 1.0, 1.5), "better in one, worse in the other"),
    ],
)
def test_a_lower_fid_and_a_higher_elbo_are_better(
    fid: tuple[float, float, float], elbo: tuple[float, float, float], words: str
) -> None:
    intervals = [Interval(estimate, low, high) for low, estimate, high in (fid, elbo)]
    assert verdict(*intervals) == words
    assert verdict(intervals[0], dataclasses.replace(intervals[1], values=4)) == "too few seeds"


def test_a_verdict_names_the_figures_that_show_it_and_those_against_it() -> None:
    up, down, nothing = Interval(5.0, 1.0, 9.0), Interval(-5.0, -9.0, -1.0), Interval(1.0, -8.0, 9.0)
    worse = {"fid": up, "elbo": down}
    assert sentence(worse, {}) == "worse in FID and ELBO"
    assert sentence({**worse, "elbo": nothing}, {}) == "worse in FID"
    others = {"density": up, "coverage": down, "confidence": up}
    assert sentence({**worse, **others}, {}) == "worse in FID, ELBO and coverage, yet better in density and confidence"
    better = sentence({"fid": down, "elbo": up, **others}, {})
    assert better == "better in FID, ELBO, density and confidence, yet worse in coverage"
    assert sentence({"fid": nothing, "elbo": nothing, **others}, {}).startswith("no difference shown: both intervals")
    small = {"density": Interval(0.01, 0.005, 0.015), "coverage": Interval(-0.1, -0.12, -0.08)}
    assert sentence({**worse, **small}, {"density": 0.02, "coverage": 0.02}) == "worse in FID, ELBO and coverage"
    few = {name: dataclasses.replace(of, values=3) for name, of in worse.items()}
    assert sentence(few, {}) == "open: 3 seeds, too few for a conclusion"


def test_of_a_study_of_beta_the_reports_claim_is_what_it_says() -> None:
    """Of four comparisons two are of N(0, 1), and one is of values below 1: questions of ours."""
    said = section(find(Path("results/reference/vae/beta_10_epochs"))).claims
    assert [(claim.claim, claim.measured.partition(": FID")[0]) for claim in said if claim.seeds] == [
        (BETA, "conv 16, N(1, 2²): β = 4 − β = 1, 10 epochs"),
    ]


def test_of_a_smoke_test_the_page_tells_no_epochs_that_were_not_trained() -> None:
    (folder,) = find(Path("results/reference/vae/beta"))
    study = Study(**{name: folder.metrics[name] for name in ("seeds", "models")}, claims=intervals_of(folder))
    told = claims_of(folder, study)
    tried = claims_of(dataclasses.replace(folder, settings=folder.settings | {"smoke_test": True}), study)
    assert ", 20 epochs: FID" in told[0].claim.measured
    assert ", smoke test: FID" in tried[0].claim.measured
    assert told[0].claim.verdict.startswith("contradicted: worse in FID, ELBO and coverage, yet better in density")


def intervals_of(folder: Folder) -> dict[str, dict[str, Interval]]:
    claims = folder.metrics["claims"]
    return {claim: {name: Interval(**of) for name, of in figures.items()} for claim, figures in claims.items()}


def test_of_studies_of_one_question_the_longest_training_answers() -> None:
    """After 4, 10 and 20 epochs, in 16 dimensions and in 2; each stays in the section of its study."""
    said = section(find(Path("results/reference/vae")))
    answers = [claim.measured.partition(": FID")[0] for claim in said.claims if claim.claim == BETA]
    assert answers == ["conv 16, N(1, 2²): β = 4 − β = 1, 20 epochs", "conv 2, N(1, 2²): β = 4 − β = 1, 20 epochs"]
    told = [row[1] for block in said.blocks if isinstance(block, Table) for row in block.rows if row[0] == BETA]
    assert len(told) == 6


def test_of_two_controls_the_one_with_mapped_rates_is_an_answer() -> None:
    said = section(find(Path("results/reference/vae/claims"))).claims
    assert [claim.measured.partition(": FID")[0] for claim in said if claim.claim == CONTROL] == [
        "conv 2: the same, mapped start and rates, 4 epochs",
        "conv 16: the same, mapped start and rates, 4 epochs",
    ]
    assert sum(claim.claim == PRIORS for claim in said) == 2


def test_samples_from_another_prior_stand_beside_the_models_own(tmp_path: Path) -> None:
    quality = {
        "prior samples": {"fid": 319.2, "density": 0.5, "coverage": 0.25, "confidence": 0.75},
        "mismatched samples": {"fid": 640.8, "density": 0.25, "coverage": 0.125},
    }
    run = vae_run(tmp_path / "mismatched", sample_prior="gaussian12")
    edit(run / "metrics.json", lambda metrics: metrics.update(quality=quality, sample_prior={"mean": 1, "std": 2}))
    vae_run(tmp_path / "own", sample_prior="own")
    folders = find(tmp_path)
    tables = [block for block in section(folders).blocks if isinstance(block, Table)]
    assert [folder.state for folder in folders] == ["finished", "finished"]
    rows = [table.rows for table in tables if "codes from" in table.head]
    assert rows == [
        [["mismatched", "N(0, 1)", "N(1, 2²)", "319 → 641", "0.50 → 0.25", "0.25 → 0.12", "0.75 → none"]],
    ]
