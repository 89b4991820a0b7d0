"""Runs of a pruning study as arms and seeds: accuracy against sparsity, and each arm's loss against its control."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from common import comparison, data, stats
from common.report.document import Block, Heading, Picture, link
from common.report.folders import Folder, Fraction
from common.stats import Interval
from common.tables import BOLD, Table, counted, difference
from pruning import figures, measures
from pruning.settings import Settings

CRITERIA = {"taylor": "Taylor scores", "random": "random weights"}  # that are not the usual one
CURVES = "Test accuracy against the share of {unit} pruned, with intervals where there are several seeds"
ACCURACY = "finetuned_accuracy"
TEST_IMAGES = 10_000  # of CIFAR-10, for records that do not say how many

# Settings that may differ between runs that compare: the curve and the point, the seed, how it chose, where it ran.
MAY_DIFFER = {
    *("criterion", "sparsities_from", "rounds", "rewind", "rewind_fraction"),
    *("allocation", "schedule", "gradual_fraction", "regrow", "distillation", "temperature", "sparsity", "seed"),
    *("keep_first_layer", "filter_importance", "onnx"),
    *("accuracy_budget", "scan_images", "recalibrate", "retrain_per_layer", "dense_weights"),
    *("dataset", "data_dir", "results_dir", "run_name", "device", "threads", "latency_seconds"),
    *("extended_from", "keep_state", "track"),
}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of a run's settings and metrics."""

    allocation: str
    schedule: str
    seed: int
    epochs: int
    finetune_epochs: int
    dense_accuracy: Fraction
    pruned_accuracy: Fraction
    finetuned_accuracy: Fraction
    conv_weights_kept: Fraction
    compression_ratio: Annotated[float, Ge(0)]
    theoretical_speedup: Annotated[float, Ge(0)]
    dense_bytes: Annotated[int, Ge(0)]
    sparse_bytes: Annotated[int, Ge(0)]
    dataset: dict[str, Any]
    device: str
    gradual_fraction: float = Settings.gradual_fraction
    regrow: float = 0.0
    distillation: float = 0.0
    temperature: float = 0.0
    keep_first_layer: bool = False
    criterion: str = Settings.criterion
    rounds: int = Settings.rounds
    rewind: str = Settings.rewind
    unpruned_sparse_bytes: int | None = None  # older runs have not measured it
    recalibrated_accuracy: Fraction | None = None  # older runs have not measured it
    granularity: str = "weight"
    filter_importance: str = "l2"
    filter_sparsity: float | None = None  # of runs that prune filters
    latency: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    latency_quartiles: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)

    def saved(self, ratio: float, decimals: int = 2) -> str:
        """Returns how many times smaller or faster the network is, marked if the network is at chance."""
        useless = measures.at_chance(self.finetuned_accuracy, self.dataset.get("test", TEST_IMAGES))
        return measures.ratio(ratio, useless, decimals)

    @property
    def file(self) -> str:
        """The bytes of the half-precision file, and what pruning saves of those that it would take unpruned."""
        size = f"{self.sparse_bytes / 1e6:.2f} MB of {self.dense_bytes / 1e6:.2f} MB"
        both = self.saved(self.dense_bytes / self.sparse_bytes, 1)
        if self.unpruned_sparse_bytes is None:
            return f"{size}, {both}"
        own = self.saved(self.unpruned_sparse_bytes / self.sparse_bytes, 1)
        return f"pruning {own} ({self.unpruned_sparse_bytes / 1e6:.2f} MB unpruned); with coding {both} ({size})"


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: Folder
    metrics: Metrics

    @property
    def sparsity(self) -> float:
        """The overall fraction of convolution weights, or of filters, that is gone, to a tenth of a per cent."""
        filters = self.metrics.filter_sparsity
        return round(1 - self.metrics.conv_weights_kept if filters is None else filters, 3)

    @property
    def sparsity_text(self) -> str:
        """The sparsity in per cent, and of what if not of the weights."""
        return percent(self.sparsity, 1) + ("" if self.metrics.filter_sparsity is None else " of filters")

    @property
    def allocation(self) -> str:
        """The rule that chose how much of each layer goes, what of and by what, and whether the first stayed dense."""
        metrics = self.metrics
        filters = f", filters by {metrics.filter_importance}" if metrics.granularity == "filter" else ""
        by = "" if metrics.criterion == Settings.criterion else f", {CRITERIA[metrics.criterion]}"
        return metrics.allocation + filters + by + (", first layer dense" if metrics.keep_first_layer else "")

    @property
    def taught(self) -> str:
        """How much the dense network taught it in fine-tuning; nothing where it did not."""
        metrics = self.metrics
        return f"distillation {metrics.distillation:g} (T {metrics.temperature:g})" if metrics.distillation else ""

    @property
    def schedule(self) -> str:
        """When it pruned, over what fraction of the fine-tuning if unusual, what came back, what it learnt from."""
        metrics = self.metrics
        usual = metrics.schedule != "gradual" or metrics.gradual_fraction == Settings.gradual_fraction
        when = metrics.schedule + ("" if usual else f" (fraction {metrics.gradual_fraction:g})")
        if metrics.schedule == "iterative":
            back = "" if metrics.rewind == "none" else f", {metrics.rewind} rewound"
            when += f" ({counted(metrics.rounds, 'round')}{back})"
        parts = [when, f"regrow {metrics.regrow:g}" if metrics.regrow else "", self.taught]
        return ", ".join(filter(None, parts))

    @property
    def study(self) -> str:
        """Where it lies: a sweep keeps its runs in a folder of their own, those of a seed from one dense network."""
        return str(Path(self.folder.name).parent)

    @property
    def recipe(self) -> tuple[str, ...]:
        """What runs share that compare: the study, the data and the training."""
        shared = {name: value for name, value in self.folder.settings.items() if name not in MAY_DIFFER}
        return (self.study, *(f"{name} {value}" for name, value in sorted({**shared, **self.images}.items())))

    @property
    def images(self) -> dict[str, Any]:
        """The images that it was trained and judged on."""
        return {name: self.metrics.dataset.get(name) for name in ("name", "source")}


