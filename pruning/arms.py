"""Runs of a pruning study as arms and seeds: accuracy against sparsity, and each arm's loss against its control."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

from common import comparison, data, stats
from common.report.document import Block, Heading, Picture, link
from common.stats import Interval
from common.tables import BOLD, Table, counted, difference
from pruning import figures, measures
from pruning.records import TEST_IMAGES, Metrics, Run

CURVES = "Test accuracy against the share of {unit} pruned, with intervals where there are several seeds"
ACCURACY = "finetuned_accuracy"


@dataclasses.dataclass(frozen=True)
class Best:
    """The best dense networks of any recipe: where they are from, and the test accuracy of each."""

    name: str
    accuracies: tuple[float, ...]


Arm = dict[int, Run]  # seed → run
Control = tuple[str, float]  # how it was taught, and for how many epochs after the dense training
Point = tuple[figures.Rule, float]  # rule and sparsity


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the groups of runs of one study with the same data and recipe, those with something to compare."""
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.recipe].append(run)
    return [
        group for group in groups.values() if len({(run.allocation, run.schedule, run.sparsity) for run in group}) > 1
    ]


def peculiar(group: Sequence[Run], groups: Sequence[Sequence[Run]]) -> str:
    """Returns the settings of a group's training that not all groups share, but for the epochs, which stand beside."""
    shared = set.intersection(*(set(other[0].recipe) for other in groups))
    beside = {"epochs", "finetune_epochs", "name", "source"}
    return ", ".join(s for s in group[0].recipe[1:] if s not in shared and s.split()[0] not in beside)


def accuracy_against_sparsity(group: Sequence[Run], settings: str, best: Best | None = None) -> list[Block]:
    """Returns the curve of every allocation and schedule, and what each loses against the dense controls.

    `settings` are those of its training that the caption must name. Arms that were fine-tuned with distillation are
    also compared with the control that was distilled in the same way, if there is one. `best` are the best dense
    networks of any recipe: where they are not the group's own control, all arms are compared with them too.
    """
    arms, controls, repeated = arms_of(group)
    study = group[0].study
    first = group[0].metrics
    devices = " and ".join(sorted({run.metrics.device for run in group}))
    trained = " or ".join(dict.fromkeys(run.training for run in group))
    recipe = ", ".join(filter(None, [trained, settings, f"on {devices}"]))
    left_out = f"Left out, because another run has the same arm and seed: {', '.join(repeated)}."
    title = f"Accuracy against sparsity{f': {study}' if study != '.' else ''}"
    return [
        Heading(title, link("sparsity", str(group[0].recipe))),
        curves_of(arms, controls, f"{data.caption(first.dataset)}, {trained}", unit_of(first)),
        losses_of(arms, controls, recipe, best),
        *([left_out] if repeated else []),
    ]


def arms_of(group: Sequence[Run]) -> tuple[dict[Point, Arm], dict[Control, Arm], list[str]]:
    """Returns the arms by rule and sparsity, the dense controls by how they were taught, the plain one first, and the
    names of the runs that are left out because another has their arm and seed."""
    arms: dict[Point, Arm] = defaultdict(dict)
    controls: dict[Control, Arm] = defaultdict(dict)
    repeated = []
    for run in group:
        rule = run.allocation, run.schedule
        arm = arms[rule, run.sparsity] if run.sparsity else controls[run.taught, run.epochs_after]
        if arm.setdefault(run.metrics.seed, run) is not run:
            repeated.append(run.folder.label)
    return dict(sorted(arms.items())), dict(sorted(controls.items())), repeated


def unit_of(metrics: Metrics) -> str:
    """Returns what a run's sparsity is a share of."""
    return "filters" if metrics.granularity == "filter" else "convolution weights"


def curves_of(arms: Mapping[Point, Arm], controls: Mapping[Control, Arm], caption: str, unit: str) -> Picture:
    """Returns the figure of every rule's accuracy over sparsity, a share of `unit`, and of the controls'."""
    curves: dict[figures.Rule, list[tuple[float, Interval]]] = defaultdict(list)
    for (rule, sparsity), arm in arms.items():
        curves[rule].append((sparsity, mean(arm, ACCURACY)))
    levels = {name: mean(controls[control], ACCURACY) for control, name in control_names(arms, controls).items()}
    figure = figures.accuracy_against_sparsity(curves, levels, caption, unit)
    many = " and of ".join(
        counted(len(arm), "dense control") + (f" with {taught}" if taught else "")
        for (taught, _), arm in controls.items()
    )
    text = CURVES.format(unit=unit) + (f"; grey: the mean of {many}" if controls else "")
    text += f"{'; right, the top of the same picture' if len(figure.axes) > 1 else ''}."
    fewest = min(map(len, arms.values()), default=0)
    if any(len(arm) > fewest for arm in controls.values()):
        text += " Some arms have fewer seeds than the control: the table compares each with the control of its seeds."
    return Picture(text, figure)


