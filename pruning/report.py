"""The pruning section of the report: the reference study's figures, and accuracy against sparsity by allocation."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import data, stats
from common.report.document import Block, Details, Picture, Section, captioned, run_details, stand_in_warning
from common.report.folders import Folder, usable
from common.tables import BOLD, Table, counted, difference
from pruning import figures
from pruning.settings import Settings

CAPTIONS = {
    "sensitivity": "Held-out accuracy against the sparsity of one layer alone; a ring marks the choice if measured.",
    "weights": "Histogram of every layer's weights, dense and after pruning and fine-tuning (those kept).",
    "outcome": "Accuracy before pruning, after it and after fine-tuning; bytes on disk; measured time.",
    "layers": "Weights and multiply-adds of every layer, all and what is left.",
    "training": "Loss and accuracy of the training and the fine-tuning, epoch by epoch; distilled, the fine-tuning's "
    "loss is the labels' and the teacher's together.",
}


CURVES = "Test accuracy against the share of convolution weights pruned, with intervals where there are several seeds"

# Settings that may differ between runs that compare: the curve and the point, the seed, how it chose, where it ran.
MAY_DIFFER = {
    *("allocation", "schedule", "gradual_fraction", "regrow", "distillation", "temperature", "sparsity", "seed"),
    *("accuracy_budget", "scan_images", "retrain_per_layer", "dense_weights"),
    *("dataset", "data_dir", "results_dir", "run_name", "device", "threads", "latency_seconds"),
}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What the section needs of a run's settings and metrics."""

    allocation: str
    schedule: str
    seed: int
    epochs: int
    finetune_epochs: int
    dense_accuracy: float
    pruned_accuracy: float
    finetuned_accuracy: float
    conv_weights_kept: float
    compression_ratio: float
    theoretical_speedup: float
    dense_bytes: int
    sparse_bytes: int
    dataset: dict[str, Any]
    device: str
    gradual_fraction: float = Settings.gradual_fraction
    regrow: float = 0.0
    distillation: float = 0.0
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run."""

    folder: Folder
    metrics: Metrics

    @property
    def sparsity(self) -> float:
        """The overall fraction of convolution weights that is gone, to a tenth of a per cent."""
        return round(1 - self.metrics.conv_weights_kept, 3)

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
        images = {name: self.metrics.dataset.get(name) for name in ("name", "source")}
        return (self.study, *(f"{name} {value}" for name, value in sorted({**shared, **images}.items())))


BySeed = dict[int, Run]  # the runs of an arm


def section(folders: Sequence[Folder]) -> Section:
    """Returns what the reference study did, what we measured, the comparison of allocations, and every run."""
    ours = [folder for folder in folders if "allocation" in folder.settings]
    runs = [Run(folder, metrics) for folder, metrics in usable(ours, Metrics)]
    blocks: list[Block] = [
        "The reference study trained VGG11-BN on CIFAR-10 to 87 %, scanned how sensitive each convolution is to "
        "pruning, pruned by magnitude at .1 .7 .5 .7 .7 .7 .8 .9, which left 23 % of the weights and 41 % accuracy, "
        "and fine-tuned to 88 % (Han et al. 2015)."
    ]
    shown = []
    reference = [run for run in runs if run.metrics.allocation == "reference" and not run.folder.stand_in_for] or [
        run for run in runs if run.metrics.allocation == "reference"
    ]
    if reference:
        main = max(reference, key=likeness)
        shown = [main.folder.path / "figures" / f"{name}.png" for name in CAPTIONS]
        blocks += [
            "# What the study said, and what we measured",
            said_and_measured(main),
            *stand_in_warning(main.folder),
        ]
        blocks += [captioned(path, CAPTIONS) for path in shown if path.exists()]
    groups = comparable(runs)
    for group in groups:
        blocks += accuracy_against_sparsity(group, peculiar(group, groups))
    if runs:
        studies = dict.fromkeys(group[0].study for group in groups)
        blocks += ["# All pruning runs", *listed([run for run in runs if run.study not in studies], shown)]
        for study in studies:
            of_it = [run for run in runs if run.study == study]
            blocks.append(Details(f"{study}: {counted(len(of_it), 'run')}", listed(of_it, shown)))
    else:
        blocks.append("No finished run yet: `python pruning/run.py`.")
    return Section("Pruning", blocks)


def listed(runs: Sequence[Run], shown: Sequence[Path]) -> list[Block]:
    """Returns a table of runs and the details of each, without the figures in `shown`."""
    table = [Table(HEAD, [row(run) for run in runs])] if runs else []
    return [*table, *(run_details(run.folder, CAPTIONS, shown) for run in runs)]


def likeness(run: Run) -> tuple[bool, bool, int, int]:
    """Returns what decides which run at its sparsities stands beside the study: pruned as there, with figures, long."""
    return run.schedule == "one-shot", bool(run.folder.figures), run.metrics.epochs, -run.metrics.seed


def said_and_measured(run: Run) -> Table:
    """Returns the reference study's figures beside those of one run."""
    metrics = run.metrics
    ratio = metrics.dense_bytes / metrics.sparse_bytes
    rows = [
        ["dense test accuracy", "87 %", percent(metrics.dense_accuracy)],
        ["right after pruning", "41 %", percent(metrics.pruned_accuracy)],
        ["after fine-tuning", "88 %", percent(metrics.finetuned_accuracy)],
        ["convolution weights kept", "23 %", percent(metrics.conv_weights_kept)],
        ["compression, all parameters", "", f"{metrics.compression_ratio:.2f}×"],
        ["multiply-adds saved", "", f"{metrics.theoretical_speedup:.2f}×"],
        ["file, half precision", "", f"{metrics.sparse_bytes / 1e6:.2f} MB ({ratio:.1f}× smaller)"],
    ]
    caption = f"Run {run.folder.name}, seed {metrics.seed}: {training(metrics)}."
    return Table(["", "the reference study said", "we measured"], rows, caption)


