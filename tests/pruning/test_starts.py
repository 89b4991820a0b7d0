"""Networks trained otherwise and pruned alike: which runs stand side by side, and what each stage costs."""

from pathlib import Path

import pytest

from common.report.document import Picture
from common.report.folders import find
from common.tables import Table
from pruning.report import CLAIM, SAME_PROTOCOL, section
from tests.common.report.conftest import edit
from tests.common.report.runs import pruning_run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three seeds from either start: PyTorch's falls by 15 points, the identity by 4, and both come back."""
    accuracies = {"default": (0.88, 0.73, 0.87, 0.885), "identity": (0.89, 0.85, 0.88, 0.895)}
    for start, of_start in accuracies.items():
        for seed in range(3):
            dense, pruned, recalibrated, tuned = (value + seed / 1000 for value in of_start)
            run = pruning_run(
                *(tmp_path / "study" / f"{start}-seed{seed}", ()),
                **{"initialisation": start, "seed": seed, "dense_accuracy": dense, "pruned_accuracy": pruned},
                finetuned_accuracy=tuned,
            )
            edit(run / "metrics.json", lambda of, value=recalibrated: of.update(recalibrated_accuracy=value))  # type: ignore[misc]
    return tmp_path


def test_each_stage_and_what_it_costs(study: Path) -> None:
    said = section(find(study))
    tables = {table.head[-1]: table.rows for table in said.blocks if isinstance(table, Table)}
    assert [row[:3] for row in tables["fine-tuned [%]"]] == [
        ["default", "initialisation default", "3"],
        ["identity", "initialisation identity", "3"],
    ]
    assert [cell.split()[0] for cell in tables["fine-tuned [%]"][0][3:]] == ["88.10", "73.10", "87.10", "88.60"]
    costs = [[cell.split(" [")[0] for cell in row] for row in tables["fine-tuned − dense"]]
    assert costs == [
        ["default", "3", "−15.00", "+14.00", "+0.50"],
        ["identity", "3", "−4.00", "+3.00", "+0.50"],
    ]
    (figure,) = (of.source for of in said.blocks if isinstance(of, Picture) and of.title.startswith("Test accuracy at"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [  # type: ignore[union-attr]
        "the original report",
        "default",
        "identity",
    ]
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "the original report")  # type: ignore[union-attr]
    assert line.get_xydata().tolist() == [[0, 87], [1, 41], [3, 88]]  # type: ignore[union-attr]


def test_a_given_dense_network_is_named_by_its_run(study: Path) -> None:
    for config in (study / "study").glob("identity-seed*/config.yaml"):
        given = config.parent.name.replace("identity", "default") + "/checkpoints/dense.safetensors"
        text = config.read_text().replace("dense_weights: null", f"dense_weights: {given}")
        config.write_text(text.replace("learning_rate: 0.2", "learning_rate: 0.3"))
    heads = {table.head[-1]: table.rows for table in section(find(study)).blocks if isinstance(table, Table)}
    (of_default, of_given) = heads["fine-tuned [%]"]
    assert of_default[:3] == ["default", "own dense network", "3"]
    assert of_given[:3] == ["identity", "dense_weights default", "3"]


def test_runs_without_a_name_in_common_are_named_by_their_settings(study: Path) -> None:
    for number, run in enumerate(sorted((study / "study").glob("*/"))):
        run.rename(run.parent / f"2026-01-0{number + 1}-12-00-00")
    heads = {table.head[-1]: table.rows for table in section(find(study)).blocks if isinstance(table, Table)}
    assert {row[0] for row in heads["fine-tuned [%]"]} == {"initialisation default", "initialisation identity"}


def test_the_start_that_comes_nearest_is_a_row_of_the_answers(study: Path) -> None:
    first, control = section(find(study)).claims
    assert first.claim == CLAIM
    assert (control.claim, control.seeds) == (f"{SAME_PROTOCOL} initialisation default", 3)
    assert control.measured == "88.10 → 73.10 → 88.60 % with 22.97 % of the weights"
    assert "pruned 32 points above" in control.verdict


def test_the_main_result_takes_its_other_seeds_from_a_study(study: Path) -> None:
    for run, seed in (("main", 0), ("again/main-seed1", 1), ("again/main-seed2", 2)):
        pruning_run(
            study / run, ("outcome",) if run == "main" else (), epochs=20, seed=seed, pruned_accuracy=0.5 + seed / 10
        )
    pruning_run(
        study / "again" / "given-seed3", (), epochs=20, seed=3, dense_weights="dense.safetensors"
    )  # of another training
    first, *_ = section(find(study)).claims
    assert (first.seeds, first.measured.split(" → ")[1]) == (3, "60.00")


def test_runs_of_one_training_or_pruned_otherwise_do_not_stand_there(study: Path) -> None:
    for config in study.rglob("default*/config.yaml"):
        config.write_text(config.read_text().replace("allocation: reference", "allocation: lamp"))
    assert [claim.claim for claim in section(find(study)).claims] == [CLAIM]
