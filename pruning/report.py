"""The pruning section of the report page: the original report's figures, accuracy against sparsity, and every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.report.document import (
    Block,
    Claim,
    Details,
    Heading,
    Section,
    captioned,
    link,
    runs_details,
    stand_in_warning,
)
from common.report.folders import Folder, usable
from common.report.pictures import FigureFile
from common.stats import FEWEST, Interval
from common.tables import Table, counted
from pruning import starts
from pruning.arms import Arm, accuracy_against_sparsity, comparable, mean, peculiar
from pruning.fair import at_equal_multiply_adds, best_dense
from pruning.records import Metrics, Run, percent
from pruning.savings import accuracy_against_savings, measured_text
from pruning.starts import Trained

CAPTIONS = {
    "sensitivity": "Held-out accuracy against the sparsity of one layer alone; a ring marks the choice if measured.",
    "weights": "Histogram of every layer's weights, dense and after pruning and fine-tuning (those kept).",
    "outcome": "Accuracy before pruning, after it (recalibrated: with batch-norm statistics recomputed) and after "
    "fine-tuning; bytes on disk; measured time.",
    "layers": "Weights and multiply-adds of every layer, all and what is left.",
    "training": "Loss and accuracy of the training and the fine-tuning, epoch by epoch; distilled, the fine-tuning's "
    "loss is the labels' and the teacher's together.",
}
CLAIM = "Pruning: accuracy 87 → 41 → 88 % (dense, pruned, fine-tuned) with 23 % of the weights"
SAME_PROTOCOL = "Our control that comes nearest: the same sparsities, trained with"
STAGES = {"dense_accuracy": "dense", "pruned_accuracy": "pruned", "finetuned_accuracy": "fine-tuned"}
COMMAND = "python pruning/run.py"
KEPT_METRICS = ("latency", "latency_quartiles", "sparse_files")  # records that a compact folder of runs keeps


def section(folders: Sequence[Folder]) -> Section:
    """Returns the claim of the original report, what we measured, the comparison of allocations, and every run."""
    ours = [folder for folder in folders if "allocation" in folder.settings]
    runs = [Run(folder, metrics) for folder, metrics in usable(ours, Metrics)]
    blocks: list[Block] = [
        "The original report trained VGG11-BN on CIFAR-10 to 87 %. It measured how sensitive each convolution is to "
        "pruning. It then removed the smallest weights of each convolution (fractions .1 .7 .5 .7 .7 .7 .8 .9). This "
        "left 23 % of the weights and 41 % accuracy. Fine-tuning brought it to 88 % (Han et al. 2015)."
    ]
    claims = [Claim.not_measured(CLAIM, COMMAND)]
    shown: list[FigureFile] = []
    if (main := most_alike(runs)) is not None:
        seeds = same_but_for_the_seed(main, runs)
        claims = [claim(seeds, main)]
        figures = main.folder.figures
        shown = [figures[name] for name in CAPTIONS if name in figures]
        blocks += [
            Heading("The original report and our measurement", claims[0].evidence),
            said_and_measured(main),
            *stand_in_warning(main.folder),
            *(captioned(figure, CAPTIONS) for figure in shown),
        ]
    for arms in starts.alike(runs):
        blocks += starts.stages(arms)
        claims += nearest(arms)
    groups = comparable(runs)
    for group in groups:
        blocks += accuracy_against_sparsity(group, peculiar(group, groups), best_dense(group[0], runs))
        blocks += at_equal_multiply_adds(group)
    blocks += accuracy_against_savings(runs)
    if runs:
        studies = dict.fromkeys(group[0].study for group in groups)
        alone = [run for run in runs if run.study not in studies]
        blocks.append("# All pruning runs")
        blocks += [listed("single runs", alone, shown)] if alone else []
        blocks += [listed(study, [run for run in runs if run.study == study], shown) for study in studies]
    else:
        blocks.append(f"No finished run yet: `{COMMAND}`.")
    return Section("Pruning", blocks, claims)


def listed(title: str, runs: Sequence[Run], shown: Sequence[FigureFile]) -> Details:
    """Returns the folded list of runs: a table and the details of each, without the figures in `shown`."""
    return runs_details(title, Table(HEAD, [row(run) for run in runs]), [run.folder for run in runs], CAPTIONS, shown)


def most_alike(runs: Sequence[Run]) -> Run | None:
    """Returns the run that is most like the original report's: its sparsities, pruned at once, with figures, long.

    `allocation` is the arm's name: filters, random weights and the like are not the report's sparsities.
    """
    reference = [run for run in runs if run.allocation == "reference"]
    real = [run for run in reference if not run.folder.stand_in_for] or reference

    def likeness(run: Run) -> tuple[bool, bool, int, int]:
        return run.schedule == "one-shot", bool(run.folder.figures), run.metrics.epochs, -run.metrics.seed

    return max(real, key=likeness, default=None)


def same_but_for_the_seed(main: Run, runs: Sequence[Run]) -> Arm:
    """Returns `main` and the runs that differ from it in nothing but the seed, by seed; they may be of a study."""
    arm = {main.metrics.seed: main}
    for run in runs:
        given = run.folder.settings.get("dense_weights") is not None  # its settings do not tell how that was trained
        alike = (run.schedule, run.alike) == (main.schedule, main.alike)
        if run.allocation == "reference" and alike and (not given or run.study == main.study):
            arm.setdefault(run.metrics.seed, run)
    return arm


def claim(seeds: Arm, main: Run) -> Claim:
    """Returns the original report's claim beside the means over these seeds."""
    means = {figure: mean(seeds, figure, 100) for figure in STAGES}
    kept = mean(seeds, "conv_weights_kept").estimate
    measured = " → ".join(f"{of.estimate:.2f}" for of in means.values()) + f" % with {percent(kept)} of the weights"
    images = main.metrics.dataset
    if "of" in images:  # --max-images: a quick look is no repetition of the report
        measured += f", on {images.get('images', 0):,} of {images['of']:,} images"
    several = len(seeds) > 1
    return Claim(
        CLAIM,
        measured,
        ", ".join(f"[{of.low:.2f}, {of.high:.2f}]" for of in means.values()) if several else "none: one seed",
        len(seeds),
        verdict(seeds),
        link("pruning-claim", main.folder.name),
        bool(main.folder.stand_in_for),
    )