def training(metrics: Metrics) -> str:
    """Returns how long a run trained."""
    return f"{counted(metrics.epochs, 'epoch')}, then {metrics.finetune_epochs} of fine-tuning"


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the groups of runs of one study with the same data and recipe, those with something to compare."""
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.recipe].append(run)
    return [
        group
        for group in groups.values()
        if len({(run.metrics.allocation, run.schedule, run.sparsity) for run in group}) > 1
    ]


def peculiar(group: Sequence[Run], groups: Sequence[Sequence[Run]]) -> str:
    """Returns the settings of a group's training that not all groups share, but for the epochs, which stand beside."""
    shared = set.intersection(*(set(other[0].recipe) for other in groups))
    beside = {"epochs", "finetune_epochs", "name", "source"}
    return ", ".join(s for s in group[0].recipe[1:] if s not in shared and s.split()[0] not in beside)


def accuracy_against_sparsity(group: Sequence[Run], settings: str) -> list[Block]:
    """Returns the curve of every allocation and schedule, and what each loses against the dense control.

    `settings` are those of its training that need telling.
    Arms that were distilled are compared with the control that was distilled alike as well, where there is one.
    """
    arms: dict[tuple[figures.Rule, float], BySeed] = defaultdict(dict)
    controls: dict[str, BySeed] = defaultdict(dict)
    again = []
    for run in group:
        rule = run.metrics.allocation, run.schedule
        arm = arms[rule, run.sparsity] if run.sparsity else controls[run.taught]
        if arm.setdefault(run.metrics.seed, run) is not run:
            again.append(run.folder.label)
    arms, controls = dict(sorted(arms.items())), dict(sorted(controls.items()))  # the plain control first
    repeats = [f"Left out, because an arm and seed are there twice: {', '.join(again)}."] if again else []
    where = f": {group[0].study}" if group[0].study != "." else ""
    first = group[0].metrics
    devices = " and ".join(sorted({run.metrics.device for run in group}))
    recipe = ", ".join(filter(None, [training(first), settings, f"on {devices}"]))
    return [
        f"# Accuracy against sparsity{where}",
        curves_of(arms, controls, f"{data.caption(first.dataset)}, {training(first)}"),
        losses_of(arms, controls, recipe),
        *repeats,
    ]