def losses_of(
    arms: Mapping[Point, Arm], controls: Mapping[Control, Arm], caption: str, best: Best | None = None
) -> Table:
    """Returns the table of every arm: its accuracy, what it loses against the controls, what it saves.

    The controls of an arm are those that were trained for as many epochs; where there are none, it has no such loss.
    """
    distilled = any(taught for taught, _ in controls)
    own = [sorted(run.metrics.finetuned_accuracy for run in arm.values()) for (t, _), arm in controls.items() if not t]
    other = best if best is not None and sorted(best.accuracies) not in own else None
    rows = []
    for (rule, _), arm in arms.items():
        one = next(iter(arm.values()))
        taught, epochs, images = one.taught, one.epochs_after, one.metrics.dataset.get("test", TEST_IMAGES)
        useless = measures.at_chance(mean(arm, ACCURACY).estimate, images)
        rows.append(
            [
                *rule,
                one.sparsity_text,
                str(len(arm)),
                accuracy_text(mean(arm, ACCURACY)),
                _against(arm, controls.get(("", epochs), {})),
                *([_against(arm, controls.get((taught, epochs), {})) if taught else ""] if distilled else []),
                *([_against_best(arm, other)] if other else []),
                measures.ratio(mean(arm, "compression_ratio").estimate, useless, 1),
                measures.ratio(mean(arm, "theoretical_speedup").estimate, useless),
                f"{mean(arm, 'sparse_bytes').estimate / 1e6:.2f} MB{_own_part(arm, useless)}",
            ]
        )
    head = ["allocation", "schedule", "sparsity", "seeds", "accuracy [%]", "against dense [points]"]
    head += ["against dense, distilled alike [points]"] if distilled else []
    head += ["against the best dense networks [points]"] if other else []
    for control, name in control_names(arms, controls).items():
        accuracy = accuracy_text(mean(controls[control], ACCURACY))
        caption += f"; dense control, {name}: {accuracy} % ({counted(len(controls[control]), 'seed')})"
    if other:
        found = accuracy_text(stats.mean(other.accuracies))
        caption += (
            f"; best dense networks of any recipe: {other.name}, {found} % ({counted(len(other.accuracies), 'value')}"
        )
        caption += ", compared unpaired: Welch's t)"
    head += ["compression", "multiply-adds", "file (pruning's own part)"]
    return Table(head, rows, f"{caption}. Differences seed by seed; {BOLD}.")


def control_names(arms: Mapping[Point, Arm], controls: Mapping[Control, Arm]) -> dict[Control, str]:
    """Returns what the dense controls are called, after how they were taught, and how long if not all trained alike."""
    lengths = {run.epochs_after for arm in arms.values() for run in arm.values()} | {epochs for _, epochs in controls}
    long = "trained as long" if len(lengths) == 1 else "trained for {:g} epochs more"
    return {(taught, epochs): ", ".join(filter(None, [long.format(epochs), taught])) for taught, epochs in controls}


def accuracy_text(accuracy: Interval) -> str:
    """Returns an accuracy with its interval in per cent."""
    return Interval(100 * accuracy.estimate, 100 * accuracy.low, 100 * accuracy.high).text(2)


def mean(arm: Mapping[int, Run], figure: str, scale: float = 1.0) -> Interval:
    """Returns the mean of a figure over an arm's seeds with its interval."""
    result = comparison.mean({seed: vars(run.metrics) for seed, run in arm.items()}, figure, scale)
    assert result is not None  # `usable` has checked that every figure is a finite number
    return result


def _against(arm: Mapping[int, Run], control: Mapping[int, Run]) -> str:
    """Returns the mean difference in points over the seeds that both have, with its interval, if there are any."""
    gain = comparison.paired(_per_cent(arm), _per_cent(control), ACCURACY)
    return difference(gain, 2) if gain else ""


def _per_cent(arm: Mapping[int, Run]) -> comparison.Arm:
    return {seed: {ACCURACY: 100 * run.metrics.finetuned_accuracy} for seed, run in arm.items()}


def _against_best(arm: Mapping[int, Run], best: Best) -> str:
    """Returns the difference of the means in points, unpaired, with Welch's interval."""
    ours = [100 * run.metrics.finetuned_accuracy for run in arm.values()]
    return difference(stats.welch_difference(ours, [100 * accuracy for accuracy in best.accuracies]), 2)


def _own_part(arm: Mapping[int, Run], useless: bool) -> str:
    """Returns how many times smaller than the unpruned network's, in the same format, the file is, where measured."""
    ratios = [
        run.metrics.unpruned_sparse_bytes / run.metrics.sparse_bytes
        for run in arm.values()
        if run.metrics.unpruned_sparse_bytes is not None
    ]
    return f" ({measures.ratio(sum(ratios) / len(ratios), useless, 1)})" if len(ratios) == len(arm) else ""
