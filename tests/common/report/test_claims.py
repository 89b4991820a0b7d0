"""The claims at the top of the report page: what is measured, how it is judged, and of which runs."""

import html
import re
import shutil
from pathlib import Path

from common.report.command import Report, main
from common.report.folders import Folder, find
from pruning.report import section as pruning_section
from tests.common.report.conftest import edit, text_of
from tests.common.report.runs import pruning_run


def test_the_page_opens_with_the_claims_and_the_answers(page: Path) -> None:
    source = page.read_text()
    first, *_ = re.findall(r"<section.*?</section>", source, flags=re.S)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", first)).split())
    assert text.startswith("Answers 1 run used the embedded stand-in data")
    for answer in (
        "STAND-IN data: 87.46 → 85.03 → 87.65 % with 22.97 % of the weights none: one seed 1 no result: stand-in data",
        "on one frame not measured here run python rl/train_sac_icm.py --icm stacked and --icm single",
        "than the VAE under N(1, 2²) conv 16: β-VAE − VAE, N(1, 2²), β = 4, 20 epochs: FID +318, ELBO −17.72 "
        "[+312, +325], [−18.02, −17.48] 5 contradicted: worse in FID, ELBO",
        "names no better one conv 16: N(1, 2²) − N(0, 1), 20 epochs: FID +76, ELBO −1.3 "
        "[+49, +103], [−1.9, −0.6] 5 worse in FID",
        "Our control: both priors from the same start conv 16: the same, mapped start, 20 epochs: FID −14, ELBO +0.08 "
        "[−37, +8], [−0.25, +0.34] 5 no difference shown: both intervals contain 0",
    ):
        assert answer in text
    links = set(re.findall(r'href="#([^"]+)"', first))
    assert len(links) == 2
    assert all(f'id="{link}"' in source for link in links)


def test_claims_that_no_run_tests_say_how_to_test_them(tmp_path: Path) -> None:
    main(Report(tmp_path, output=tmp_path / "page.html"))
    text = " ".join(text_of(tmp_path / "page.html").split())
    assert text.count("not measured here") == 4
    assert "run python vae/study.py --config configs/vae/sweeps/study_claims.yaml" in text


def test_a_claim_says_when_only_some_of_the_images_were_used(tmp_path: Path) -> None:
    whole = pruning_run(tmp_path / "whole")
    some = pruning_run(tmp_path / "some")
    edit(some / "metrics.json", lambda values: values["dataset"].update(images=3000, of=60_000))
    for run, told in ((whole, ""), (some, ", on 3,000 of 60,000 images")):
        (claim,) = pruning_section(find(run)).claims
        assert claim.measured == f"87.46 → 85.03 → 87.65 % with 22.97 % of the weights{told}"


def test_a_claim_is_judged_by_its_interval_only(tmp_path: Path) -> None:
    """Five seeds: dense and fine-tuned lie within a point of the claim, pruned lies far above; of one, it is open."""
    for seed in range(5):
        changes = {"dense_accuracy": 0.87 + seed / 1000, "finetuned_accuracy": 0.88, "pruned_accuracy": 0.8 + seed / 20}
        pruning_run(tmp_path / f"{'five' if seed else 'one'}" / f"seed{seed}", seed=seed, **changes)
    shutil.copytree(tmp_path / "one" / "seed0", tmp_path / "five" / "seed0")
    assert pruning_verdict(find(tmp_path / "one")).startswith(
        "open: 1 seed, too few for a conclusion. Against the report: dense and"
    )
    assert pruning_verdict(find(tmp_path / "five")) == (
        "against the report: dense and fine-tuned within 1 point; pruned 49 points above"
    )
    for seed in range(5):
        metrics = tmp_path / "five" / f"seed{seed}" / "metrics.json"
        edit(metrics, lambda values, seed=seed: values.update(dense_accuracy=0.85 + seed / 100))  # type: ignore[misc]
    assert "dense open" in pruning_verdict(find(tmp_path / "five"))


def test_only_runs_like_the_original_reports_make_its_claim(tmp_path: Path) -> None:
    """Random weights, whole filters, and statistics that were recomputed are none, whatever their name or seed."""
    others = {"criterion": "random"}, {"granularity": "filter", "filter_sparsity": 0.7}, {"recalibrate": True}
    for seed, changes in enumerate(others, 1):
        pruning_run(tmp_path / f"a{seed}", seed=seed, **changes)
    pruning_run(tmp_path / "z")
    (claim,) = pruning_section(find(tmp_path)).claims
    assert (claim.seeds, claim.evidence.startswith("pruning-claim-z")) == (1, True)


def pruning_verdict(folders: list[Folder]) -> str:
    (claim,) = pruning_section(folders).claims
    return claim.verdict


def test_measured_figures_stand_beside_those_of_the_report(page: Path) -> None:
    text = " ".join(text_of(page).split())
    assert "dense test accuracy 87 % 87.46 %" in text
    assert "convolution weights kept 23 % 22.97 %" in text
    assert "stacked − none +484 [−859, +1828] nothing shown 0.72" in text
    assert "against SAC without curiosity +484 return [−859, +1828] not shown: the interval contains 0" in text
    assert "conv 16: β-VAE − VAE, N(1, 2²) +318 [+312, +325]" in text
    assert "conv 16: the same, mapped start" in text
    assert "a|b +1.0 [0.5, 1.5]" in text  # the sweep's table


def test_beside_the_report_stands_the_run_most_like_it(tmp_path: Path) -> None:
    """A sweep's arms at the original report's sparsities, longer and gradual, do not take its place."""
    pruning_run(tmp_path / "z")
    pruning_run(tmp_path / "arm", figures=(), epochs=30)
    pruning_run(tmp_path / "gradual", epochs=30, schedule="gradual")
    main(Report(tmp_path, output=tmp_path / "report.html"))
    assert "Run z, seed 0" in text_of(tmp_path / "report.html")