def curves_of(
    arms: Mapping[tuple[figures.Rule, float], BySeed], controls: Mapping[str, BySeed], caption: str
) -> Picture:
    """Returns the figure of every rule's accuracy over sparsity, and of the controls'."""
    curves: dict[figures.Rule, list[tuple[float, stats.Interval]]] = defaultdict(list)
    for (rule, sparsity), by_seed in arms.items():
        curves[rule].append((sparsity, _accuracy(by_seed)))
    levels = {control_name(taught): _accuracy(by_seed) for taught, by_seed in controls.items()}
    figure = figures.accuracy_against_sparsity(curves, levels, caption)
    many = " and of ".join(
        counted(len(by_seed), "dense control") + (f" with {taught}" if taught else "")
        for taught, by_seed in controls.items()
    )
    text = CURVES + (f"; grey: the mean of {many}" if controls else "")
    text += f"{'; right, the top of the same picture' if len(figure.axes) > 1 else ''}."
    fewest = min(map(len, arms.values()), default=0)
    if any(len(by_seed) > fewest for by_seed in controls.values()):
        text += " Arms of fewer seeds than the control: the table compares them with the control of their own seeds."
    return Picture(text, figure)


def losses_of(arms: Mapping[tuple[figures.Rule, float], BySeed], controls: Mapping[str, BySeed], caption: str) -> Table:
    """Returns the table of every arm: its accuracy, what it loses against the controls, what it saves."""
    distilled = bool(controls.keys() - {""})
    rows = []
    for (rule, sparsity), by_seed in arms.items():
        taught = next(iter(by_seed.values())).taught
        rows.append(
            [
                *rule,
                percent(sparsity, 1),
                str(len(by_seed)),
                accuracy_text(_accuracy(by_seed)),
                _against(by_seed, controls.get("", {})),
                *([_against(by_seed, controls.get(taught, {})) if taught else ""] if distilled else []),
                f"{_mean(by_seed, 'compression_ratio'):.1f}×",
                f"{_mean(by_seed, 'theoretical_speedup'):.2f}×",
                f"{_mean(by_seed, 'sparse_bytes') / 1e6:.2f} MB",
            ]
        )
    head = ["allocation", "schedule", "sparsity", "seeds", "accuracy [%]", "against dense [points]"]
    head += ["against dense, distilled alike [points]"] if distilled else []
    for taught, by_seed in controls.items():
        seeds = counted(len(by_seed), "seed")
        caption += f"; dense control, {control_name(taught)}: {accuracy_text(_accuracy(by_seed))} % ({seeds})"
    return Table([*head, "compression", "multiply-adds", "file"], rows, f"{caption}. Differences seed by seed; {BOLD}.")


def control_name(taught: str) -> str:
    """Returns what a dense control is called, after how it was taught."""
    return ", ".join(filter(None, ["trained as long", taught]))


def _accuracy(runs: Mapping[int, Run]) -> stats.Interval:
    return stats.mean([run.metrics.finetuned_accuracy for run in runs.values()])


def _against(runs: Mapping[int, Run], control: Mapping[int, Run]) -> str:
    """Returns the mean difference in points over the seeds that both have, with its interval; nothing where none is."""
    both = [seed for seed in runs if seed in control]
    ours, theirs = ([100 * arm[seed].metrics.finetuned_accuracy for seed in both] for arm in (runs, control))
    return difference(stats.paired_difference(ours, theirs), 2) if both else ""


def _mean(runs: Mapping[int, Run], figure: str) -> float:
    return statistics.fmean(float(getattr(run.metrics, figure)) for run in runs.values())


def percent(fraction: float, decimals: int = 2) -> str:
    """Returns a fraction in per cent."""
    return f"{100 * fraction:.{decimals}f} %"


def accuracy_text(accuracy: stats.Interval) -> str:
    """Returns an accuracy with its interval in per cent."""
    return stats.Interval(100 * accuracy.estimate, 100 * accuracy.low, 100 * accuracy.high).text(2)


HEAD = [
    "run",
    "allocation",
    "sparsity",
    "schedule",
    "seed",
    "dense",
    "pruned",
    "fine-tuned",
    "compression",
    "multiply-adds saved",
]


def row(run: Run) -> list[str]:
    """Returns a run's line of the table of all runs."""
    metrics = run.metrics
    return [
        run.folder.label,
        run.metrics.allocation,
        percent(run.sparsity, 1),
        run.schedule,
        str(run.metrics.seed),
        percent(metrics.dense_accuracy),
        percent(metrics.pruned_accuracy),
        percent(metrics.finetuned_accuracy),
        f"{metrics.compression_ratio:.2f}×",
        f"{metrics.theoretical_speedup:.2f}×",
    ]
