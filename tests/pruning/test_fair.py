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
    some = {"name": "cifar10", "source": "x", "images": 6000, "of": 60_000}
    elsewhere += [run("e", seed, 0.99, dataset=some) for seed in (0, 1)]
    sparse = [run("f", seed, 0.99, dense_sparsity=0.77) for seed in (0, 1)]  # was given sparse
    best = best_dense(ours[0], [*ours, *better, once, *elsewhere, *sparse])
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


def test_a_control_that_was_trained_for_other_epochs_is_none() -> None:
    """Five rounds of 4 epochs beside a control of 4, and beside one of 20."""
    rounds = {"schedule": "iterative", "rounds": 5}
    pruned, once = run("a", 0, 0.85, 0.05, **rounds), run("a", 0, 0.84, 0.05)
    short, long = run("a", 0, 0.87), run("a", 0, 0.88, **rounds)
    assert [of.epochs_after for of in (pruned, once, short, long)] == [20, 4, 4, 20]
    for controls, expected in (([short], ["−3.00", ""]), ([short, long], ["−3.00", "−3.00"])):
        arms, found, _ = arms_of([pruned, once, *controls])
        table = losses_of(arms, found, "Recipe")
        assert [row[5] for row in table.rows] == expected
        assert "dense control, trained for 4 epochs more: 87.00 %" in table.caption
        assert ("trained for 20 epochs more: 88.00 %" in table.caption) == (long in controls)


def test_what_a_run_did_after_the_dense_training_is_told() -> None:
    assert run("a", 0, 0.8).training == "10 epochs, then 4 of fine-tuning"
    rounds = {"schedule": "iterative", "rounds": 3}
    assert run("a", 0, 0.8, **rounds).training == "10 epochs, then 3 rounds of 4 of fine-tuning"
    rewound = run("a", 0, 0.8, **rounds, rewind="weights")
    assert rewound.training == "10 epochs, then 3 rounds of the last 95 % of them again"
    assert rewound.epochs_after == 9.5  # the weights of each round are those of the early step again
    assert run("a", 0, 0.8, **rounds, rewind="rate").epochs_after == 28.5


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
        (
            {"schedule": "iterative", "rounds": 3, "rewind": "rate", "rewind_fraction": 0.0},
            "uniform",
            "iterative (3 rounds, rate rewound to 0)",
        ),
        ({"recalibrate": True, "criterion": "own"}, "uniform, own", "gradual, recalibrated"),
    ],
)
def test_arms_are_named_by_criterion_and_rounds(changes: dict[str, Any], allocation: str, schedule: str) -> None:
    named = run("a", 0, 0.8, 0.1, **changes)
    assert (named.allocation, named.schedule) == (allocation, schedule)


def test_the_file_of_a_run_tells_coding_from_pruning() -> None:
    assert run("a", 0, 0.8).metrics.file == "0.40 MB of 36.90 MB, 92.2×"
    told = run("a", 0, 0.8, unpruned_sparse_bytes=16_000_000).metrics.file
    assert told == "pruning 40.0× (16.00 MB unpruned); with coding 92.2× (0.40 MB of 36.90 MB)"