def nearest(trainings: Sequence[Trained]) -> list[Claim]:
    """Returns what the arm came to that is nearest to the report's three accuracies, beside the report's claim.

    Of the arms with the report's sparsities, named by what differs in their training; nothing where there is none.
    """
    alike = [of for of in trainings if next(iter(of.seeds.values())).allocation == "reference"]
    if not alike:
        return []

    def distance(of: Trained) -> float:
        return sum(abs(mean(of.seeds, stage).estimate - said) for stage, said in starts.SAID.items())

    trained = min(alike, key=distance)
    first = next(iter(trained.seeds.values()))
    of_arm = claim(trained.seeds, first)
    return [
        dataclasses.replace(of_arm, claim=f"{SAME_PROTOCOL} {trained.settings}", evidence=link("starts", first.study)),
    ]


def verdict(seeds: Arm) -> str:
    """Returns which accuracies are those of the original report to a point, and which lie above or below."""
    words: dict[str, list[str]] = {}
    for figure, name in STAGES.items():
        words.setdefault(place(mean(seeds, figure, 100), 100 * starts.SAID[figure]), []).append(name)
    few = f"open: {counted(len(seeds), 'seed')}, too few for a conclusion. " if len(seeds) < FEWEST else ""
    against = "Against the report: " if few else "against the report: "
    return few + against + "; ".join(f"{' and '.join(names)} {word}" for word, names in words.items())


def place(accuracy: Interval, said: float) -> str:
    """Returns where an accuracy lies beside the one `said`, both in per cent, as far as its interval shows it."""
    low, high = (accuracy.low, accuracy.high) if accuracy.values >= FEWEST else (accuracy.estimate, accuracy.estimate)
    if said - 1 <= low and high <= said + 1:
        return "within 1 point"
    if low > said:
        return f"{counted(round(accuracy.estimate - said), 'point')} above"
    return f"{counted(round(said - accuracy.estimate), 'point')} below" if high < said else "open"


def said_and_measured(run: Run) -> Table:
    """Returns the original report's figures beside those of one run."""
    metrics = run.metrics
    recalibrated = recalibrated_text(metrics)
    rows = [
        ["dense test accuracy", "87 %", percent(metrics.dense_accuracy)],
        ["right after pruning", "41 %", percent(metrics.pruned_accuracy)],
        *([["recalibrated, nothing trained", "", recalibrated]] if recalibrated else []),
        ["after fine-tuning", "88 %", percent(metrics.finetuned_accuracy)],
        ["convolution weights kept", "23 %", percent(metrics.conv_weights_kept)],
        ["compression, all parameters", "", metrics.saved(metrics.compression_ratio)],
        ["multiply-adds saved", "", metrics.saved(metrics.theoretical_speedup)],
        ["file, half precision", "", metrics.file],
    ]
    caption = f"Run {run.folder.name}, seed {metrics.seed}: {run.training}."
    return Table(["", "the original report", "we measured"], rows, caption)


def recalibrated_text(metrics: Metrics) -> str:
    """Returns the accuracy with recomputed batch-norm statistics in per cent; nothing where it was not measured."""
    accuracy = metrics.recalibrated_accuracy
    return percent(accuracy) if accuracy is not None else ""


HEAD = [
    "run",
    "allocation",
    "sparsity",
    "schedule",
    "seed",
    "dense",
    "pruned",
    "recalibrated",
    "fine-tuned",
    "compression",
    "multiply-adds saved",
    "measured time saved",
]


def row(run: Run) -> list[str]:
    """Returns a run's line of the table of all runs."""
    metrics = run.metrics
    return [
        run.folder.label,
        run.allocation,
        run.sparsity_text,
        run.schedule,
        str(run.metrics.seed),
        percent(metrics.dense_accuracy),
        percent(metrics.pruned_accuracy),
        recalibrated_text(metrics),
        percent(metrics.finetuned_accuracy),
        metrics.saved(metrics.compression_ratio),
        metrics.saved(metrics.theoretical_speedup),
        measured_text(metrics),
    ]
