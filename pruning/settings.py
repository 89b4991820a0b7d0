"""Every setting of the pruning experiment; `python pruning/run.py --help` prints this file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Interval, Le, Lt

from common.cli import RunSettings
from common.errors import UsageError
from common.extending import Extension
from pruning.allocation import Allocation
from pruning.criteria import Criterion
from pruning.filters import Granularity, Importance
from pruning.vgg import Initialisation

EARLY = "rewind.safetensors"  # in a run's checkpoints: the weights of the early step that --rewind weights goes back to


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Train VGG11-BN on CIFAR-10, scan the sensitivity of each layer, prune by magnitude, fine-tune, account, save."""

    smoke: ClassVar[dict[str, Any]] = {
        "dataset": "digits",
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.02,
        "finetune_epochs": 1,
        "scan_images": 40,
    }
    extension: ClassVar[Extension | None] = Extension(
        length="finetune_epochs",
        stage="finetuned",
        may_change=("finetune_learning_rate", "finetune_warmup", "distillation", "temperature", "latency_seconds"),
        missing="the momentum starts at zero, and the order of the batches anew",
        beside=("masks.safetensors",),
    )

    dataset: Literal["auto", "cifar10", "digits"] = "auto"
    """Images to use; auto takes CIFAR-10 if it is available, otherwise scikit-learn's digits, with a warning."""
    max_images: Annotated[int, Ge(1000)] | None = None
    """Images to use at most, the same share of the training, held-out and test images; none means all of them."""

    # 1. Train
    dense_weights: Path | None = None
    """Trained network to start from: the file checkpoints/dense.safetensors of a run; none trains one.
    A state dict that torch saved (.pt, .pth) and a sparse file of this project (.sparse) are read too.
    The zeros of a network that is sparse already stay zero; --sparsity counts them."""
    initialisation: Initialisation = "identity"
    """Start of the convolutions: the identity (airbench, Jordan 2024), or default, PyTorch's own random weights.
    Which one a network starts from changes what pruning costs it: docs/pruning.md."""
    epochs: Annotated[int, Ge(1)] = 20
    """Passes over the training split for the dense network."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Images in one training step, and in the larger of the two batches whose latency is measured."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """Peak learning rate of SGD; it rises linearly from 0 to the peak, then falls linearly to 0."""
    warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.25
    """Fraction of the training after which the learning rate peaks."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.85
    """Nesterov momentum (airbench, Jordan 2024)."""
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """L2 penalty of the weights (Simonyan & Zisserman 2015)."""
    bias_rate: Annotated[float, Gt(0)] = 64.0
    """Learning rate of the biases, in multiples of the weights' rate (airbench, Jordan 2024).
    The weight decay of the biases is divided by it."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Probability that the target spreads over all classes (Szegedy et al. 2016; value from airbench)."""
    translate: Annotated[int, Interval(ge=0, le=16)] = 4
    """Training images are shifted at random by up to this many pixels; 4 is usual on CIFAR-10."""
    flip: bool = True
    """Mirror each training image in every other epoch (airbench, Jordan 2024)."""
    cutout: Annotated[int, Interval(ge=0, le=32)] = 0
    """Cover a square of so many pixels a side of each training image with the mean colour (DeVries & Taylor 2017)."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Keep an exponential moving average of the weights with this decay a step; 0 keeps the last weights."""

    # 2. Sensitivity scan
    scan_images: Annotated[int, Ge(1)] | None = None
    """Number of held-out images for the scan; none uses all of them."""
    retrain_per_layer: bool = False
    """Train a new network before each layer is scanned, as the original report did: eight more trainings."""

    recalibrate: bool = False
    """Recompute the batch-norm statistics on 5,120 training images in each network of the scan, and before fine-tuning.
    The accuracy of the pruned network with such statistics is always measured."""

    # 3. Choose
    granularity: Granularity = "weight"
    """What is pruned: single weights, which saves bytes, or whole filters, which leaves a smaller and faster network.
    With filter, every sparsity is a fraction of filters: those of the report too, the scan's, and --sparsity.
    A dropped filter takes the next layer's inputs along, so more weights go. Both fractions are reported."""
    filter_importance: Importance = "l2"
    """What ranks filters: the L2 or L1 norm of their weights (Li et al. 2017), or |γ| of the batch normalisation that
    follows (network slimming, Liu et al. 2017). All are relative to the mean of the layer, for global."""
    allocation: Allocation = "reference"
    """Rule for how much of each layer to prune.
    reference: the sparsities of the original report. scan: from the sensitivity curves. uniform: the same everywhere.
    global, lamp: one threshold for the whole network. erk: Erdős–Rényi kernel. given: those of --sparsities-from.
    random: short for --criterion random, at the reference sparsities or at --sparsity in every layer."""
    sparsities_from: Path | None = None
    """Folder of a finished run whose layers' sparsities --allocation given takes."""
    criterion: Criterion = "magnitude"
    """Which weights of a layer go: those of the smallest magnitude (Han et al. 2015), or of the smallest (g·w)².
    taylor: g is the gradient on training batches (Molchanov et al. 2019). random: the control, any weights."""
    sparsity: Annotated[float, Ge(0), Lt(1)] | None = None
    """Fraction of all convolution weights to prune; with --granularity filter, of all filters.
    none: .7703, as in the original report (.7231 of the filters); with scan, as much as --accuracy-budget allows."""
    accuracy_budget: Annotated[float, Gt(0), Le(1)] = 0.01
    """Accuracy on held-out images that pruning a single layer may cost, for --allocation scan without --sparsity."""
    keep_first_layer: bool = False
    """Prune nothing from the first layer, and so much more from the others (RigL's uniform, Evci et al. 2020).
    At high sparsity an equal share leaves the first layer a few dozen weights, which makes uniform and random weak."""

    # 4. Prune and fine-tune
    schedule: Literal["one-shot", "gradual", "iterative"] = "one-shot"
    """When to prune: all at once before the fine-tuning, or along a cubic curve during it (Zhu & Gupta 2017).
    iterative: in --rounds, each prunes the same fraction of what is left and trains again (Han et al. 2015)."""
    rounds: Annotated[int, Ge(1)] = 5
    """Rounds of the iterative schedule."""
    rewind: Literal["none", "weights", "rate"] = "none"
    """What each round of the iterative schedule goes back to. none: nothing, it fine-tunes.
    weights: the weights of an early step of the dense training, which is repeated from there (Frankle et al. 2019).
    rate: the learning rate of that step alone; its schedule is repeated from there (Renda et al. 2020)."""
    rewind_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    """The early step to rewind to, as a fraction of the dense training; 0 is its start.
    Frankle et al. 2019 use the first few per cent; their larger networks find no tickets at the start."""
    gradual_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.7
    """Fraction of the fine-tuning after which gradual pruning reaches the final sparsity."""
    gradual_every: Annotated[int, Ge(1)] = 50
    """Training steps between two prunings of the gradual schedule; fewer if that gives fewer than ten prunings."""
    regrow: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Fraction of a layer's surviving weights that each gradual pruning swaps.
    It swaps the smallest of them for the weights with the largest gradients (GraNet, Liu et al. 2021).
    The fraction decays to 0 on a cosine until the last pruning. 0 never brings a weight back."""
    distillation: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the fine-tuning loss that compares with the dense network's predictions (Hinton et al. 2015).
    The rest compares with the labels. 0 uses only the labels."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature of the distillation: both networks' logits are divided by it (4: Zagoruyko & Komodakis 2017)."""
    finetune_epochs: Annotated[int, Ge(1)] = 5
    """Passes over the training split after pruning, while pruning gradually, or in each round without rewinding.
    With --extend RUN the new total: the fine-tuning goes on under the masks that it ended with."""
    finetune_learning_rate: Annotated[float, Gt(0)] = 0.05
    """Peak learning rate of the fine-tuning; what rewinds repeats the dense training's."""
    finetune_warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Fraction of the fine-tuning after which its learning rate peaks."""

    # 5. Account
    latency_seconds: Annotated[float, Ge(0)] = 2.0
    """Seconds to measure the latency of each batch size, with at least three passes. Measure on an idle machine."""
    onnx: bool = False
    """Also write the network that is left as checkpoints/network.onnx, and compare it with torch (needs .[onnx])."""

    @property
    def ranked_by(self) -> Importance | None:
        """What ranks the filters; None where single weights are pruned, by magnitude."""
        return self.filter_importance if self.granularity == "filter" else None

    @property
    def begins(self) -> bool:
        """Whether this is a new run; one that goes on has taken over the network and the sparsities given to it."""
        return self.resume is None and self.extended_from is None

    def without_effect(self) -> list[str]:
        """Returns the options given that change nothing: beside `--dense-weights` no dense network is trained.

        They are not refused: a sweep shares them between arms that train and arms that are given a network.
        """
        if self.dense_weights is None or self.rewind != "none":  # what rewinds repeats that training
            return []
        usual = {name: getattr(Settings, name) for name in ("epochs", "learning_rate", "warmup")}
        usual |= {name: value for name, value in self.smoke.items() if name in usual and self.smoke_test}
        given = {name: getattr(self, name) for name in usual}
        return [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value != usual[name]]

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        if self.dense_weights is not None and self.begins and not self.dense_weights.is_file():
            raise UsageError(f"--dense-weights {self.dense_weights}: no such file")
        if self.dense_weights is not None and self.retrain_per_layer:
            raise UsageError(
                "--dense-weights with --retrain-per-layer: the first trains no network, the second one for each layer"
            )
        if self.dense_weights is not None and self.initialisation != Settings.initialisation:
            raise UsageError(
                f"--initialisation {self.initialisation} with --dense-weights: a given network is not initialised"
            )
        if self.allocation == "reference" and self.sparsity is not None:
            others = ", ".join(name for name in get_args(Allocation) if name != "reference")
            raise UsageError(
                f"--sparsity {self.sparsity} with --allocation reference, whose sparsities are fixed: choose {others}"
            )
        fixed = self.allocation in ("reference", "given") or (self.allocation == "random" and self.sparsity is None)
        if self.keep_first_layer and fixed:
            raise UsageError(
                f"--keep-first-layer with --allocation {self.allocation}, whose sparsities are fixed: choose another "
                "allocation" + (", or give --sparsity" if self.allocation == "random" else "")
            )
        budget = self.accuracy_budget
        if budget != Settings.accuracy_budget and (self.allocation != "scan" or self.sparsity is not None):
            raise UsageError(f"--accuracy-budget {budget}: it is only for --allocation scan without --sparsity")
        if self.regrow and self.allocation == "random":
            raise UsageError(f"--regrow {self.regrow} with --allocation random: the control does not look at gradients")
        self._check_criterion()
        self._check_filters()
        self._check_rewinding()
        if self.temperature != Settings.temperature and not self.distillation:
            raise UsageError(f"--temperature {self.temperature}: it is only for --distillation above 0")
        for name in ("gradual_fraction", "gradual_every", "regrow"):
            if self.schedule != "gradual" and getattr(self, name) != getattr(Settings, name):
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: it is only for --schedule gradual")

    def _check_criterion(self) -> None:
        if self.sparsities_from is not None and self.allocation != "given":
            raise UsageError(f"--sparsities-from {self.sparsities_from}: it is only for --allocation given")
        if self.allocation == "given" and self.sparsity is not None:
            raise UsageError(
                f"--sparsity {self.sparsity} with --allocation given, whose sparsities are those of --sparsities-from"
            )
        if self.sparsities_from is not None and self.begins and not self.sparsities_from.is_dir():
            raise UsageError(f"--sparsities-from {self.sparsities_from}: no such folder")
        if self.criterion == "taylor" and self.allocation in ("lamp", "random"):
            why = "LAMP's score is one of magnitudes" if self.allocation == "lamp" else "its masks are random"
            raise UsageError(f"--criterion taylor with --allocation {self.allocation}: {why}; choose global, say")
        if self.regrow and self.criterion != "magnitude":
            raise UsageError(f"--regrow {self.regrow} with --criterion {self.criterion}: it swaps weights by magnitude")

    def _check_filters(self) -> None:
        if self.granularity == "weight":
            if self.filter_importance != Settings.filter_importance:
                raise UsageError(f"--filter-importance {self.filter_importance}: it is only for --granularity filter")
            return
        if self.allocation in ("erk", "given"):
            raise UsageError(
                f"--allocation {self.allocation} with --granularity filter: its sparsities are those of single weights"
            )
        if self.criterion == "taylor":
            raise UsageError("--criterion taylor with --granularity filter: --filter-importance ranks filters")
        if self.regrow:
            raise UsageError(f"--regrow {self.regrow} with --granularity filter: a dropped filter has no gradient")

    def _check_rewinding(self) -> None:
        for name in ("rounds", "rewind"):
            if self.schedule != "iterative" and getattr(self, name) != getattr(Settings, name):
                raise UsageError(f"--{name} {getattr(self, name)}: it is only for --schedule iterative")
        if self.rewind == "none":
            if self.rewind_fraction != Settings.rewind_fraction:
                raise UsageError(f"--rewind-fraction {self.rewind_fraction}: it is only for --rewind weights or rate")
            return
        if self.extended_from is not None:
            raise UsageError(f"--extend with --rewind {self.rewind}: each round repeats the dense training, no more")
        for name in ("finetune_epochs", "finetune_learning_rate", "finetune_warmup"):
            usual = {getattr(Settings, name), self.smoke.get(name) if self.smoke_test else None}
            if getattr(self, name) not in usual:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: it is only for --rewind none; with --rewind "
                    f"{self.rewind} each round repeats the dense training from its early step"
                )
        if self.rewind == "weights" and self.dense_weights is not None and self.resume is None:
            early = self.dense_weights.with_name(EARLY)
            if not early.is_file():
                raise UsageError(
                    f"--rewind weights with --dense-weights {self.dense_weights}: there is no {EARLY} beside it, the "
                    "weights of an early step that a run with --rewind weights keeps"
                )