@dataclasses.dataclass(frozen=True)
class Best:
    """The best dense networks of any recipe: where they are from, and the test accuracy of each."""

    name: str
    accuracies: tuple[float, ...]


Arm = dict[int, Run]  # seed → run
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
    recipe = ", ".join(filter(None, [training(first), settings, f"on {devices}"]))
    left_out = f"Left out, because another run has the same arm and seed: {', '.join(repeated)}."
    title = f"Accuracy against sparsity{f': {study}' if study != '.' else ''}"
    return [
        Heading(title, link("sparsity", str(group[0].recipe))),
        curves_of(arms, controls, f"{data.caption(first.dataset)}, {training(first)}", unit_of(first)),
        losses_of(arms, controls, recipe, best),
        *([left_out] if repeated else []),
    ]


def arms_of(group: Sequence[Run]) -> tuple[dict[Point, Arm], dict[str, Arm], list[str]]:
    """Returns the arms by rule and sparsity, the dense controls by how they were taught, the plain one first, and the
    names of the runs that are left out because another has their arm and seed."""
    arms: dict[Point, Arm] = defaultdict(dict)
    controls: dict[str, Arm] = defaultdict(dict)
    repeated = []
    for run in group:
        rule = run.allocation, run.schedule
        arm = arms[rule, run.sparsity] if run.sparsity else controls[run.taught]
        if arm.setdefault(run.metrics.seed, run) is not run:
            repeated.append(run.folder.label)
    return dict(sorted(arms.items())), dict(sorted(controls.items())), repeated


def unit_of(metrics: Metrics) -> str:
    """Returns what a run's sparsity is a share of."""
    return "filters" if metrics.granularity == "filter" else "convolution weights"


