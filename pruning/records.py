"""A finished run of the pruning experiment as the report page reads it: its figures, its arm and its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from common.report.folders import Folder, Fraction
from common.tables import counted
from pruning import measures
from pruning.settings import Settings

CRITERIA = {"taylor": "Taylor scores", "random": "random weights"}  # that are not the usual one
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

DEFAULTS = dataclasses.asdict(Settings())


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
    rewind_fraction: float = Settings.rewind_fraction
    recalibrate: bool = False
    dense_sparsity: float = 0.0  # of the network that it began with; older runs do not say
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
        by = (
            "" if metrics.criterion == Settings.criterion else f", {CRITERIA.get(metrics.criterion, metrics.criterion)}"
        )
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
            back += "" if metrics.rewind_fraction == Settings.rewind_fraction else f" to {metrics.rewind_fraction:g}"
            when += f" ({counted(metrics.rounds, 'round')}{back})"
        again = "recalibrated" if metrics.recalibrate else ""
        parts = [when, again, f"regrow {metrics.regrow:g}" if metrics.regrow else "", self.taught]
        return ", ".join(filter(None, parts))

    @property
    def epochs_after(self) -> float:
        """How many epochs its weights were trained for after the dense training, or from the early step on.

        Rounds that rewind the weights begin with the same ones each time: only the last round counts.
        """
        metrics = self.metrics
        rounds = metrics.rounds if metrics.schedule == "iterative" and metrics.rewind != "weights" else 1
        repeated = round(metrics.epochs * (1 - metrics.rewind_fraction), 2)
        return rounds * (metrics.finetune_epochs if metrics.rewind == "none" else repeated)

    @property
    def training(self) -> str:
        """How long it trained."""
        metrics = self.metrics
        rounds = f"{counted(metrics.rounds, 'round')} of " if metrics.schedule == "iterative" else ""
        if metrics.rewind != "none":
            again = f"{rounds}the last {percent(1 - metrics.rewind_fraction, 0)} of them again"
        else:
            again = f"{rounds}{metrics.finetune_epochs} of fine-tuning"
        return f"{counted(metrics.epochs, 'epoch')}, then {again}"

    @property
    def study(self) -> str:
        """Where it lies: a sweep keeps its runs in a folder of their own, those of a seed from one dense network."""
        return str(Path(self.folder.name).parent)

    @property
    def recipe(self) -> tuple[str, ...]:
        """What runs share that compare: the study, the data and the training."""
        return (self.study, *self.alike)

    @property
    def alike(self) -> tuple[str, ...]:
        """The data and the training: what the runs of one command share, wherever they lie.

        A setting that is newer than the run counts with its default, which is what was done before it.
        """
        settings = {**DEFAULTS, **self.folder.settings}
        shared = {name: value for name, value in settings.items() if name not in MAY_DIFFER and value is not None}
        return tuple(f"{name} {value}" for name, value in sorted({**shared, **self.images}.items()))

    @property
    def images(self) -> dict[str, Any]:
        """The images that it was trained and judged on; `of` says of how many, where it took a share of them."""
        dataset = self.metrics.dataset
        return {name: dataset.get(name) for name in ("name", "source", *(["images", "of"] if "of" in dataset else []))}


def percent(fraction: float, decimals: int = 2) -> str:
    """Returns a fraction in per cent."""
    return f"{100 * fraction:.{decimals}f} %"
