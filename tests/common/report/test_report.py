"""The report page: what it says of finished runs, and of damaged ones."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import cli
from common.report.command import Report, duration, main
from common.report.folders import Folder, find, usable
from common.tables import Table, parse
from pruning.report import section as pruning_section
from tests.common.report.conftest import edit
from tests.common.report.runs import pruning_run, rl_run, vae_run


def text_of(page: Path) -> str:
    """Returns what a reader sees."""
    return html.unescape(
        re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>|data:[^\"]+", "", page.read_text(), flags=re.S))
    )


def test_every_run_is_listed_with_its_state(results: Path, page: Path) -> None:
    states = {folder.name: folder.state for folder in find(results)}
    assert states["rl/stopped"] == "interrupted"
    assert states["rl/none"] == "finished"
    assert states["vae/cut-off"].startswith("damaged: metrics.json")
    text = " ".join(text_of(page).split())
    for name in states:
        assert name in text
    assert "9 runs, 6 of them finished" in text
    assert "damaged: elbo: input should be a valid number" in text
    assert "alert" not in text  # nothing of a damaged run is shown


def test_a_commit_with_changes_is_marked_as_such(page: Path) -> None:
    assert "01234567-dirty" in text_of(page)


def test_a_run_that_another_process_is_at_work_on_is_running(tmp_path: Path) -> None:
    pruning_run(tmp_path / "ours")
    (tmp_path / "ours" / "metrics.json").unlink()
    hold = "import sys, pathlib, common.locks as l; f = l.lock(pathlib.Path(sys.argv[1])); print(); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "ours")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has the lock
        assert [folder.state for folder in find(tmp_path)] == ["running"]
        process.communicate()
    assert [folder.state for folder in find(tmp_path)] == ["interrupted"]


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


def test_what_a_network_at_chance_saves_is_marked(tmp_path: Path) -> None:
    """Its recalibrated accuracy and dense first layer are told too, of the run that has them."""
    pruning_run(tmp_path / "ours")
    gone = pruning_run(tmp_path / "gone", allocation="uniform", keep_first_layer=True, finetuned_accuracy=0.097)
    edit(gone / "metrics.json", lambda v: v.update(theoretical_speedup=16342.0, recalibrated_accuracy=0.1234))
    main(Report(tmp_path, output=tmp_path / "page.html"))
    text = " ".join(text_of(tmp_path / "page.html").split())
    assert text.count("16,342.00× (at chance)") == 2  # the arm's row, and the run's
    assert "3.19× (at chance)" not in text
    assert "12.34 % 9.70 %" in text
    assert "uniform, first layer dense" in text


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


def test_long_tables_and_lists_of_runs_are_folded(tmp_path: Path) -> None:
    for seed in range(13):
        pruning_run(tmp_path / f"run{seed:02}", figures=(), seed=seed)
    main(Report(tmp_path, output=tmp_path / "page.html"))
    source = (tmp_path / "page.html").read_text()
    assert "<details><summary>Table of 13 rows</summary>" in source  # every run
    assert "<details><summary>single runs: 13 runs</summary>" in source
    assert "<details><summary>settings of 13 runs</summary>" in source
    for setting, count in (("label_smoothing", 1), ("run_name", 1)):  # the shared once, those that differ by run
        assert source.count(f"{setting}<") == count


def test_the_stand_in_is_told_plainly(page: Path) -> None:
    text = " ".join(text_of(page).split())
    assert "1 run used the embedded stand-in data, scikit-learn's digits, in place of cifar10" in text
    assert "STAND-IN pruning/on-digits" in text


def test_the_page_needs_nothing_else(page: Path) -> None:
    source = page.read_text()
    assert source.count('<img src="data:image/webp;base64,') == source.count("<img") > 10
    assert not re.search(r'(src|href)="(?!data:image/webp;base64,|#)', source)
    assert "@import" not in source
    assert "layers: the figure cannot be read" in source
    names = re.findall(r'id="([^"]+)"', source)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', source)) <= set(names)


def test_markdown_has_its_figures_beside_it(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.command(main, Report, [str(results), "--format", "md", "--output", str(tmp_path / "appendix.md")])
    assert capsys.readouterr().out == f"{tmp_path / 'appendix.md'}\n"
    text = (tmp_path / "appendix.md").read_text()
    figures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(figures) > 10
    assert all((tmp_path / figure).is_file() for figure in figures)
    assert len(figures) == len(set(figures))
    assert "| stacked − none | +484 [−859, +1828] |" in text
    assert "\n## Pruning\n" in text
    links = set(re.findall(r"\]\(#(.*?)\)", text))
    assert {"run-vae-fc16-", "run-rl-none-", "study-vae-claims-"} <= {re.sub(r"\w{8}$", "", link) for link in links}
    assert links <= set(re.findall(r'<a id="(.*?)"></a>', text))


def test_a_learned_prior_and_what_else_is_new_stand_in_the_models_row(tmp_path: Path) -> None:
    changes = {
        "prior": "vamp",
        "objective": "iwae",
        "importance_samples": 8,
        "conditional": True,
        "pseudo_inputs": None,
    }
    run = vae_run(tmp_path / "learned", **changes)
    edit(run / "metrics.json", lambda metrics: metrics.update(prior_mean=None, prior_std=None, pseudo_inputs=300))
    main(Report(tmp_path, output=tmp_path / "page.html"))
    text = " ".join(text_of(tmp_path / "page.html").split())
    assert "fc, conditional, IWAE (K = 8) VampPrior (300 pseudo-inputs) 16" in text


def test_the_details_of_a_lone_run_are_open(tmp_path: Path) -> None:
    for count in (1, 2):
        rl_run(tmp_path / "results" / f"arm{count}")
        main(Report(tmp_path / "results", output=tmp_path / "page.html"))
        html = (tmp_path / "page.html").read_text()
        runs = re.findall(r'<details id="run-arm[^>]*>', html)
        assert len(runs) == count
        assert all(run.endswith(" open>") == (count == 1) for run in runs)
        assert "<details><summary>settings</summary>" in html


def test_arms_that_find_no_colour_are_named(tmp_path: Path) -> None:
    for number in range(10):
        rl_run(tmp_path / f"arm{number}", returns=[700.0, 700.0])  # equal: nothing to resample
    main(Report(tmp_path, format="md"))
    assert "no more than 8 can be told apart in one figure: arm8, arm9." in (tmp_path / "report.md").read_text()


def test_accuracy_against_sparsity_is_paired_by_seed(tmp_path: Path) -> None:
    """Two seeds: the dense control, and an arm that loses 1 and 2 points to it."""
    arms = {"dense": ("uniform", 1.0, (0.88, 0.90), 0.7), "lamp": ("lamp", 0.05, (0.87, 0.88), 0.7)}
    arms |= {"slower": ("lamp", 0.05, (0.1, 0.1), 0.9), "twice": ("lamp", 0.05, (0.1, 0.1), 0.7)}
    arms["other"] = ("lamp", 0.05, (0.2, 0.2), 0.7)  # another recipe: no curve of these
    arms |= {"at-once": ("lamp", 0.05, (0.80, 0.85), 0.7), "back": ("lamp", 0.05, (0.88, 0.88), 0.7)}
    arms |= {"taught": ("lamp", 0.05, (0.885, 0.895), 0.7), "dense-taught": ("uniform", 1.0, (0.89, 0.91), 0.7)}
    for name, (allocation, kept, accuracies, fraction) in arms.items():
        for seed, accuracy in enumerate(accuracies):
            changed = {"allocation": allocation, "seed": seed, "run_name": name, "finetuned_accuracy": accuracy}
            changed["schedule"] = "one-shot" if name == "at-once" else "gradual"
            changed |= {"regrow": 0.5} if name == "back" else {}  # runs of before know no such setting
            changed |= {"distillation": 0.9, "temperature": 2.0} if "taught" in name else {}
            changed |= {"gradual_fraction": fraction, "weight_decay": 0.0 if name == "other" else 5e-4}
            pruning_run(tmp_path / "pruning" / f"{name}-{seed}", figures=(), conv_weights_kept=kept, **changed)
    shutil.copytree(tmp_path / "pruning" / "lamp-0", tmp_path / "sweep" / "lamp-0")  # another study: other networks
    shutil.copytree(tmp_path / "pruning" / "dense-1", tmp_path / "sweep" / "dense-1")
    for config in (tmp_path / "sweep").rglob("config.yaml"):
        config.write_text(config.read_text().replace("label_smoothing: 0.2", "label_smoothing: 0.3"))
    main(Report(tmp_path, format="md"))
    text = (tmp_path / "report.md").read_text()
    own, other = text.split("### Accuracy against sparsity: sweep")
    assert "dense control, trained as long: 89.00 [76.29, 101.71] % (2 seeds)" in own
    assert "grey: the mean of 2 dense controls and of 2 dense controls with distillation 0.9 (T 2)" in own
    assert "fine-tuning, label_smoothing 0.3, on cpu; dense control, trained as long: 90.00 % (1 seed)" in other
    assert "fine-tuning, label_smoothing 0.2, on cpu; dense control" in own
    assert "| lamp | one-shot | 95.0 % | 2 | 82.50 [50.73, 114.27] | −6.50 [−25.56, +12.56] |" in text
    assert "| lamp | gradual | 95.0 % | 2 | 87.50 [81.15, 93.85] | −1.50 [−7.85, +4.85] |" in text
    assert "| lamp | gradual (fraction 0.9) | 95.0 % | 2 | 10.00 | −79.00 [−91.71, −66.29] |  |" in text
    assert "| 20.00 |" not in text
    assert "| lamp | gradual, regrow 0.5 | 95.0 % | 2 | 88.00 | −1.00 [−13.71, +11.71] |  |" in text
    assert (
        "| lamp | gradual, distillation 0.9 (T 2) | 95.0 % | 2 | 89.00 [82.65, 95.35] "
        "| +0.00 [−6.35, +6.35] | −1.00 [−7.35, +5.35] |"
    ) in text
    assert "trained as long, distillation 0.9 (T 2): 90.00 [77.29, 102.71] % (2 seeds)" in text
    assert "the same arm and seed: pruning/twice-0, pruning/twice-1." in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["results", "--output", "results"], "--output results: a folder"),
        (["results", "--format", "pdf"], "--format"),
    ],
)
def test_bad_input(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(SystemExit) as stop:
        cli.command(main, Report, arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_a_folder_without_runs_is_a_page_without_runs(tmp_path: Path) -> None:
    main(Report(tmp_path))
    assert "No runs here yet" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", ""),
        ("metrics.json", "[]"),
        ("metrics.json", "null"),
        ("metrics.json", '{"dataset": 7, "dense_accuracy": 1}'),
        ("config.yaml", "a: ["),
        ("config.yaml", "words"),
        ("config.yaml", "allocation: [lamp]\nseed: x"),
        ("config.yaml", "icm: {}\narch: {}\nmodels: 3"),
    ],
)
def test_whatever_the_damage_there_is_a_page(
    results: Path, tmp_path: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pruning/sparse98", "rl/none", "vae/fc16"):
        shutil.copytree(results / name, tmp_path / "r" / name, ignore=shutil.ignore_patterns("*.png"))
        (tmp_path / "r" / name / file).write_text(content)
    main(Report(tmp_path / "r"))
    assert "0 of them finished" in (tmp_path / "r" / "report.html").read_text()
    assert capsys.readouterr().err.count(": damaged: ") == 3


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("pruning/sparse98", "compression_ratio", float("nan")),
        ("pruning/reference", "sparse_bytes", 0),
        ("pruning/reference", "dense_bytes", 10**400),
        ("pruning/sparse98", "dataset", ["a", "list"]),
        ("pruning/reference", "dense_accuracy", 1.2),
        ("vae/fc16", "coverage", -0.1),
        ("rl/stacked", "eval_returns", ["a", "b", "c", "d", "e"]),
        ("rl/stacked", "eval_return_interval", ["1", "2"]),
        ("rl/stacked", "curiosity_parameters", "many"),
        ("vae/claims", "models", {}),
        ("vae/fc16", "elbo", float("inf")),
        ("vae/fc16", "seconds", float("nan")),
    ],
)
def test_a_figure_that_cannot_be_is_told_and_the_rest_is_shown(
    results: Path, tmp_path: Path, name: str, figure: str, value: Any
) -> None:
    copied = {"vae/fc16": "vae/fc16", "pruning/on-digits": "pruning/reference"}
    copied |= {"rl/none": "rl/none", "rl/stacked": "rl/stacked"} if name.startswith("rl/") else {}
    for source, place in (copied | ({} if name in copied.values() else {name: name})).items():
        shutil.copytree(results / source, tmp_path / place, ignore=shutil.ignore_patterns("*.png"))
    edit(tmp_path / name / "metrics.json", lambda metrics: metrics.update({figure: value}))
    for form in ("html", "md"):
        main(Report(tmp_path, format=form))  # type: ignore[arg-type]
    text = " ".join(text_of(tmp_path / "report.html").split())
    assert f"Not shown, because damaged (see Every run): {name}." in text
    assert ("dense test accuracy" in text) == (name != "pruning/reference")
    assert ("models: 1 run" in text) == (name != "vae/fc16")
    assert ("runs: 1 run" in text) == name.startswith("rl/")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_listed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "vae" / "fc16", tmp_path / "r" / "closed")
    (tmp_path / "r" / "closed").chmod(0)
    main(Report(tmp_path / "r", output=tmp_path / "report.html"))
    (tmp_path / "r" / "closed").chmod(0o755)
    assert "closed" in text_of(tmp_path / "report.html")


def test_metrics_are_checked_before_they_are_used(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Wanted:
        loss: float

    for name, metrics in (("good", {"loss": 1}), ("bad", {"loss": None})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0")
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    folders = find(tmp_path)
    assert [(folder.name, wanted.loss) for folder, wanted in usable(folders, Wanted)] == [("good", 1)]
    assert {folder.name: folder.finished for folder in folders} == {"good": True, "bad": False}


def test_tables_come_back_from_markdown() -> None:
    tables = [Table(["a", "b"], [["1|2", "**3**"]], "First."), Table(["c"], [["4"], ["5"]])]
    back = parse("\n".join(table.markdown() for table in tables))
    assert [(t.head, t.rows) for t in back] == [(t.head, t.rows) for t in tables]
    assert back[0].caption == "First."


def test_durations() -> None:
    assert [duration(s) for s in (4.4, 75, 7325.0, None)] == ["4 s", "1 min 15 s", "2 h 02 min", ""]