def curves_of(arms: Mapping[Point, Arm], controls: Mapping[str, Arm], caption: str, unit: str) -> Picture:
    """Returns the figure of every rule's accuracy over sparsity, a share of `unit`, and of the controls'."""
    curves: dict[figures.Rule, list[tuple[float, Interval]]] = defaultdict(list)
    for (rule, sparsity), arm in arms.items():
        curves[rule].append((sparsity, mean(arm, ACCURACY)))
    levels = {control_name(taught): mean(arm, ACCURACY) for taught, arm in controls.items()}
    figure = figures.accuracy_against_sparsity(curves, levels, caption, unit)
    many = " and of ".join(
        counted(len(arm), "dense control") + (f" with {taught}" if taught else "") for taught, arm in controls.items()
    )
    text = CURVES.format(unit=unit) + (f"; grey: the mean of {many}" if controls else "")
    text += f"{'; right, the top of the same picture' if len(figure.axes) > 1 else ''}."
    fewest = min(map(len, arms.values()), default=0)
    if any(len(arm) > fewest for arm in controls.values()):
        text += " Some arms have fewer seeds than the control: the table compares each with the control of its seeds."
    return Picture(text, figure)


def losses_of(arms: Mapping[Point, Arm], controls: Mapping[str, Arm], caption: str, best: Best | None = None) -> Table:
    """Returns the table of every arm: its accuracy, what it loses against the controls, what it saves."""
    distilled = bool(controls.keys() - {""})
    own = sorted(run.metrics.finetuned_accuracy for run in controls.get("", {}).values())
    other = best if best is not None and sorted(best.accuracies) != own else None
    rows = []
    for (rule, _), arm in arms.items():
        one = next(iter(arm.values()))
        taught, images = one.taught, one.metrics.dataset.get("test", TEST_IMAGES)
        useless = measures.at_chance(mean(arm, ACCURACY).estimate, images)
        rows.append(
            [
                *rule,
                one.sparsity_text,
                str(len(arm)),
                accuracy_text(mean(arm, ACCURACY)),
                _against(arm, controls.get("", {})),
                *([_against(arm, controls.get(taught, {})) if taught else ""] if distilled else []),
                *([_against_best(arm, other)] if other else []),
                measures.ratio(mean(arm, "compression_ratio").estimate, useless, 1),
                measures.ratio(mean(arm, "theoretical_speedup").estimate, useless),
                f"{mean(arm, 'sparse_bytes').estimate / 1e6:.2f} MB{_own_part(arm)}",
            ]
        )
    head = ["allocation", "schedule", "sparsity", "seeds", "accuracy [%]", "against dense [points]"]
    head += ["against dense, distilled alike [points]"] if distilled else []
    head += ["against the best dense networks [points]"] if other else []
    for taught, arm in controls.items():
        accuracy = accuracy_text(mean(arm, ACCURACY))
        caption += f"; dense control, {control_name(taught)}: {accuracy} % ({counted(len(arm), 'seed')})"
    if other:
        found = accuracy_text(stats.mean(other.accuracies))
        caption += (
            f"; best dense networks of any recipe: {other.name}, {found} % ({counted(len(other.accuracies), 'value')}"
        )
        caption += ", compared unpaired: Welch's t)"
    head += ["compression", "multiply-adds", "file (pruning's own part)"]
    return Table(head, rows, f"{caption}. Differences seed by seed; {BOLD}.")


def control_name(taught: str) -> str:
    """Returns what a dense control is called, after how it was taught."""
    return ", ".join(filter(None, ["trained as long", taught]))


def training(metrics: Metrics) -> str:
    """Returns how long a run trained."""
    return f"{counted(metrics.epochs, 'epoch')}, then {metrics.finetune_epochs} of fine-tuning"


def percent(fraction: float, decimals: int = 2) -> str:
    """Returns a fraction in per cent."""
    return f"{100 * fraction:.{decimals}f} %"


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


def _own_part(arm: Mapping[int, Run]) -> str:
    """Returns how many times smaller than the unpruned network's, in the same format, the file is, where measured."""
    ratios = [
        run.metrics.unpruned_sparse_bytes / run.metrics.sparse_bytes
        for run in arm.values()
        if run.metrics.unpruned_sparse_bytes is not None
    ]
    return f" ({sum(ratios) / len(ratios):.1f}×)" if len(ratios) == len(arm) else ""
