"""Fair comparisons: the best dense networks of any recipe, and accuracy at equal multiply-adds, by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from common.report.folders import Folder
from pruning.arms import Best, arms_of, losses_of
from pruning.fair import at_equal_multiply_adds, best_dense
from pruning.records import Metrics, Run


def run(study: str, seed: int, accuracy: float, kept: float = 1.0, **changes: Any) -> Run:
    name = f"{study}/{changes.get('allocation', 'uniform')}-{kept}-{seed}"
    settings = {"label_smoothing": changes.pop("label_smoothing", 0.1)}
    metrics: dict[str, Any] = {
        **{"allocation": "uniform", "schedule": "gradual", "seed": seed, "epochs": 10, "finetune_epochs": 4},
        **{"dense_accuracy": 0.88 + seed / 1000, "pruned_accuracy": 0.5, "finetuned_accuracy": accuracy},
        **{"conv_weights_kept": kept, "compression_ratio": 1.0, "theoretical_speedup": 1.0, "dense_bytes": 36_900_000},
        **{"sparse_bytes": 400_000, "dataset": {"name": "cifar10", "source": "x"}, "device": "cpu"},
    }
    return Run(Folder(Path(name), name, settings, {}, "finished"), Metrics(**{**metrics, **changes}))


def test_the_best_dense_networks_are_those_of_any_recipe_on_the_same_images() -> None:
    ours = [run("a", seed, 0.87 + seed / 1000) for seed in (0, 1)]
    better = [run("b", seed, 0.89 + seed / 1000, label_smoothing=0.2) for seed in (0, 1)]
    once = run("c", 0, 0.95)  # a single one, beside recipes of several seeds
    elsewhere = [run("d", seed, 0.99, dataset={"name": "digits", "source": "y"}) for seed in (0, 1)]
    best = best_dense(ours[0], [*ours, *better, once, *elsewhere])
    assert best == Best("b, trained as long", (0.89, 0.891))
    assert best_dense(ours[0], ours) == Best("a, as first trained", (0.88, 0.881))  # better than when trained on
    one = run("a", 1, 0.87, dense_accuracy=0.88)  # both seeds started from one network, which counts once
    assert best_dense(ours[0], [ours[0], one]) == Best("a, trained as long", (0.87, 0.87))


def test_arms_are_compared_with_the_best_dense_networks_unpaired() -> None:
    group = [run("a", seed, 0.87 + seed / 1000) for seed in (0, 1)]
    group += [run("a", seed, 0.85 + seed / 1000, 0.05, unpruned_sparse_bytes=16_000_000) for seed in (0, 1)]
    arms, controls, _ = arms_of(group)
    table = losses_of(arms, controls, "Recipe", Best("b, trained as long", (0.89, 0.892)))
    (row,) = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert row["against dense [points]"] == "−2.00"  # the same in both seeds
    # means 85.05 and 89.10, variances 0.005 and 0.02 of two values each: Welch's t with 1.47 degrees of freedom
    assert row["against the best dense networks [points]"].startswith("−4.05 [−4.7")
    assert "best dense networks of any recipe: b, trained as long, 89.10 [" in table.caption
    assert row["file (pruning's own part)"] == "0.40 MB (40.0×)"
    same = losses_of(arms, controls, "Recipe", Best("a, trained as long", (0.871, 0.87)))
    assert "best dense" not in "".join([*same.head, same.caption])


def test_equal_multiply_adds_by_hand() -> None:
    """Linear in the logarithm between two sparsities of a seed, and nothing beyond them."""

    def rule(name: str, seed: int, points: dict[float, float]) -> list[Run]:
        return [
            run("a", seed, accuracy, kept=1 / (1 + saved), allocation=name, theoretical_speedup=saved)
            for saved, accuracy in points.items()
        ]

    group = rule("global", 0, {4.0: 0.90, 16.0: 0.80}) + rule("uniform", 0, {2.0: 0.9, 40.0: 0.7})
    group += rule("global", 1, {4.0: 0.90, 6.0: 0.80})
    (table,) = at_equal_multiply_adds(group)
    cells = {row[0]: dict(zip(table.head[2:], row[2:], strict=True)) for row in table.rows}
    at_five = [90 - 10 * math.log(5 / 4) / math.log(16 / 4), 90 - 10 * math.log(5 / 4) / math.log(6 / 4)]
    assert cells["global"]["5× fewer"].startswith(f"{sum(at_five) / 2:.2f} [")
    assert cells["global"]["5× fewer"].endswith("(2)")
    assert cells["global"]["10× fewer"] == f"{90 - 10 * math.log(10 / 4) / math.log(16 / 4):.2f} (1)"
    assert cells["global"]["2× fewer"] == cells["global"]["20× fewer"] == ""
    assert cells["uniform"]["2× fewer"] == "90.00 (1)"
    assert at_equal_multiply_adds(rule("global", 0, {4.0: 0.9, 16.0: 0.8})) == []


@pytest.mark.parametrize(
    ("changes", "allocation", "schedule"),
    [
        ({}, "uniform", "gradual"),
        ({"criterion": "taylor"}, "uniform, Taylor scores", "gradual"),
        ({"criterion": "random", "allocation": "given"}, "given, random weights", "gradual"),
        (
            {"schedule": "iterative", "rounds": 5, "rewind": "weights"},
            "uniform",
            "iterative (5 rounds, weights rewound)",
        ),
        ({"schedule": "iterative", "rounds": 1}, "uniform", "iterative (1 round)"),
    ],
)
def test_arms_are_named_by_criterion_and_rounds(changes: dict[str, Any], allocation: str, schedule: str) -> None:
    named = run("a", 0, 0.8, 0.1, **changes)
    assert (named.allocation, named.schedule) == (allocation, schedule)


def test_the_file_of_a_run_tells_coding_from_pruning() -> None:
    assert run("a", 0, 0.8).metrics.file == "0.40 MB of 36.90 MB, 92.2×"
    told = run("a", 0, 0.8, unpruned_sparse_bytes=16_000_000).metrics.file
    assert told == "pruning 40.0× (16.00 MB unpruned); with coding 92.2× (0.40 MB of 36.90 MB)"
