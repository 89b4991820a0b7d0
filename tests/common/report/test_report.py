"""The report page: what it lists, its tables and figures, and that it needs nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import cli
from common.report.command import Report, duration, main
from common.report.folders import find
from common.tables import Table, parse
from tests.common.report.conftest import edit, text_of
from tests.common.report.runs import pruning_run, rl_run, vae_run


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


def test_tables_come_back_from_markdown() -> None:
    tables = [Table(["a", "b"], [["1|2", "**3**"]], "First."), Table(["c"], [["4"], ["5"]])]
    back = parse("\n".join(table.markdown() for table in tables))
    assert [(t.head, t.rows) for t in back] == [(t.head, t.rows) for t in tables]
    assert back[0].caption == "First."


def test_durations() -> None:
    assert [duration(s) for s in (4.4, 75, 7325.0, None)] == ["4 s", "1 min 15 s", "2 h 02 min", ""]
