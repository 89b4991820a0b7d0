"""Comparisons that do not flatter: against the best dense network of any recipe, and at equal multiply-adds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from common import stats
from common.tables import Table, counted
from pruning import figures
from pruning.arms import Best, accuracy_text, arms_of, control_names
from pruning.records import Run

SAVED = (2, 5, 10, 20, 50)  # how many times fewer multiply-adds


def best_dense(run: Run, runs: Sequence[Run]) -> Best | None:
    """Returns the dense networks of the highest mean test accuracy on the images of `run`, of whatever recipe.

    Those that a study trained and those that it then trained on with nothing pruned both count. A single network
    counts only where nothing was trained with several seeds. A network that was given sparse is not a dense
    one. The choice is made on the test images, so it errs against the pruned networks.
    """
    recipes: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for other in runs:
        if other.images == run.images and not other.metrics.dense_sparsity:
            recipes[other.recipe].append(other)
    found = []
    for group in recipes.values():
        trained = {r.metrics.dense_accuracy for r in group}  # seeds may start from one network: it counts once
        found.append(Best(f"{group[0].study}, as first trained", tuple(sorted(trained))))
        arms, controls, _ = arms_of(group)
        for control, name in control_names(arms, controls).items():
            accuracies = tuple(r.metrics.finetuned_accuracy for r in controls[control].values())
            found.append(Best(f"{group[0].study}, {name}", accuracies))
    several = [best for best in found if len(best.accuracies) > 1] or found
    return max(several, key=lambda best: sum(best.accuracies) / len(best.accuracies), default=None)


def at_equal_multiply_adds(group: Sequence[Run]) -> list[Table]:
    """Returns the table of every rule's accuracy where it saves the same multiply-adds, if two rules can be compared.

    Between two sparsities the accuracy is linear in the logarithm of what is saved, seed by seed. Nothing is told
    beyond the sparsities that a seed has.
    """
    points: dict[figures.Rule, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for (rule, _), arm in arms_of(group)[0].items():
        for seed, run in arm.items():
            points[rule][seed].append((math.log(run.metrics.theoretical_speedup), run.metrics.finetuned_accuracy))
    rows, seeds = [], 0
    for rule, curves in points.items():
        cells = []
        for saved in SAVED:
            found = [accuracy for curve in curves.values() if (accuracy := _at(math.log(saved), curve)) is not None]
            cells.append(f"{accuracy_text(stats.mean(found))} ({len(found)})" if found else "")
            seeds = max(seeds, len(found))
        if any(cells):
            rows.append([*rule, *cells])
    if len(rows) < 2:
        return []
    head = ["allocation", "schedule", *(f"{saved}× fewer" for saved in SAVED)]
    caption = (
        "Accuracy [%] at equal multiply-adds, linear in their logarithm between two measured sparsities of a seed; in "
        f"brackets the number of seeds, at most {counted(seeds, 'seed')}; nothing beyond what was measured."
    )
    return [Table(head, rows, caption)]


def _at(place: float, curve: Sequence[tuple[float, float]]) -> float | None:
    places, accuracies = zip(*sorted(curve), strict=True)
    return float(np.interp(place, places, accuracies)) if places[0] <= place <= places[-1] else None
